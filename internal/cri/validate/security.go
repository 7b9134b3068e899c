package validate

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces checks namespace options alone, without those of the pod.
func (c *Check) namespaces(field string, ns *runtimeapi.NamespaceOption) {
	for _, of := range []struct {
		name string
		mode runtimeapi.NamespaceMode
	}{{"network", ns.GetNetwork()}, {"ipc", ns.GetIpc()}} {
		f := field + "." + of.name
		name := c.Enum(f, int32(of.mode), runtimeapi.NamespaceMode_name)
		if of.mode != runtimeapi.NamespaceMode_POD && of.mode != runtimeapi.NamespaceMode_NODE {
			c.Bad(f, "is %s, only POD and NODE are possible", name)
		}
	}
	c.Enum(field+".pid", int32(ns.GetPid()), runtimeapi.NamespaceMode_name)
	target := ns.GetPid() == runtimeapi.NamespaceMode_TARGET
	if target && ns.GetTargetId() == "" {
		c.Bad(field+".target_id", "is empty, but pid is TARGET")
	}
	if !target && ns.GetTargetId() != "" {
		c.Bad(field+".target_id", "is set, but pid is not TARGET")
	}
	c.userns(field+".userns_options", ns.GetUsernsOptions())
	c.podUsers(field, ns)
}

func (c *Check) userns(field string, u *runtimeapi.UserNamespace) {
	if u == nil {
		return // no user namespace, as both other runtimes read it
	}
	name := c.Enum(field+".mode", int32(u.GetMode()), runtimeapi.NamespaceMode_name)
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids()) > 0 {
			c.Bad(field+".uids", "are set, but mode is NODE")
		}
		if len(u.GetGids()) > 0 {
			c.Bad(field+".gids", "are set, but mode is NODE")
		}
	case runtimeapi.NamespaceMode_POD:
		c.ids(field+".uids", u.GetUids())
		c.ids(field+".gids", u.GetGids())
	default:
		c.Bad(field+".mode", "is %s, only POD and NODE are possible", name)
	}
}

// ids requires what a pod's user namespace can have: one range, with root in it.
func (c *Check) ids(field string, ids []*runtimeapi.IDMapping) {
	if len(ids) != 1 {
		c.Bad(field, "are %d mappings, only one is possible", len(ids))
		return
	}
	c.mapping(field, ids)
	if ids[0].GetContainerId() != 0 {
		c.Bad(field+"[0].container_id", "is %d: ID 0 of the container is not mapped", ids[0].GetContainerId())
	}
}

// mapping requires ranges that the kernel accepts.
func (c *Check) mapping(field string, ids []*runtimeapi.IDMapping) {
	for i, m := range ids {
		f := fmt.Sprintf("%s[%d]", field, i)
		if m.GetLength() == 0 {
			c.Bad(f+".length", "is 0")
		}
		for name, first := range map[string]uint32{"container_id": m.GetContainerId(), "host_id": m.GetHostId()} {
			if uint64(first)+uint64(m.GetLength()) > math.MaxUint32 { // the last one means "unchanged"
				c.Bad(f+".length", "%d from %s %d on: the last possible ID is %d", m.GetLength(), name, first, uint32(math.MaxUint32)-1)
			}
		}
	}
}

// hasUsers reports whether a user namespace is asked for.
func hasUsers(ns *runtimeapi.NamespaceOption) bool {
	u := ns.GetUsernsOptions()
	return u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD
}

// podUsers refuses what a pod with a user namespace cannot have. CRI has no
// words for it: the kernel gives no new proc or mqueue to who does not own the
// PID or IPC namespace.
func (c *Check) podUsers(field string, ns *runtimeapi.NamespaceOption) {
	if !hasUsers(ns) {
		return
	}
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pid": ns.GetPid(), "ipc": ns.GetIpc()} {
		if mode == runtimeapi.NamespaceMode_NODE {
			c.Bad(field+"."+name, "is NODE, which a user namespace excludes")
		}
	}
}

// sameUsers requires that a container leaves the user namespace to its pod, or
// asks for the same.
func (c *Check) sameUsers(field string, ns, pod *runtimeapi.NamespaceOption) {
	u, of := ns.GetUsernsOptions(), pod.GetUsernsOptions()
	if u == nil || !hasUsers(ns) && !hasUsers(pod) {
		return
	}
	if !hasUsers(ns) || !hasUsers(pod) || !slices.EqualFunc(u.GetUids(), of.GetUids(), sameIDs) || !slices.EqualFunc(u.GetGids(), of.GetGids(), sameIDs) {
		c.Bad(field, "is not the pod's user namespace")
	}
}

func sameIDs(a, b *runtimeapi.IDMapping) bool {
	return a.GetContainerId() == b.GetContainerId() && a.GetHostId() == b.GetHostId() && a.GetLength() == b.GetLength()
}

// Users refuses a pod's user namespace where its handler cannot have one.
func (c *Check) Users(config *runtimeapi.PodSandboxConfig, handler func() Handler) {
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	const field = "config.linux.security_context.namespace_options."
	if c.Err != nil || !hasUsers(ns) {
		return
	}
	switch h := handler(); {
	case !h.UserNamespaces:
		c.lacking(field+"userns_options", "handler %q cannot have user namespaces on this host", h.Name)
	case ns.GetNetwork() == runtimeapi.NamespaceMode_NODE && !h.HostNetworkUsers:
		c.lacking(field+"network", "NODE: handler %q cannot have user namespaces on this host's network", h.Name)
	}
}

