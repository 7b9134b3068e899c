package play

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// seccompRoot is where a kubelet looks for Localhost seccomp profiles.
const seccompRoot = "/var/lib/kubelet/seccomp"

// Paths that are hidden or read-only unless procMount is Unmasked.
// Source: Kubernetes, pkg/securitycontext/util.go.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// imageUser is the user that an image names: a number or a name, or neither
// for root.
type imageUser struct {
	uid  *int64
	name string
}

// checkNonRoot enforces runAsNonRoot, which can be done for a number only.
//
// Source: Kubernetes, pkg/kubelet/kuberuntime/security_context_others.go.
func checkNonRoot(pod *corev1.Pod, c *corev1.Container, image imageUser) error {
	podSC, sc := pod.Spec.SecurityContext, c.SecurityContext
	if !isTrue(either(sc.RunAsNonRoot, podSC.RunAsNonRoot)) {
		return nil
	}
	user := either(sc.RunAsUser, podSC.RunAsUser)
	switch {
	case user != nil && *user == 0:
		return fmt.Errorf("container %s: runAsNonRoot is set, but runAsUser is 0; choose another user", c.Name)
	case user != nil:
		return nil
	case image.name != "":
		return fmt.Errorf("container %s: runAsNonRoot is set, but image %s names its user %q, which may be root; set runAsUser to a number", c.Name, c.Image, image.name)
	case image.uid == nil || *image.uid == 0:
		return fmt.Errorf("container %s: runAsNonRoot is set, but image %s runs as root; set runAsUser", c.Name, c.Image)
	}
	return nil
}

// containerSecurity merges the pod's and the container's security context;
// the container's wins.
func containerSecurity(pod *corev1.Pod, c *corev1.Container, image imageUser, cpus int64) *runtimeapi.LinuxContainerSecurityContext {
	podSC, sc := pod.Spec.SecurityContext, c.SecurityContext
	out := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:               isTrue(sc.Privileged),
		NamespaceOptions:         namespaces(pod),
		ReadonlyRootfs:           isTrue(sc.ReadOnlyRootFilesystem),
		NoNewPrivs:               sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		SupplementalGroups:       supplementalGroups(podSC),
		SupplementalGroupsPolicy: groupsPolicy(podSC),
		RunAsGroup:               int64Value(either(sc.RunAsGroup, podSC.RunAsGroup)),
		SelinuxOptions:           selinux(either(sc.SELinuxOptions, podSC.SELinuxOptions)),
	}
	switch user := either(sc.RunAsUser, podSC.RunAsUser); {
	case user != nil:
		out.RunAsUser = int64Value(user)
	case image.name != "":
		out.RunAsUsername = image.name
	default:
		out.RunAsUser = int64Value(either(image.uid, new(int64)))
	}
	if sc.Capabilities != nil {
		out.Capabilities = &runtimeapi.Capability{}
		for _, add := range sc.Capabilities.Add {
			out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(add))
		}
		for _, drop := range sc.Capabilities.Drop {
			out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(drop))
		}
	}
	if *either(sc.ProcMount, new(corev1.DefaultProcMount)) == corev1.DefaultProcMount {
		out.MaskedPaths, out.ReadonlyPaths = allMaskedPaths(cpus), slices.Clone(readonlyPaths)
	}
	if !out.Privileged {
		out.Seccomp = seccomp(either(sc.SeccompProfile, podSC.SeccompProfile))
	}
	out.Apparmor = apparmor(either(sc.AppArmorProfile, podSC.AppArmorProfile))
	return out
}

// sandboxSecurity is the pod's security context. A privileged container needs
// a privileged sandbox.
func sandboxSecurity(pod *corev1.Pod) *runtimeapi.LinuxSandboxSecurityContext {
	sc := pod.Spec.SecurityContext
	out := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions:         namespaces(pod),
		SelinuxOptions:           selinux(sc.SELinuxOptions),
		RunAsUser:                int64Value(sc.RunAsUser),
		SupplementalGroups:       supplementalGroups(sc),
		SupplementalGroupsPolicy: groupsPolicy(sc),
		Seccomp:                  &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	if sc.RunAsUser != nil { // CRI: run_as_group without run_as_user is an error
		out.RunAsGroup = int64Value(sc.RunAsGroup)
	}
	for c := range eachContainer(&pod.Spec) {
		out.Privileged = out.Privileged || isTrue(c.SecurityContext.Privileged)
	}
	return out
}

