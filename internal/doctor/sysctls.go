package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

var sysctlChecks = []Check{
	{Name: "forwarding", What: "that the node forwards packets", run: checkForwarding, Faults: []Fault{
		{"ip-forward-off", Error, "net.ipv4.ip_forward is 0, and CNI plugins do not turn it on"},
		{"ipv6-forward-off", Error, "net.ipv6.conf.all.forwarding is 0, and the CNI configuration gives pods IPv6 addresses"},
	}},
	{Name: "firewall", What: "that the node's firewall lets packets of the built-in network through", run: checkFirewall, Faults: []Fault{
		{"forward-dropped", Warning, "a chain drops what it does not know, as Docker's and ufw's, and has no rule for the built-in bridge: pods reach nobody outside"},
	}},
	{Name: "bridge-netfilter", What: "that packets between pods on a bridge meet the rules of Services", run: checkBridgeNetfilter, Faults: []Fault{
		{"br-netfilter-missing", Warning, "pods are on a bridge and br_netfilter is not loaded: some Services cannot be reached from the node that serves them"},
		{"bridge-nf-call-off", Warning, "net.bridge.bridge-nf-call-iptables is 0"},
	}},
	{Name: "reverse-path", What: "reverse path filtering, where the CNI plugin needs it loose", run: checkReversePath, Faults: []Fault{
		{"rp-filter-strict", Warning, "net.ipv4.conf.all.rp_filter is 1, and the CNI plugin's packets come another way than they go"},
	}},
	{Name: "kernel-defaults", What: "the sysctls that a kubelet with protectKernelDefaults insists on", run: checkKernelDefaults, Faults: []Fault{
		{"kernel-defaults-differ", Error, "the kubelet has protectKernelDefaults and a sysctl is not what it wants: it does not start"},
	}},
	{Name: "kernel-limits", What: "limits of the kernel that nodes run into", run: checkKernelLimits, Faults: []Fault{
		{"inotify-instances-used-up", Warning, "root uses most of fs.inotify.max_user_instances: kubelet and runtime soon cannot watch files"},
		{"inotify-watches-low", Warning, "fs.inotify.max_user_watches is below 8192"},
		{"pid-max-low", Warning, "kernel.pid_max is below 32768"},
		{"max-map-count-low", Warning, "vm.max_map_count is below the kernel's own default, 65530"},
		{"conntrack-full", Warning, "more than nine tenths of nf_conntrack_max connections are tracked: new ones are soon dropped"},
		{"file-table-full", Warning, "more than nine tenths of fs.file-max files are open"},
	}},
	{Name: "swap", What: "swap, against the kubelet's failSwapOn", run: checkSwap, Faults: []Fault{
		{"swap-on", Error, "swap is on and the kubelet's failSwapOn is not false: it does not start"},
	}},
}

// sysctlFix sets a sysctl now and for good.
func sysctlFix(name, value string) string {
	return fmt.Sprintf("sysctl -w %s=%s && echo '%s = %s' >>/etc/sysctl.d/90-kubernetes.conf", name, value, name, value)
}

