package doctor

import (
	"cmp"
	"strings"
)

var kernelChecks = []Check{
	{Name: "kernel", What: "the kernel's version, and pidfds", run: checkKernel, Faults: []Fault{
		{"kernel-too-old", Error, "Linux is older than 5.4"},
		{"pidfd-missing", Error, "pidfd_open does not work, though the kernel is new enough: a seccomp filter refuses it"},
	}},
	{Name: "overlayfs", What: "overlayfs, on which containers' root file systems stand", run: checkOverlay, Faults: []Fault{
		{"overlayfs-missing", Error, "the kernel has no overlayfs, or its module is not installed"},
	}},
	{Name: "network-features", What: "veth, bridge and nftables, for the built-in network and most CNI plugins", run: checkNetworkFeatures, Faults: []Fault{
		{"veth-missing", Error, "the kernel has no veth links"},
		{"bridge-missing", Error, "the kernel has no bridge, which the built-in network needs"},
		{"nftables-missing", Error, "the kernel has no nftables, which the built-in network needs"},
	}},
	{Name: "namespaces", What: "the kinds of namespaces that pods are made of", run: checkNamespaces, Faults: []Fault{
		{"namespace-missing", Error, "the kernel lacks a kind of namespace"},
		{"namespaces-limited", Warning, "fewer than 256 namespaces of a kind may be made: each pod takes one or more"},
		{"user-namespaces-off", Warning, "no user namespace can be made: pods with hostUsers: false are refused"},
	}},
	{Name: "seccomp", What: "seccomp filters", run: checkSeccomp, Faults: []Fault{
		{"seccomp-missing", Error, "the kernel has no seccomp filters: containers with a profile are refused"},
	}},
	{Name: "security-modules", What: "AppArmor and SELinux, and what they need", run: checkSecurityModules, Faults: []Fault{
		{"apparmor-parser-missing", Warning, "AppArmor is on but apparmor_parser is not installed: containers run without a default profile"},
		{"selinux-policy-missing", Warning, "SELinux enforces but has no types for containers"},
	}},
}

const (
	oldestMajor, oldestMinor = 5, 4
	newKernel                = "# boot a newer kernel, Linux 5.4 at least; with Debian or Ubuntu:\napt-get update && apt-get install linux-image-generic || apt-get install linux-image-amd64\nreboot"
)

func checkKernel(l *look) {
	release := l.text("/proc/sys/kernel/osrelease")
	v := parseVersion(release)
	switch {
	case release == "":
		l.skip("/proc/sys/kernel/osrelease cannot be read")
		return
	case !v.atLeast(oldestMajor, oldestMinor):
		l.fault("kernel-too-old", newKernel, "Linux %s: davit needs %d.%d", release, oldestMajor, oldestMinor)
		return
	}
	if err := l.Try("pidfd"); err != nil {
		l.fault("pidfd-missing", "# where this runs in a container or a sandbox, allow pidfd_open and pidfd_send_signal in its seccomp profile",
			"Linux %s, but pidfd_open: %v", release, err)
		return
	}
	l.okay("Linux %s", release)
}

// has reports whether the kernel has a feature, built in or as a module that
// can be loaded. known is false where nothing tells.
func (l *look) has(module, option string) (there, known bool) {
	for line := range strings.Lines(l.text("/proc/modules")) {
		if name, _, _ := strings.Cut(line, " "); name == module {
			return true, true
		}
	}
	if l.exists("/sys/module/" + module) {
		return true, true
	}
	folder := l.modules()
	loads := l.text("/proc/sys/kernel/modules_disabled") != "1"
	if config := l.kernelConfig(); config != nil {
		switch config[option] {
		case "y":
			return true, true
		case "m":
			return folder.loadable[module] && loads, true
		}
		return false, true
	}
	if !folder.known {
		return false, false
	}
	return folder.builtin[module] || folder.loadable[module] && loads, true
}

// modulesFix is how a module that the kernel lacks may be had.
func modulesFix(module string) string {
	return "modprobe " + module + " || apt-get install linux-modules-extra-$(uname -r)   # Ubuntu; elsewhere: a kernel that has it"
}

func checkOverlay(l *look) {
	for line := range strings.Lines(l.text("/proc/filesystems")) {
		if strings.TrimSpace(line) == "nodev\toverlay" || strings.TrimSpace(line) == "overlay" {
			l.okay("overlayfs")
			return
		}
	}
	switch there, known := l.has("overlay", "OVERLAY_FS"); {
	case there:
		l.okay("overlayfs, as a module that is not loaded yet")
	case known:
		l.fault("overlayfs-missing", modulesFix("overlay"), "the kernel has no overlayfs, and no module of that name can be loaded")
	default:
		l.skip("neither the kernel's configuration nor its modules are on this node")
	}
}