func namespaces(pod *corev1.Pod) *runtimeapi.NamespaceOption {
	s := &pod.Spec
	out := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER} // network, ipc: POD
	if ids := idMappings(pod); ids != nil {
		out.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	if s.HostNetwork {
		out.Network = runtimeapi.NamespaceMode_NODE
	}
	if s.HostIPC {
		out.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case s.HostPID:
		out.Pid = runtimeapi.NamespaceMode_NODE
	case isTrue(s.ShareProcessNamespace):
		out.Pid = runtimeapi.NamespaceMode_POD
	}
	return out
}

func supplementalGroups(sc *corev1.PodSecurityContext) []int64 {
	groups := slices.Clone(sc.SupplementalGroups)
	if sc.FSGroup != nil && !slices.Contains(groups, *sc.FSGroup) {
		groups = append(groups, *sc.FSGroup)
	}
	return groups
}

func groupsPolicy(sc *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if p := sc.SupplementalGroupsPolicy; p != nil && *p == corev1.SupplementalGroupsPolicyStrict {
		return runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return runtimeapi.SupplementalGroupsPolicy_Merge
}

// seccomp is RuntimeDefault unless the manifest says otherwise, as with a
// kubelet whose seccompDefault is on.
func seccomp(p *corev1.SeccompProfile) *runtimeapi.SecurityProfile {
	out := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	switch {
	case p == nil:
	case p.Type == corev1.SeccompProfileTypeUnconfined:
		out.ProfileType = runtimeapi.SecurityProfile_Unconfined
	case p.Type == corev1.SeccompProfileTypeLocalhost:
		out.ProfileType = runtimeapi.SecurityProfile_Localhost
		out.LocalhostRef = filepath.Join(seccompRoot, *p.LocalhostProfile)
	}
	return out
}

// apparmor is left to the runtime unless the manifest says something.
func apparmor(p *corev1.AppArmorProfile) *runtimeapi.SecurityProfile {
	switch {
	case p == nil:
		return nil
	case p.Type == corev1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case p.Type == corev1.AppArmorProfileTypeLocalhost:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// allMaskedPaths adds each CPU's thermal counters, which leak what others do.
func allMaskedPaths(cpus int64) []string {
	paths := slices.Clone(maskedPaths)
	for cpu := range cpus {
		paths = append(paths, "/sys/devices/system/cpu/cpu"+strconv.FormatInt(cpu, 10)+"/thermal_throttle")
	}
	return paths
}

// either returns first unless it is nil.
func either[T any](first, second *T) *T {
	if first != nil {
		return first
	}
	return second
}

func int64Value(v *int64) *runtimeapi.Int64Value {
	if v == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *v}
}

// Pods with a user namespace have IDs of the host's to themselves, a block each,
// as from a kubelet. The blocks are where no kubelet, login or systemd gives any.
//
// systemd: docs/UIDS-GIDS.md, "Unused".
const (
	blockIDs   = 1 << 16
	firstBlock = 0x70000000 / blockIDs
	blocks     = 0x0ff0
)

func hasUsers(s *corev1.PodSpec) bool { return s.HostUsers != nil && !*s.HostUsers }

// chooseUsers chooses a block of IDs that no pod has, and writes it on the pod.
func (l *launch) chooseUsers(ctx context.Context) error {
	if !hasUsers(&l.pod.Spec) {
		return nil
	}
	all, err := l.sandboxes(ctx, nil)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, s := range all {
		taken[s.Annotations[annotationUsers]] = true
	}
	h := fnv.New32a() // two that choose at a time seldom choose one
	_, _ = h.Write([]byte(l.pod.UID))
	for i := range uint32(blocks) {
		first := strconv.Itoa(int(firstBlock+(h.Sum32()+i)%blocks) * blockIDs)
		if !taken[first] {
			if l.pod.Annotations == nil {
				l.pod.Annotations = map[string]string{}
			}
			l.pod.Annotations[annotationUsers] = first
			return nil
		}
	}
	return errors.New("all user IDs for pods with hostUsers: false are in use")
}

// idMappings are those of the pod's user namespace; none without one.
func idMappings(pod *corev1.Pod) []*runtimeapi.IDMapping {
	first, err := strconv.ParseUint(pod.Annotations[annotationUsers], 10, 32)
	if !hasUsers(&pod.Spec) || err != nil {
		return nil
	}
	return []*runtimeapi.IDMapping{{HostId: uint32(first), Length: blockIDs}}
}
