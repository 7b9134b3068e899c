// Package label gives pods and containers their SELinux labels.
//
// It owns the choice of each pod's categories, by which the kernel keeps pods
// apart: no two pods of one davitd have the same, unless they ask for it. A
// nil *SELinux is a host without SELinux: everything succeeds and labels are
// empty. Package pod calls it, and keeps what it chose in the pod's record.
package label

import (
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	kernel "github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// Labels are those of processes and of the files they may use.
type Labels struct{ Process, Mount string }

// A Policy is what SELinux does of it. The kernel's is behind Open.
type Policy interface {
	// Init returns labels with these parts ("type:spc_t"), others being the
	// policy's defaults, and categories that nobody has if no level is given.
	Init(options []string) (process, mount string, err error)
	Reserve(label string) error // its categories, chosen before
	Release(label string)
	Of(path string) (string, error)
	Relabel(path, label string) error // and all below
}

// SELinux labels things.
type SELinux struct{ policy Policy }

// Open returns the host's SELinux, nil if it is not enabled.
func Open() *SELinux {
	if !selinux.GetEnabled() {
		return nil
	}
	return With(kernelPolicy{})
}

// With returns SELinux with another policy.
func With(p Policy) *SELinux { return &SELinux{p} }

// Pod chooses labels for a pod. Release lets go of them.
//
// It returns Invalid for options that the policy refuses.
func (s *SELinux) Pod(o *runtimeapi.SELinuxOption) (Labels, error) {
	if s == nil {
		return Labels{}, nil
	}
	return s.init(options(o))
}

// Container returns the labels of a container in a pod: the pod's, or what it
// asks for itself, but always in the pod's categories unless it names others.
// A privileged container's processes are not confined.
//
// A level that a container names stays reserved until davitd ends: another
// pod may have been given the same.
func (s *SELinux) Container(pod Labels, sc *runtimeapi.LinuxContainerSecurityContext) (Labels, error) {
	if s == nil {
		return Labels{}, nil
	}
	l := pod
	if parts := options(sc.GetSelinuxOptions()); len(parts) > 0 {
		if sc.GetSelinuxOptions().GetLevel() == "" {
			if _, level, ok := cutLevel(pod.Process); ok {
				parts = append(parts, "level:"+level)
			}
		}
		var err error
		if l, err = s.init(parts); err != nil {
			return Labels{}, err
		}
	}
	if sc.GetPrivileged() {
		l.Process = ""
	}
	return l, nil
}

func (s *SELinux) init(parts []string) (Labels, error) {
	process, mount, err := s.policy.Init(parts)
	if err != nil {
		return Labels{}, fault.New(fault.Invalid, "", "selinux_options: %w", err)
	}
	return Labels{process, mount}, nil
}

// options are the parts of a label that are asked for.
func options(o *runtimeapi.SELinuxOption) []string {
	var parts []string
	for _, p := range [][2]string{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()}} {
		if p[1] != "" {
			parts = append(parts, p[0]+":"+p[1])
		}
	}
	return parts
}

// cutLevel splits "user:role:type:level"; a level has colons itself.
func cutLevel(label string) (rest, level string, ok bool) {
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 4 {
		return label, "", false
	}
	return strings.Join(parts[:3], ":"), parts[3], true
}

// Keep reserves labels that a pod has from before a restart.
func (s *SELinux) Keep(l Labels) error {
	if s == nil || l.Process == "" {
		return nil
	}
	if err := s.policy.Reserve(l.Process); err != nil {
		return fault.New(fault.Internal, "", "SELinux label %s: %w", l.Process, err)
	}
	return nil
}

// Release lets others have a pod's categories. It is idempotent.
func (s *SELinux) Release(l Labels) {
	if s != nil && l.Process != "" {
		s.policy.Release(l.Process)
	}
}

// Relabel gives a file, or a directory with all below, a label; it may take
// long. A directory that has it already is taken to have it all through: it
// gets its own last.
func (s *SELinux) Relabel(path, label string) error {
	if s == nil || label == "" {
		return nil
	}
	if now, err := s.policy.Of(path); err == nil && now == label {
		return nil
	}
	if err := s.policy.Relabel(path, label); err != nil {
		return fault.New(fault.Precondition, "", "relabel %s to %s: %w", path, label, err)
	}
	return nil
}

// kernelPolicy is that of this host.
type kernelPolicy struct{}

func (kernelPolicy) Init(options []string) (process, mount string, err error) {
	if process, mount, err = kernel.InitLabels(options); err != nil {
		return "", "", err
	}
	for _, l := range []string{process, mount} {
		if err := selinux.SecurityCheckContext(l); l != "" && err != nil {
			selinux.ReleaseLabel(process)
			return "", "", fmt.Errorf("the policy has no label %s: %w", l, err)
		}
	}
	return process, mount, nil
}

func (kernelPolicy) Reserve(label string) error       { return selinux.ReserveLabelV2(label) }
func (kernelPolicy) Release(label string)             { selinux.ReleaseLabel(label) }
func (kernelPolicy) Of(path string) (string, error)   { return selinux.FileLabel(path) }
func (kernelPolicy) Relabel(path, label string) error { return kernel.Relabel(path, label, false) }