func checkNetworkFeatures(l *look) {
	var found, unknown []string
	builtIn := l.builtIn()
	for _, f := range []struct{ module, option, fault, what string }{
		{"veth", "VETH", "veth-missing", "veth links"},
		{"bridge", "BRIDGE", "bridge-missing", "a bridge"},
		{"nf_tables", "NF_TABLES", "nftables-missing", "nftables"},
	} {
		there, known := l.has(f.module, f.option)
		if f.module == "nf_tables" && there && l.Try("nftables") != nil {
			there = false
		}
		switch {
		case there:
			found = append(found, f.module)
		case !known:
			unknown = append(unknown, f.module)
		case builtIn:
			l.fault(f.fault, modulesFix(f.module), "the kernel has no %s: the built-in network cannot work", f.what)
		default:
			l.warn(f.fault, modulesFix(f.module), "the kernel has no %s: most CNI plugins cannot work", f.what)
		}
	}
	if len(unknown) > 0 && len(found) == 0 {
		l.skip("neither the kernel's configuration nor its modules are on this node")
		return
	}
	l.okay("%s", strings.Join(found, ", "))
}

func checkNamespaces(l *look) {
	if !l.exists("/proc/self/ns") {
		l.skip("/proc/self/ns is not there")
		return
	}
	for _, kind := range []struct{ name, option string }{
		{"net", "NET_NS"}, {"ipc", "IPC_NS"}, {"uts", "UTS_NS"}, {"pid", "PID_NS"}, {"mnt", "NAMESPACES"}, {"cgroup", "CGROUPS"},
	} {
		if !l.exists("/proc/self/ns/" + kind.name) {
			l.fault("namespace-missing", "# boot a kernel built with CONFIG_"+kind.option+"=y", "no %s namespaces: the kernel was built without CONFIG_%s", kind.name, kind.option)
		}
	}
	const pods = 256
	for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt", "cgroup"} {
		name := "user.max_" + kind + "_namespaces"
		if most, known := l.sysctl(name); known && most < pods {
			l.fault("namespaces-limited", sysctlFix(name, "15000"), "%s is %d; %d is the least to be expected", name, most, pods)
		}
	}
	most, known := l.number("/proc/sys/user/max_user_namespaces")
	switch {
	case !l.exists("/proc/self/ns/user"):
		l.fault("user-namespaces-off", "# boot a kernel built with CONFIG_USER_NS=y", "the kernel was built without user namespaces")
	case known && most == 0:
		l.fault("user-namespaces-off", sysctlFix("user.max_user_namespaces", "15000"), "user.max_user_namespaces is 0")
	default:
		l.okay("%s", userNamespaces(parseVersion(l.text("/proc/sys/kernel/osrelease"))))
	}
}

// userNamespaces says what pods with user namespaces can do on this kernel:
// volumes are mounted with mapped IDs, which tmpfs can do since 6.3.
// Kubernetes: docs, "User Namespaces", before you begin.
func userNamespaces(v version) string {
	switch {
	case v.atLeast(6, 3):
		return "all kinds; volumes with mapped IDs"
	case v.atLeast(5, 12):
		return "all kinds; mapped IDs on some file systems only (Linux 6.3 has them on tmpfs)"
	}
	return "all kinds; no mapped IDs (Linux 6.3 has them), so no pods with user namespaces"
}

func checkSeccomp(l *look) {
	actions := l.text("/proc/sys/kernel/seccomp/actions_avail")
	if actions == "" && !strings.Contains(l.text("/proc/self/status"), "Seccomp:") {
		l.fault("seccomp-missing", "# boot a kernel built with CONFIG_SECCOMP_FILTER=y", "the kernel was built without seccomp filters")
		return
	}
	l.okay("filters can %s", strings.Join(strings.Fields(cmp.Or(actions, "be set")), ", "))
}

func checkSecurityModules(l *look) {
	var on []string
	if l.text("/sys/module/apparmor/parameters/enabled") == "Y" {
		on = append(on, "AppArmor")
		if path, _ := l.find("apparmor_parser", l.Path); path == "" {
			l.fault("apparmor-parser-missing", "apt-get install apparmor   # zypper install apparmor-parser",
				"AppArmor is on, but there is no apparmor_parser to load a profile with")
		}
	}
	switch l.text("/sys/fs/selinux/enforce") {
	case "1":
		on = append(on, "SELinux enforces")
		if !l.exists("/etc/selinux/targeted/contexts/lxc_contexts") && len(l.glob("/etc/selinux/*/contexts/lxc_contexts")) == 0 {
			l.fault("selinux-policy-missing", "dnf install container-selinux", "SELinux enforces, but no policy for containers is installed")
		}
	case "0":
		on = append(on, "SELinux only logs")
	}
	l.okay("%s", cmp.Or(strings.Join(on, ", "), "neither AppArmor nor SELinux is on"))
}