// sysctl returns the value of a sysctl by its dotted name.
func (l *look) sysctl(name string) (int64, bool) {
	return l.number("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
}

func checkForwarding(l *look) {
	on, known := l.sysctl("net.ipv4.ip_forward")
	switch {
	case !known:
		l.skip("/proc/sys/net/ipv4/ip_forward cannot be read")
		return
	case on != 0:
		l.okay("on")
	case l.builtIn():
		l.okay("off; davit turns it on with the first pod")
	default:
		l.fault("ip-forward-off", sysctlFix("net.ipv4.ip_forward", "1"), "net.ipv4.ip_forward is 0, and CNI plugins leave it so")
	}
	c := l.cni().chosen()
	if on, known := l.sysctl("net.ipv6.conf.all.forwarding"); known && on == 0 && c != nil && slices.ContainsFunc(c.subnets, isIPv6) {
		l.fault("ipv6-forward-off", sysctlFix("net.ipv6.conf.all.forwarding", "1")+"   # where routers tell the node its routes: and accept_ra = 2 for that link",
			"net.ipv6.conf.all.forwarding is 0, and %s gives pods IPv6 addresses", c.path)
	}
}

func isIPv6(subnet string) bool { return strings.Contains(subnet, ":") }

func checkFirewall(l *look) {
	if !l.builtIn() {
		l.okay("the network is not davit's own, and sees to that itself")
		return
	}
	link := l.davit().Bridge
	chains, err := l.Dropping(link)
	if err != nil {
		l.unseen("the rules of nftables", err)
		l.skip("the rules of nftables cannot be read: %v", plain(err))
		return
	}
	for _, chain := range chains {
		l.fault("forward-dropped", fmt.Sprintf("nft insert rule %[1]s iifname %[2]s accept && nft insert rule %[1]s oifname %[2]s accept\n"+
			"# for good: ufw route allow in on %[2]s && ufw route allow out on %[2]s; with Docker, both rules in the chain DOCKER-USER at each boot", chain, link),
			"the chain %s drops what no rule accepts, and no rule there names %s", chain, link)
	}
	l.okay("nothing drops what is forwarded for %s", link)
}

// onBridge are CNI plugins that connect pods by a bridge.
var onBridge = []string{"bridge", "flannel", "weave-net"}

func checkBridgeNetfilter(l *look) {
	chosen := l.cni().chosen()
	switch {
	case l.kubelet() == nil:
		l.skip("no kubelet is set up, so there are no Services")
		return
	case chosen == nil && !l.builtIn():
		l.skip("no network is configured")
		return
	case chosen != nil && !slices.ContainsFunc(onBridge, chosen.has):
		l.okay("not needed: pods are on no bridge")
		return
	}
	const load = "modprobe br_netfilter && echo br_netfilter >/etc/modules-load.d/kubernetes.conf\n"
	on, known := l.sysctl("net.bridge.bridge-nf-call-iptables")
	switch {
	case !known:
		l.fault("br-netfilter-missing", load+sysctlFix("net.bridge.bridge-nf-call-iptables", "1"), "br_netfilter is not loaded, and pods are on a bridge")
	case on == 0:
		l.fault("bridge-nf-call-off", sysctlFix("net.bridge.bridge-nf-call-iptables", "1"), "net.bridge.bridge-nf-call-iptables is 0")
	default:
		l.okay("on")
	}
}

// needLoose are CNI plugins whose packets come in by other links than they go
// out. Cilium: docs, "Troubleshooting", rp_filter; amazon-vpc-cni-k8s: README.
var needLoose = []string{"cilium-cni", "aws-cni"}

func checkReversePath(l *look) {
	strict, _ := l.sysctl("net.ipv4.conf.all.rp_filter")
	chosen := l.cni().chosen()
	if strict == 1 && chosen != nil && slices.ContainsFunc(needLoose, chosen.has) {
		l.fault("rp-filter-strict", sysctlFix("net.ipv4.conf.all.rp_filter", "0"), "net.ipv4.conf.all.rp_filter is 1, with the plugins of %s", chosen.path)
		return
	}
	l.okay("%d, which the network accepts", strict)
}

// kubelet: container_manager_linux.go, setupKernelTunables.
var kernelDefaults = []struct {
	name string
	want int64
}{
	{"vm.overcommit_memory", 1}, {"vm.panic_on_oom", 0}, {"kernel.panic", 10},
	{"kernel.panic_on_oops", 1}, {"kernel.keys.root_maxkeys", 1000000}, {"kernel.keys.root_maxbytes", 25000000},
}

func checkKernelDefaults(l *look) {
	k := l.kubelet()
	if k == nil || !k.Switch("protectKernelDefaults", false) {
		l.okay("the kubelet sets them itself")
		return
	}
	var wrong, fix []string
	for _, d := range kernelDefaults {
		if v, known := l.sysctl(d.name); known && v != d.want {
			wrong = append(wrong, fmt.Sprintf("%s is %d, not %d", d.name, v, d.want))
			fix = append(fix, sysctlFix(d.name, fmt.Sprint(d.want)))
		}
	}
	if wrong != nil {
		l.fault("kernel-defaults-differ", strings.Join(fix, "\n"), "the kubelet has protectKernelDefaults, but %s", strings.Join(wrong, ", "))
		return
	}
	l.okay("as protectKernelDefaults wants them")
}

func checkKernelLimits(l *look) {
	checkInotify(l)
	for _, least := range []struct {
		fault, name string
		least       int64
		better      string
	}{
		{"inotify-watches-low", "fs.inotify.max_user_watches", 8192, "524288"},
		{"pid-max-low", "kernel.pid_max", 32768, "4194304"},
		{"max-map-count-low", "vm.max_map_count", 65530, "262144"},
	} {
		if v, known := l.sysctl(least.name); known && v < least.least {
			l.fault(least.fault, sysctlFix(least.name, least.better), "%s is %d; %d is the least to be expected", least.name, v, least.least)
		}
	}
	most, known := l.sysctl("net.netfilter.nf_conntrack_max")
	if n, _ := l.sysctl("net.netfilter.nf_conntrack_count"); known && n*10 > most*9 {
		l.fault("conntrack-full", sysctlFix("net.netfilter.nf_conntrack_max", fmt.Sprint(2*most)), "%d of %d connections are tracked", n, most)
	}
	var open, free, limit int64
	// kernel: sysctl/fs.rst, file-nr: in use, free, most.
	if n, _ := fmt.Sscan(l.text("/proc/sys/fs/file-nr"), &open, &free, &limit); n == 3 && open > limit/10*9 {
		l.fault("file-table-full", sysctlFix("fs.file-max", fmt.Sprint(2*limit)), "%d of %d files are open", open, limit)
	}
	l.okay("inotify, PIDs, maps, connections and files have room")
}

// checkInotify counts root's inotify instances. The limit is for each user.
func checkInotify(l *look) {
	most, known := l.sysctl("fs.inotify.max_user_instances")
	if !known {
		return
	}
	if l.Uid != 0 {
		l.unseen("root's inotify instances", os.ErrPermission)
		return
	}
	var used int64
	for _, dir := range l.glob("/proc/[0-9]*/fd") {
		if !ofRoot(l.text(filepath.Join(dir, "../status"))) {
			continue
		}
		entries, _ := os.ReadDir(l.at(dir))
		for _, e := range entries {
			if target, _ := os.Readlink(filepath.Join(l.at(dir), e.Name())); target == "anon_inode:inotify" {
				used++
			}
		}
	}
	if used*4 > most*3 {
		l.fault("inotify-instances-used-up", sysctlFix("fs.inotify.max_user_instances", "8192"), "root uses %d of %d inotify instances", used, most)
	}
}

func ofRoot(status string) bool { return strings.Contains(status, "\nUid:\t0\t") }

func checkSwap(l *look) {
	lines := strings.Split(l.text("/proc/swaps"), "\n")[1:]
	k := l.kubelet()
	switch {
	case len(lines) == 0:
		l.okay("off")
	case k == nil:
		l.okay("on, and no kubelet is set up that would refuse it")
	case k.Switch("failSwapOn", true):
		l.fault("swap-on", "swapoff -a && sed -i '/\\sswap\\s/s/^[^#]/#&/' /etc/fstab\n# or keep it: "+l.setKubelet("failSwapOn", "false"),
			"swap is on (%s), and the kubelet's failSwapOn is not false", strings.Fields(lines[0])[0])
	default:
		l.okay("on, which the kubelet accepts")
	}
}
