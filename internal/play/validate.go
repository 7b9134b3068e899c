package play

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// uidPattern keeps a uid from a manifest safe as a directory's name.
var uidPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,62}$`)

// checker collects problems.
type checker struct{ found []Problem }

func (c *checker) add(path, format string, args ...any) {
	c.found = append(c.found, Problem{Path: path, Text: fmt.Sprintf(format, args...)})
}

// oneOf requires value, unless empty, to be among allowed.
func oneOf[T ~string](c *checker, path string, value T, allowed ...T) {
	if value != "" && !slices.Contains(allowed, value) {
		c.add(path, "%q is not one of %q", value, allowed)
	}
}

// validate checks values, after the defaults, as the API server would where a
// wrong one would otherwise do harm or fail later with a worse message.
func validate(pod *corev1.Pod) []Problem {
	c := &checker{}
	c.metadata(pod)
	c.spec(&pod.Spec)
	c.podSecurity(&pod.Spec)
	c.volumes(pod.Spec.Volumes)
	c.containers(&pod.Spec)
	return c.found
}

func (c *checker) metadata(pod *corev1.Pod) {
	switch {
	case pod.Name == "":
		c.add("metadata.name", "is missing")
	default:
		for _, e := range validation.IsDNS1123Subdomain(pod.Name) {
			c.add("metadata.name", "%s", e)
		}
	}
	for _, e := range validation.IsDNS1123Label(pod.Namespace) {
		c.add("metadata.namespace", "%s", e)
	}
	if pod.UID != "" && !uidPattern.MatchString(string(pod.UID)) {
		c.add("metadata.uid", "%q is not made of letters, digits and hyphens", pod.UID)
	}
}

func (c *checker) spec(s *corev1.PodSpec) {
	oneOf(c, "spec.restartPolicy", s.RestartPolicy,
		corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	if *s.TerminationGracePeriodSeconds < 0 {
		c.add("spec.terminationGracePeriodSeconds", "is negative")
	}
	oneOf(c, "spec.dnsPolicy", s.DNSPolicy,
		corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	if s.DNSPolicy == corev1.DNSNone && (s.DNSConfig == nil || len(s.DNSConfig.Nameservers) == 0) {
		c.add("spec.dnsConfig.nameservers", "is missing: dnsPolicy None needs at least one")
	}
	if s.HostPID && isTrue(s.ShareProcessNamespace) {
		c.add("spec.shareProcessNamespace", "cannot be combined with hostPID")
	}
	if hasUsers(s) && (s.HostPID || s.HostIPC) {
		c.add("spec.hostUsers", "false cannot be combined with hostPID or hostIPC")
	}
	if isTrue(s.AutomountServiceAccountToken) {
		c.add("spec.automountServiceAccountToken", "true is not supported by davit play: there is no API server to give a token")
	}
	if s.OS != nil {
		oneOf(c, "spec.os.name", s.OS.Name, corev1.Linux)
	}
	for field, name := range map[string]string{"spec.hostname": s.Hostname, "spec.subdomain": s.Subdomain} {
		if name != "" {
			for _, e := range validation.IsDNS1123Label(name) {
				c.add(field, "%s", e)
			}
		}
	}
	if s.RuntimeClassName != nil && *s.RuntimeClassName == "" {
		c.add("spec.runtimeClassName", "is empty")
	}
	for i, a := range s.HostAliases {
		if _, err := netip.ParseAddr(a.IP); err != nil {
			c.add(fmt.Sprintf("spec.hostAliases[%d].ip", i), "%q is not an IP address", a.IP)
		}
	}
}

func (c *checker) podSecurity(s *corev1.PodSpec) {
	sc := s.SecurityContext
	const at = "spec.securityContext"
	if p := sc.SupplementalGroupsPolicy; p != nil {
		oneOf(c, at+".supplementalGroupsPolicy", *p, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	c.profiles(at, sc.SeccompProfile, sc.AppArmorProfile)
	c.ids(at, map[string]*int64{".runAsUser": sc.RunAsUser, ".runAsGroup": sc.RunAsGroup, ".fsGroup": sc.FSGroup})
	for i, group := range sc.SupplementalGroups {
		c.ids(at, map[string]*int64{fmt.Sprintf(".supplementalGroups[%d]", i): &group})
	}
	seen := map[string]bool{}
	for i, ctl := range sc.Sysctls {
		p := fmt.Sprintf("%s.sysctls[%d].name", at, i)
		name := strings.ReplaceAll(ctl.Name, "/", ".")
		switch {
		case name == "":
			c.add(p, "is missing")
		case seen[name]:
			c.add(p, "%s is given twice", ctl.Name)
		case s.HostNetwork && strings.HasPrefix(name, "net."):
			c.add(p, "%s would change the host: not with hostNetwork", ctl.Name)
		case s.HostIPC && (strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") ||
			name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")):
			c.add(p, "%s would change the host: not with hostIPC", ctl.Name)
		}
		seen[name] = true
	}
}

func (c *checker) profiles(at string, seccomp *corev1.SeccompProfile, apparmor *corev1.AppArmorProfile) {
	if p := seccomp; p != nil {
		oneOf(c, at+".seccompProfile.type", p.Type,
			corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined, corev1.SeccompProfileTypeLocalhost)
		local := p.LocalhostProfile != nil && *p.LocalhostProfile != ""
		switch {
		case local != (p.Type == corev1.SeccompProfileTypeLocalhost):
			c.add(at+".seccompProfile.localhostProfile", "goes with type Localhost, and only with it")
		case local && (path.IsAbs(*p.LocalhostProfile) || hasDotDot(*p.LocalhostProfile)):
			c.add(at+".seccompProfile.localhostProfile", "must be a path below %s", seccompRoot)
		}
	}
	if p := apparmor; p != nil {
		oneOf(c, at+".appArmorProfile.type", p.Type,
			corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined, corev1.AppArmorProfileTypeLocalhost)
		if local := p.LocalhostProfile != nil && *p.LocalhostProfile != ""; local != (p.Type == corev1.AppArmorProfileTypeLocalhost) {
			c.add(at+".appArmorProfile.localhostProfile", "goes with type Localhost, and only with it")
		}
	}
}

func (c *checker) volumes(volumes []corev1.Volume) {
	seen := map[string]bool{}
	for i := range volumes {
		v := &volumes[i]
		at := fmt.Sprintf("spec.volumes[%d]", i)
		c.name(at+".name", v.Name, seen)
		switch {
		case moreThanOne(v.EmptyDir != nil, v.HostPath != nil, v.Image != nil):
			c.add(at, "has more than one source: want one of emptyDir, hostPath and image")
		case v.EmptyDir != nil:
			if v.EmptyDir.Medium != "" {
				c.add(at+".emptyDir.medium", "%s is not supported by davit play: it mounts nothing on the host; leave it out to use a directory", v.EmptyDir.Medium)
			}
			if v.EmptyDir.SizeLimit != nil {
				c.add(at+".emptyDir.sizeLimit", "is not supported by davit play: a kubelet would have to watch it")
			}
		case v.HostPath != nil:
			c.hostPath(at+".hostPath", v.HostPath)
		case v.Image != nil:
			if strings.TrimSpace(v.Image.Reference) == "" {
				c.add(at+".image.reference", "is missing")
			}
			oneOf(c, at+".image.pullPolicy", v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
		default:
			c.add(at, "names no volume source: want emptyDir, hostPath or image")
		}
	}
}

func moreThanOne(are ...bool) bool {
	first := slices.Index(are, true)
	return first >= 0 && slices.Contains(are[first+1:], true)
}

func (c *checker) hostPath(at string, h *corev1.HostPathVolumeSource) {
	switch {
	case !path.IsAbs(h.Path):
		c.add(at+".path", "%q is not an absolute path", h.Path)
	case hasDotDot(h.Path):
		c.add(at+".path", "%q contains ..", h.Path)
	}
	oneOf(c, at+".type", *h.Type, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
		corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket,
		corev1.HostPathCharDev, corev1.HostPathBlockDev)
}

// name checks a name that must be a DNS label and unique among seen.
func (c *checker) name(at, name string, seen map[string]bool) {
	switch {
	case name == "":
		c.add(at, "is missing")
	case seen[name]:
		c.add(at, "%q is used twice", name)
	default:
		for _, e := range validation.IsDNS1123Label(name) {
			c.add(at, "%s", e)
		}
	}
	seen[name] = true
}

func hasDotDot(p string) bool { return slices.Contains(strings.Split(p, "/"), "..") }

func (c *checker) containers(s *corev1.PodSpec) {
	volumes := map[string]*corev1.Volume{}
	for i := range s.Volumes {
		volumes[s.Volumes[i].Name] = &s.Volumes[i]
	}
	names, hostPorts := map[string]bool{}, map[string]bool{}
	each := func(field string, list []corev1.Container) {
		for i := range list {
			at := fmt.Sprintf("spec.%s[%d]", field, i)
			ct := &list[i]
			c.name(at+".name", ct.Name, names)
			c.container(at, ct)
			c.ports(at, ct.Ports, s.HostNetwork, hostPorts)
			c.mounts(at, ct, volumes)
		}
	}
	each("initContainers", s.InitContainers)
	each("containers", s.Containers)
	if len(s.Containers) == 0 {
		c.add("spec.containers", "is empty: a Pod needs a container")
	}
	for i := range s.InitContainers {
		if p := s.InitContainers[i].RestartPolicy; p != nil {
			oneOf(c, fmt.Sprintf("spec.initContainers[%d].restartPolicy", i), *p, corev1.ContainerRestartPolicyAlways)
		}
	}
	c.envSources(s)
}

func (c *checker) container(at string, ct *corev1.Container) {
	if strings.TrimSpace(ct.Image) == "" {
		c.add(at+".image", "is missing")
	}
	oneOf(c, at+".imagePullPolicy", ct.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	oneOf(c, at+".terminationMessagePolicy", ct.TerminationMessagePolicy,
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	if !path.IsAbs(ct.TerminationMessagePath) {
		c.add(at+".terminationMessagePath", "%q is not an absolute path", ct.TerminationMessagePath)
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, limited := ct.Resources.Limits[name]
		request, requested := ct.Resources.Requests[name]
		if limited && requested && request.Cmp(limit) > 0 {
			c.add(at+".resources.requests."+string(name), "%s is more than the limit of %s", request.String(), limit.String())
		}
		if limit.Sign() < 0 || request.Sign() < 0 {
			c.add(at+".resources", "%s is negative", name)
		}
	}
	c.containerSecurity(at+".securityContext", ct.SecurityContext)
}

// ids checks user and group IDs. Kubernetes: validation.IsValidUserID.
func (c *checker) ids(at string, ids map[string]*int64) {
	for field, id := range ids {
		if id != nil && (*id < 0 || *id > math.MaxInt32) {
			c.add(at+field, "%d is not between 0 and %d", *id, math.MaxInt32)
		}
	}
}

func (c *checker) containerSecurity(at string, sc *corev1.SecurityContext) {
	c.profiles(at, sc.SeccompProfile, sc.AppArmorProfile)
	c.ids(at, map[string]*int64{".runAsUser": sc.RunAsUser, ".runAsGroup": sc.RunAsGroup})
	if sc.ProcMount != nil {
		oneOf(c, at+".procMount", *sc.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
	}
	if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation {
		return
	}
	if isTrue(sc.Privileged) {
		c.add(at+".allowPrivilegeEscalation", "cannot be false with privileged: true")
	}
	if sc.Capabilities != nil && slices.Contains(sc.Capabilities.Add, "SYS_ADMIN") {
		c.add(at+".allowPrivilegeEscalation", "cannot be false with capability SYS_ADMIN added")
	}
}

func (c *checker) ports(at string, ports []corev1.ContainerPort, hostNetwork bool, hostPorts map[string]bool) {
	for i, p := range ports {
		at := fmt.Sprintf("%s.ports[%d]", at, i)
		oneOf(c, at+".protocol", p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		if p.ContainerPort < 1 || p.ContainerPort > 65535 {
			c.add(at+".containerPort", "%d is not between 1 and 65535", p.ContainerPort)
		}
		if p.HostPort == 0 {
			continue
		}
		if p.HostPort < 0 || p.HostPort > 65535 {
			c.add(at+".hostPort", "%d is not between 1 and 65535", p.HostPort)
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			c.add(at+".hostIP", "%q is not an IP address", p.HostIP)
		}
		if hostNetwork && p.HostPort != p.ContainerPort {
			c.add(at+".hostPort", "must be the same as containerPort (%d) with hostNetwork", p.ContainerPort)
		}
		key := fmt.Sprintf("%s %s:%d", p.Protocol, p.HostIP, p.HostPort)
		if hostPorts[key] {
			c.add(at+".hostPort", "%d is used twice", p.HostPort)
		}
		hostPorts[key] = true
	}
}

func (c *checker) mounts(at string, ct *corev1.Container, volumes map[string]*corev1.Volume) {
	paths := map[string]bool{}
	for i := range ct.VolumeMounts {
		m := &ct.VolumeMounts[i]
		at := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
		switch v := volumes[m.Name]; {
		case v == nil:
			c.add(at+".name", "there is no volume %q", m.Name)
		case v.Image != nil && m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone:
			c.add(at+".mountPropagation", "nothing is mounted in an image: leave it out")
		}
		switch {
		case m.MountPath == "":
			c.add(at+".mountPath", "is missing")
		case strings.Contains(m.MountPath, ":"):
			c.add(at+".mountPath", "contains a colon")
		case paths[m.MountPath]:
			c.add(at+".mountPath", "%s is used twice", m.MountPath)
		}
		paths[m.MountPath] = true
		for field, p := range map[string]string{".subPath": m.SubPath, ".subPathExpr": m.SubPathExpr} {
			if path.IsAbs(p) || hasDotDot(p) {
				c.add(at+field, "%q is not a path below the volume", p)
			}
		}
		if m.SubPath != "" && m.SubPathExpr != "" {
			c.add(at+".subPathExpr", "cannot be combined with subPath")
		}
		c.mountModes(at, m, isTrue(ct.SecurityContext.Privileged))
	}
}

func (c *checker) mountModes(at string, m *corev1.VolumeMount, privileged bool) {
	propagated := false
	if p := m.MountPropagation; p != nil {
		oneOf(c, at+".mountPropagation", *p, corev1.MountPropagationNone,
			corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional)
		propagated = *p != corev1.MountPropagationNone
		if *p == corev1.MountPropagationBidirectional && !privileged {
			c.add(at+".mountPropagation", "Bidirectional needs a privileged container")
		}
	}
	if r := m.RecursiveReadOnly; r != nil {
		oneOf(c, at+".recursiveReadOnly", *r, corev1.RecursiveReadOnlyDisabled,
			corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled)
		if *r != corev1.RecursiveReadOnlyDisabled && (!m.ReadOnly || propagated) {
			c.add(at+".recursiveReadOnly", "needs readOnly: true and no mountPropagation")
		}
	}
}

// envSources checks that each variable has a name and one source that exists.
func (c *checker) envSources(s *corev1.PodSpec) {
	check := func(field string, list []corev1.Container) {
		for i := range list {
			for j, e := range list[i].Env {
				at := fmt.Sprintf("spec.%s[%d].env[%d]", field, i, j)
				c.envVar(at, s, &list[i], e)
			}
		}
	}
	check("initContainers", s.InitContainers)
	check("containers", s.Containers)
}

func (c *checker) envVar(at string, s *corev1.PodSpec, ct *corev1.Container, e corev1.EnvVar) {
	if e.Name == "" || strings.Contains(e.Name, "=") {
		c.add(at+".name", "%q is not the name of a variable", e.Name)
	}
	if e.ValueFrom == nil {
		return
	}
	f, r := e.ValueFrom.FieldRef, e.ValueFrom.ResourceFieldRef
	switch {
	case e.Value != "":
		c.add(at, "has both value and valueFrom")
	case (f == nil) == (r == nil):
		c.add(at+".valueFrom", "needs one of fieldRef and resourceFieldRef")
	case f != nil:
		if _, err := fieldValue(&corev1.Pod{}, Node{}, nil, f.FieldPath); err != nil {
			c.add(at+".valueFrom.fieldRef.fieldPath", "%v", err)
		}
	default:
		if _, err := resourceValue(s, ct, Node{}, r); err != nil {
			c.add(at+".valueFrom.resourceFieldRef", "%v", err)
		}
	}
}
