package doctor

import (
	"fmt"
	"slices"
	"strings"
)

var cgroupChecks = []Check{
	{Name: "cgroups", What: "how control groups are mounted, and that cpu, memory, pids and cpuset can be used", run: checkCgroups, Faults: []Fault{
		{"cgroups-not-mounted", Error, "no control group hierarchy is mounted"},
		{"cgroups-read-only", Error, "control groups are mounted read-only, as in a container that is not privileged"},
		{"cgroup-controller-disabled", Error, "the kernel was booted without a controller, as with cgroup_disable=memory"},
		{"cgroup-controller-not-mounted", Error, "on cgroup v1, a controller belongs to no mounted hierarchy"},
		{"cgroup-controller-not-delegated", Error, "on cgroup v2, in a container or a user's slice, a controller was not passed down"},
	}},
	{Name: "crun-cgroups", What: "that crun accepts how control groups are mounted", run: checkCrunCgroups, Faults: []Fault{
		{"crun-hybrid-cgroups", Error, "v1 and v2 are mounted and a controller is in the v2 tree, where crun finds no memory controller and refuses to run"},
	}},
	{Name: "cgroup-driver", What: "that kubelet and runtime have the same cgroup driver, and systemd is asked where it runs", run: checkCgroupDriver, Faults: []Fault{
		{"cgroup-driver-mismatch", Error, "the kubelet's cgroupDriver is not the runtime's; a warning for kubelets of 1.31 and newer, which take the runtime's"},
		{"cgroup-driver-not-systemd", Warning, "systemd runs, and the runtime writes to the cgroup v2 tree beside it"},
	}},
	{Name: "cgroup-version", What: "that the kubelet starts on this version of cgroups", run: checkCgroupVersion, Faults: []Fault{
		{"kubelet-refuses-cgroup-v1", Error, "a kubelet of 1.35 or newer does not start on cgroup v1 unless failCgroupV1 is false"},
	}},
}

// cgroups is how control groups are mounted.
type cgroups struct {
	layout  string            // v1, v2, hybrid; empty: not at all
	unified string            // where v2 is
	v1      map[string]string // mount points by controller
}

func (f *facts) readCgroups() cgroups {
	c := cgroups{v1: map[string]string{}}
	for _, m := range f.mounts() {
		switch m.fsType {
		case "cgroup2":
			if c.unified == "" {
				c.unified = m.point
			}
		case "cgroup":
			for _, name := range m.super {
				if _, known := c.v1[name]; !known {
					c.v1[name] = m.point
				}
			}
		}
	}
	controllers := slices.ContainsFunc(required, func(name string) bool { return c.v1[name] != "" })
	switch {
	case controllers && c.unified != "":
		c.layout = "hybrid"
	case controllers:
		c.layout = "v1"
	case c.unified != "":
		c.layout = "v2"
	}
	return c
}

// required are the controllers without which a kubelet or davit cannot do.
var required = []string{"cpu", "memory", "pids", "cpuset"}

func checkCgroups(l *look) {
	c := l.cgroups()
	if c.layout == "" {
		if len(l.mounts()) == 0 {
			l.skip("/proc/self/mountinfo cannot be read")
			return
		}
		l.fault("cgroups-not-mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup", "no cgroup file system with controllers is mounted")
		return
	}
	for _, m := range l.mounts() {
		if (m.fsType == "cgroup" || m.fsType == "cgroup2") && slices.Contains(m.options, "ro") {
			l.fault("cgroups-read-only", "mount -o remount,rw "+m.point+"   # in a container: docker run --privileged --cgroupns=private", "%s is mounted read-only", m.point)
			break
		}
	}
	unified := strings.Fields(l.text(c.unified + "/cgroup.controllers"))
	// The initial cgroup has no type. kernel: cgroup-v2.rst, cgroup.type.
	nested := c.layout == "v2" && l.exists(c.unified+"/cgroup.type")
	for _, name := range required {
		if c.v1[name] != "" || c.unified != "" && slices.Contains(unified, name) {
			continue
		}
		switch {
		case nested:
			l.fault("cgroup-controller-not-delegated", notDelegatedFix, "controller %s is not passed down to %s", name, c.unified)
		case c.layout == "v2" || !l.enabled(name):
			l.fault("cgroup-controller-disabled", disabledFix(name), "controller %s is off in this kernel", name)
		default:
			point := "/sys/fs/cgroup/" + name
			l.fault("cgroup-controller-not-mounted", fmt.Sprintf("mkdir -p %s && mount -t cgroup -o %s cgroup %s", point, name, point),
				"controller %s is in no mounted hierarchy", name)
		}
	}
	l.okay("%s, with %s", c.layout, strings.Join(required, ", "))
}

const notDelegatedFix = `# outside, where systemd made the cgroup: Delegate=yes for its unit; with docker: --privileged --cgroupns=private; or, for the machine's users:
mkdir -p /etc/systemd/system/user@.service.d
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >/etc/systemd/system/user@.service.d/delegate.conf
systemctl daemon-reload`