// id requires a user or group ID that the kernel accepts.
func (c *Check) id(field string, v *runtimeapi.Int64Value) {
	if v != nil {
		c.idValue(field, v.GetValue())
	}
}

func (c *Check) idValue(field string, v int64) {
	if v < 0 || v >= math.MaxUint32 { // the last one means "unchanged"
		c.Bad(field, "%d is not from 0 to %d", v, uint32(math.MaxUint32)-1)
	}
}

func (c *Check) groups(field string, groups []int64, policy runtimeapi.SupplementalGroupsPolicy) {
	for i, g := range groups {
		c.idValue(fmt.Sprintf("%s.supplemental_groups[%d]", field, i), g)
	}
	c.Enum(field+".supplemental_groups_policy", int32(policy), runtimeapi.SupplementalGroupsPolicy_name)
}

// seccomp checks the profile in force: the new field, else the old one.
func (c *Check) seccomp(field string, p *runtimeapi.SecurityProfile, old string) {
	if p == nil {
		field += ".seccomp_profile_path"
		path, local := strings.CutPrefix(old, "localhost/")
		switch {
		case old == "", old == "unconfined", old == "runtime/default", old == "docker/default":
		case !local:
			c.Bad(field, "%q is not runtime/default, unconfined or localhost/…", old)
		default:
			c.Absolute(field, path)
		}
		return
	}
	field += ".seccomp"
	if c.profile(field, p) {
		c.Absolute(field+".localhost_ref", p.GetLocalhostRef())
	}
}

// apparmor checks the profile in force: the new field, else the old one.
// enabled says whether the kernel has AppArmor.
func (c *Check) apparmor(field string, p *runtimeapi.SecurityProfile, old string, enabled bool) {
	var profile string
	if p == nil {
		field += ".apparmor_profile"
		name, local := strings.CutPrefix(old, "localhost/")
		switch {
		case old == "", old == "unconfined", old == "runtime/default":
			return
		case !local:
			c.Bad(field, "%q is not runtime/default, unconfined or localhost/…", old)
		}
		profile = name
	} else {
		field += ".apparmor"
		if !c.profile(field, p) {
			return
		}
		field += ".localhost_ref"
		profile = strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	}
	c.Set(field, profile)
	c.Text(field, profile)
	if !enabled {
		c.lacking(field, "profile %q cannot be applied: AppArmor is not enabled on this host", profile)
	}
}

// profile checks a profile's type and reports whether it is a local one.
func (c *Check) profile(field string, p *runtimeapi.SecurityProfile) bool {
	c.Enum(field+".profile_type", int32(p.GetProfileType()), runtimeapi.SecurityProfile_ProfileType_name)
	local := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	if !local && p.GetLocalhostRef() != "" {
		c.Bad(field+".localhost_ref", "is set, but profile_type is not Localhost")
	}
	return local
}

// level is a sensitivity, or a range of two, and categories.
// SELinux: mls_range in libsepol's policydb.
var level = regexp.MustCompile(`^s\d+(:c\d+([.,]c\d+)*)?(-s\d+(:c\d+([.,]c\d+)*)?)?$`)

// selinux checks options also where the host has no SELinux: a manifest that
// only some nodes accept helps nobody.
func (c *Check) selinux(field string, o *runtimeapi.SELinuxOption) {
	for name, part := range map[string]string{"user": o.GetUser(), "role": o.GetRole(), "type": o.GetType()} {
		if strings.ContainsFunc(part, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(": \",", r) }) {
			c.Bad(field+".selinux_options."+name, "%q is not a part of an SELinux label", part)
		}
	}
	if l := o.GetLevel(); l != "" && !level.MatchString(l) {
		c.Bad(field+".selinux_options.level", "%q is not a level such as s0:c4,c5", l)
	}
}

// capability names, in the kernel's order. kernel: include/uapi/linux/capability.h.
var capabilities = func() map[string]bool {
	names := strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
		SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
		AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON
		BPF CHECKPOINT_RESTORE`)
	if len(names) != unix.CAP_LAST_CAP+1 {
		panic("validate: the list of capabilities is not the kernel's")
	}
	set := map[string]bool{"ALL": true}
	for _, n := range names {
		set[n] = true
	}
	return set
}()

func (c *Check) capabilities(field string, caps *runtimeapi.Capability) {
	for _, list := range []struct {
		name string
		caps []string
	}{
		{"add_capabilities", caps.GetAddCapabilities()},
		{"drop_capabilities", caps.GetDropCapabilities()},
		{"add_ambient_capabilities", caps.GetAddAmbientCapabilities()},
	} {
		for i, name := range list.caps {
			if !capabilities[strings.TrimPrefix(strings.ToUpper(name), "CAP_")] {
				c.Bad(fmt.Sprintf("%s.%s[%d]", field, list.name, i), "%q is not a capability", name)
			}
		}
	}
}

func (c *Check) paths(field string, paths []string) {
	for i, p := range paths {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.Absolute(f, p)
		if p != "" && filepath.Clean(p) == "/" {
			c.Bad(f, "is the root itself")
		}
	}
}
