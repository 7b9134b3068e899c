package ocispec

import (
	"maps"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
)

// ociVersion is the lowest that says all that is needed: crun 1.8.1 refuses
// anything above 1.0.
const ociVersion = "1.0.2"

// defaultMasked and defaultReadonly are for containers without a security
// context; with one, its lists are taken as they are, also when empty.
var (
	defaultMasked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Build makes the spec. The CPU quota is left out, since it would throttle
// the OCI runtime's own start: cgroup.Limit applies it later.
//
// It returns Invalid for a request that contradicts itself or names unknown
// things, Unimplemented for what davit, or the OCI runtime, cannot do.
func Build(in Input) (*specs.Spec, error) {
	if in.Pod == nil || in.Container == nil {
		return nil, fault.New(fault.Internal, "ocispec.Build", "no pod or no container")
	}
	if !filepath.IsAbs(in.Rootfs) {
		return nil, fault.New(fault.Internal, "ocispec.Build", "root file system %q is not absolute", in.Rootfs)
	}
	sc := in.Container.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !in.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, fault.New(fault.Invalid, "", "a privileged container needs a privileged pod")
	}
	if sc.GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET && in.Namespaces.PID == "" {
		return nil, fault.New(fault.Internal, "ocispec.Build", "no PID namespace of the target container")
	}
	s := &specs.Spec{
		Version:     ociVersion,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: sc.GetReadonlyRootfs()},
		Annotations: maps.Clone(in.Annotations),
		Linux:       &specs.Linux{CgroupsPath: in.CgroupsPath, Namespaces: namespaces(in)},
	}
	if in.Namespaces.User != "" { // the OCI runtime joins it, but wants to be told
		s.Linux.UIDMappings, s.Linux.GIDMappings = mappings(in.Namespaces.Users.UIDs), mappings(in.Namespaces.Users.GIDs)
	}
	var err error
	if s.Process, err = process(in); err != nil {
		return nil, err
	}
	if s.Mounts, s.Linux.RootfsPropagation, err = mounts(in); err != nil {
		return nil, err
	}
	if s.Linux.Resources, err = resources(in); err != nil {
		return nil, err
	}
	var rules []specs.LinuxDeviceCgroup
	if s.Linux.Devices, rules, err = devices(in); err != nil {
		return nil, err
	}
	s.Linux.Resources.Devices = rules
	if s.Linux.Seccomp, err = seccompProfile(s, sc, in.Found.Seccomp); err != nil {
		return nil, err
	}
	switch {
	case sc == nil:
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = slices.Clone(defaultMasked), slices.Clone(defaultReadonly)
	case !sc.Privileged:
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = sc.MaskedPaths, sc.ReadonlyPaths
	}
	return s, nil
}

func mappings(ranges []idmap.Range) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, r := range ranges {
		all = append(all, specs.LinuxIDMapping{ContainerID: r.Container, HostID: r.Host, Size: r.Length})
	}
	return all
}

func namespaces(in Input) []specs.LinuxNamespace {
	sc := in.Container.GetLinux().GetSecurityContext()
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if in.Namespaces.User != "" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.Namespaces.User})
	}
	if sc.GetNamespaceOptions().GetPid() != runtimeapi.NamespaceMode_NODE {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.Namespaces.PID})
	}
	// On v1 containers keep the host's, as everywhere: their /proc/self/cgroup names the whole path.
	if in.CgroupV2 && !sc.GetPrivileged() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	for _, n := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: in.Namespaces.Net},
		{Type: specs.IPCNamespace, Path: in.Namespaces.IPC},
		{Type: specs.UTSNamespace, Path: in.Namespaces.UTS},
	} {
		if n.Path != "" {
			ns = append(ns, n)
		}
	}
	return ns
}