func disabledFix(name string) string {
	return "# take cgroup_disable=" + name + ` out of the kernel's command line; on a Raspberry Pi:
sed -i '1s/$/ cgroup_enable=` + name + ` cgroup_memory=1/' /boot/firmware/cmdline.txt
reboot`
}

// enabled reports whether the kernel has a controller of v1.
// kernel: cgroups(7), /proc/cgroups.
func (l *look) enabled(name string) bool {
	for line := range strings.Lines(l.text("/proc/cgroups")) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == name {
			return f[3] == "1"
		}
	}
	return false
}

func checkCrunCgroups(l *look) {
	c := l.cgroups()
	d := l.davit()
	_, runs := l.find("crun", l.Path)
	switch {
	case !d.here():
		l.skip("davit is not installed")
		return
	case !runs:
		l.okay("crun is not installed")
		return
	case c.layout != "hybrid":
		l.okay("crun runs on cgroup %s", c.layout)
		return
	}
	controllers := strings.Fields(l.text(c.unified + "/cgroup.controllers"))
	if len(controllers) == 0 {
		l.okay("no controller is in the v2 tree")
		return
	}
	var fix strings.Builder
	for _, name := range controllers {
		fmt.Fprintf(&fix, "mkdir -p /sys/fs/cgroup/%s && mount -t cgroup -o %s cgroup /sys/fs/cgroup/%s\n", name, name, name)
	}
	tell := l.fault
	if d.DefaultRuntime != "" && d.DefaultRuntime != "crun" {
		tell = l.warn
	}
	tell("crun-hybrid-cgroups", fix.String(), "the v2 tree %s has %s, beside v1: crun will not run", c.unified, strings.Join(controllers, ", "))
}

func checkCgroupDriver(l *look) {
	runtime := l.answer().CgroupDriver
	switch a := l.answer(); {
	case a.Err != nil || len(a.APIs) == 0:
		l.skip("%s", a.silence())
		return
	case runtime == "":
		l.skip("the runtime does not tell its cgroup driver")
		return
	}
	systemd := l.exists("/run/systemd/system")
	if systemd && runtime == "cgroupfs" && l.cgroups().layout == "v2" {
		l.fault("cgroup-driver-not-systemd", useSystemd(l.answer().Name), "systemd runs, but %s makes cgroups itself: two write to one tree", l.answer().Name)
	}
	k := l.kubelet()
	if k == nil {
		l.okay("%s; no kubelet is set up", runtime)
		return
	}
	set, explicit := k.Value("cgroupDriver")
	// KEP-4033: asked of the runtime since 1.31, unless the gate is off (until 1.34).
	gate, gated := k.Gate("KubeletCgroupDriverFromCRI")
	v := l.kubeletVersion()
	asks := v.atLeast(1, 31) && (gate || !gated)
	driver := set.Text
	if !explicit {
		driver, set.From = "cgroupfs", "its default"
	}
	fix := l.setKubelet("cgroupDriver", runtime) + "   # drain the node first: its pods restart"
	switch {
	case driver == runtime || asks && !explicit:
		l.okay("%s", runtime)
	case asks:
		l.warn("cgroup-driver-mismatch", fix, "the kubelet is set to %s (%s), the runtime uses %s; this kubelet takes the runtime's, an older one would not", driver, set.From, runtime)
	default:
		l.fault("cgroup-driver-mismatch", fix, "the kubelet uses %s (%s), the runtime %s", driver, set.From, runtime)
	}
}

// useSystemd is how a runtime is told to ask systemd.
func useSystemd(runtime string) string {
	switch runtime {
	case "containerd":
		return "sed -i 's/SystemdCgroup = false/SystemdCgroup = true/' /etc/containerd/config.toml && systemctl restart containerd"
	case "cri-o":
		return "printf '[crio.runtime]\\ncgroup_manager = \"systemd\"\\n' >/etc/crio/crio.conf.d/10-cgroups.conf && systemctl restart crio"
	}
	return "sed -i '/^cgroup_driver/d' /etc/davit/config.toml && systemctl restart davitd"
}

func checkCgroupVersion(l *look) {
	c := l.cgroups()
	if c.layout == "v2" || c.layout == "" {
		l.okay("cgroup v2")
		return
	}
	k := l.kubelet()
	if k == nil {
		l.skip("no kubelet is set up")
		return
	}
	if l.kubeletVersion().atLeast(1, 35) && k.Switch("failCgroupV1", true) {
		l.fault("kubelet-refuses-cgroup-v1", l.setKubelet("failCgroupV1", "false")+"   # or boot with systemd.unified_cgroup_hierarchy=1",
			"cgroups are %s, and this kubelet's failCgroupV1 is not false", c.layout)
		return
	}
	l.okay("cgroup %s, which this kubelet accepts", c.layout)
}
