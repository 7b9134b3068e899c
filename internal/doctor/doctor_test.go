package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write golden files and docs/doctor.md")

// examine checks a node with more time than a loaded machine needs.
func examine(t *testing.T, w *world) *Report {
	t.Helper()
	return run(t.Context(), w.node(t), time.Minute)
}

// On a node where nothing is amiss every check is ok, and none is left out.
func TestHealthyNode(t *testing.T) {
	r := examine(t, healthy())
	for _, c := range r.Checks {
		if c.Level != OK || c.Message == "" || len(c.Unseen) > 0 {
			t.Errorf("%s is %s: %q %v %v", c.Check, c.Level, c.Message, c.Findings, c.Unseen)
		}
	}
	if r.OK != len(Checks()) || r.Node != "node1" || r.Endpoint.Address != "unix:///run/davit/davit.sock" {
		t.Errorf("%d of %d ok on %s at %v", r.OK, len(Checks()), r.Node, r.Endpoint)
	}
}

// A seed is one fault put into a healthy node.
type seed struct {
	name  string
	want  string // "check: fault (level)"; that and nothing else
	plant func(*world)
}

const (
	config1 = "/var/lib/kubelet/config.yaml"
	cni1    = "/etc/cni/net.d/10-pods.conflist"
	mounts1 = "/proc/self/mountinfo"
)

func sysctlSeed(check, fault, level, name, value string) seed {
	return seed{name + " is " + value, fmt.Sprintf("%s: %s (%s)", check, fault, level), func(w *world) {
		w.files["/proc/sys/"+strings.ReplaceAll(name, ".", "/")] = value + "\n"
	}}
}

// builtIn is the node without a CNI configuration.
func builtIn(w *world) { delete(w.files, cni1) }

// v1 is the node with the older cgroups, of which v2 may be mounted beside.
func v1(w *world, more string, names ...string) {
	table := "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n4 1 0:7 / /run rw shared:5 - tmpfs tmpfs rw\n" + more
	for i, name := range names {
		table += fmt.Sprintf("%d 1 0:%d / /sys/fs/cgroup/%s rw - cgroup cgroup rw,%s\n", 10+i, 30+i, name, name)
	}
	w.files[mounts1], w.files["/proc/200/mountinfo"] = table, table
	w.files[config1] += "failCgroupV1: false\n"
}

const unified1 = "9 1 0:20 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"

var hostSeeds = []seed{
	{"the clock starts at the epoch", "clock: clock-wrong (error)", func(w *world) {
		w.now = time.Unix(1000, 0)
		w.certificate(time.Unix(0, 0), testNow)
	}},
	{"a clock without a battery", "clock: clock-behind (warning)", func(w *world) { w.now = testNow.AddDate(0, -1, 0) }},
	{"no time server", "clock: clock-not-synchronised (warning)", func(w *world) { w.sync = false }},
	{"an underscore in the hostname", "hostname: hostname-invalid (error)", func(w *world) { w.files["/proc/sys/kernel/hostname"] = "node_1" }},
	{"a node without a name", "hostname: hostname-localhost (warning)", func(w *world) { w.files["/proc/sys/kernel/hostname"] = "localhost.localdomain" }},
	{"an image whose machine-id was emptied", "machine-id: machine-id-missing (warning)", func(w *world) { w.files["/etc/machine-id"] = "" }},
	{"systemd-resolved's stub", "dns: resolv-conf-loopback (error)", func(w *world) { w.edit(config1, "resolvConf: /run/systemd/resolve/resolv.conf\n", "") }},
	{"resolvConf names nothing", "dns: resolv-conf-missing (error)", func(w *world) { delete(w.files, "/run/systemd/resolve/resolv.conf") }},
	{"four name servers", "dns: resolv-conf-too-long (warning)", func(w *world) {
		w.files["/run/systemd/resolve/resolv.conf"] = "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n"
	}},
}

var kernelSeeds = []seed{
	{"Linux 4.19", "kernel: kernel-too-old (error)", func(w *world) {
		w.files["/proc/sys/kernel/osrelease"] = "4.19.0-27-amd64"
		w.files["/boot/config-4.19.0-27-amd64"] = "CONFIG_VETH=y\nCONFIG_BRIDGE=y\nCONFIG_NF_TABLES=y\n"
	}},
	{"a sandbox refuses pidfd_open", "kernel: pidfd-missing (error)", func(w *world) { w.tries["pidfd"] = syscall.EPERM }},
	{"no overlayfs", "overlayfs: overlayfs-missing (error)", func(w *world) {
		w.files["/proc/filesystems"] = "\text4\n"
		w.edit("/proc/modules", "overlay ", "other ")
	}},
	{"no veth in this kernel", "network-features: veth-missing (error)", func(w *world) {
		builtIn(w)
		w.edit("/boot/config-6.12.30-amd64", "CONFIG_VETH=m\n", "")
	}},
	{"the module for veth is not installed", "network-features: veth-missing (warning)", func(w *world) { w.edit("/lib/modules/6.12.30-amd64/modules.dep", "veth", "vxlan") }},
	{"no bridge", "network-features: bridge-missing (error)", func(w *world) {
		builtIn(w)
		w.edit("/lib/modules/6.12.30-amd64/modules.dep", "bridge/bridge", "bridge/x")
	}},
	{"no netlink for nftables", "network-features: nftables-missing (error)", func(w *world) {
		builtIn(w)
		w.tries["nftables"] = syscall.EPROTONOSUPPORT
	}},
	{"no IPC namespaces", "namespaces: namespace-missing (error)", func(w *world) { delete(w.files, "/proc/self/ns/ipc") }},
	sysctlSeed("namespaces", "namespaces-limited", "warning", "user.max_net_namespaces", "10"),
	sysctlSeed("namespaces", "user-namespaces-off", "warning", "user.max_user_namespaces", "0"),
	{"no user namespaces", "namespaces: user-namespaces-off (warning)", func(w *world) { delete(w.files, "/proc/self/ns/user") }},
	{"no seccomp", "seccomp: seccomp-missing (error)", func(w *world) { delete(w.files, "/proc/sys/kernel/seccomp/actions_avail") }},
	{"AppArmor without its tools", "security-modules: apparmor-parser-missing (warning)", func(w *world) { delete(w.files, "/usr/sbin/apparmor_parser") }},
	{"SELinux without container-selinux", "security-modules: selinux-policy-missing (warning)", func(w *world) { w.files["/sys/fs/selinux/enforce"] = "1" }},
}

var cgroupSeeds = []seed{
	{"no cgroups", "cgroups: cgroups-not-mounted (error)", func(w *world) {
		table := "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n4 1 0:7 / /run rw shared:5 - tmpfs tmpfs rw\n"
		w.files[mounts1], w.files["/proc/200/mountinfo"] = table, table
	}},
	{"davit in a container that is not privileged", "cgroups: cgroups-read-only (error)", func(w *world) { w.edit(mounts1, "/sys/fs/cgroup rw", "/sys/fs/cgroup ro") }},
	{"cgroup_disable=memory", "cgroups: cgroup-controller-disabled (error)", func(w *world) { w.edit("/sys/fs/cgroup/cgroup.controllers", " memory", "") }},
	{"cpuset is not passed down", "cgroups: cgroup-controller-not-delegated (error)", func(w *world) {
		w.edit("/sys/fs/cgroup/cgroup.controllers", "cpuset ", "")
		w.files["/sys/fs/cgroup/cgroup.type"] = "domain\n"
	}},
	{"v1 without pids", "cgroups: cgroup-controller-not-mounted (error)", func(w *world) { v1(w, "", "cpu", "memory", "cpuset") }},
	{"v1, memory is off", "cgroups: cgroup-controller-disabled (error)", func(w *world) {
		v1(w, "", "cpu", "pids", "cpuset")
		w.edit("/proc/cgroups", "memory\t0\t9\t1", "memory\t0\t9\t0")
	}},
	{"hugetlb in the v2 tree beside v1", "crun-cgroups: crun-hybrid-cgroups (error)", func(w *world) {
		v1(w, unified1, "cpu", "memory", "cpuset", "pids")
		w.files["/sys/fs/cgroup/unified/cgroup.controllers"] = "hugetlb\n"
	}},
	{"the same where runc is the default", "crun-cgroups: crun-hybrid-cgroups (warning)", func(w *world) {
		v1(w, unified1, "cpu", "memory", "cpuset", "pids")
		w.files["/sys/fs/cgroup/unified/cgroup.controllers"] = "hugetlb\n"
		w.configure(config{"defaultRuntime": "runc"})
	}},
	{"an old kubelet with cgroupfs", "cgroup-driver: cgroup-driver-mismatch (error)", func(w *world) {
		w.edit(config1, "cgroupDriver: systemd", "cgroupDriver: cgroupfs")
		w.runs["/usr/bin/kubelet --version"] = output{"Kubernetes v1.28.3\n", nil}
	}},
	{"an old kubelet that was told nothing", "cgroup-driver: cgroup-driver-mismatch (error)", func(w *world) {
		w.edit(config1, "cgroupDriver: systemd\n", "")
		w.runs["/usr/bin/kubelet --version"] = output{"Kubernetes v1.28.3\n", nil}
	}},
	{"a new kubelet with cgroupfs", "cgroup-driver: cgroup-driver-mismatch (warning)", func(w *world) { w.edit(config1, "cgroupDriver: systemd", "cgroupDriver: cgroupfs") }},
	{"containerd beside systemd", "cgroup-driver: cgroup-driver-not-systemd (warning)", func(w *world) {
		w.answer.CgroupDriver = "cgroupfs"
		w.edit(config1, "cgroupDriver: systemd", "cgroupDriver: cgroupfs")
	}},
	{"kubelet 1.35 on v1", "cgroup-version: kubelet-refuses-cgroup-v1 (error)", func(w *world) {
		v1(w, "", "cpu", "memory", "cpuset", "pids")
		w.edit(config1, "failCgroupV1: false\n", "")
		w.runs["/usr/bin/kubelet --version"] = output{"Kubernetes v1.35.0\n", nil}
	}},
}

var sysctlSeeds = []seed{
	sysctlSeed("forwarding", "ip-forward-off", "error", "net.ipv4.ip_forward", "0"),
	{"two families of addresses, one forwarded", "forwarding: ipv6-forward-off (error)", func(w *world) {
		w.edit(cni1, `[[{"subnet"`, `[[{"subnet": "fd00:1::/64"}], [{"subnet"`)
		w.files["/proc/sys/net/ipv6/conf/all/forwarding"] = "0\n"
	}},
	{"Docker is installed, too", "firewall: forward-dropped (warning)", func(w *world) {
		builtIn(w)
		w.drops = []string{"ip filter FORWARD"}
	}},
	{"br_netfilter is not loaded", "bridge-netfilter: br-netfilter-missing (warning)", func(w *world) { delete(w.files, "/proc/sys/net/bridge/bridge-nf-call-iptables") }},
	sysctlSeed("bridge-netfilter", "bridge-nf-call-off", "warning", "net.bridge.bridge-nf-call-iptables", "0"),
	{"Cilium with a strict rp_filter", "reverse-path: rp-filter-strict (warning)", func(w *world) {
		w.files["/proc/sys/net/ipv4/conf/all/rp_filter"] = "1"
		w.files[cni1] = `{"cniVersion": "1.0.0", "name": "cilium", "plugins": [{"type": "cilium-cni"}]}`
		w.files["/opt/cni/bin/cilium-cni"] = ""
		w.plugin("/opt/cni/bin/cilium-cni", "1.0.0")
	}},
	{"protectKernelDefaults", "kernel-defaults: kernel-defaults-differ (error)", func(w *world) { w.files[config1] += "protectKernelDefaults: true\n" }},
	sysctlSeed("kernel-limits", "inotify-instances-used-up", "warning", "fs.inotify.max_user_instances", "4"),
	sysctlSeed("kernel-limits", "inotify-watches-low", "warning", "fs.inotify.max_user_watches", "1024"),
	sysctlSeed("kernel-limits", "pid-max-low", "warning", "kernel.pid_max", "4096"),
	sysctlSeed("kernel-limits", "max-map-count-low", "warning", "vm.max_map_count", "1000"),
	sysctlSeed("kernel-limits", "conntrack-full", "warning", "net.netfilter.nf_conntrack_count", "262000"),
	sysctlSeed("kernel-limits", "file-table-full", "warning", "fs.file-nr", "99000\t0\t100000"),
	{"swap", "swap: swap-on (error)", func(w *world) { w.files["/proc/swaps"] += "/dev/sda2\tpartition\t1\t0\t-2\n" }},
}

var diskSeeds = []seed{
	{"a full disk", "disk-space: disk-space-low (error)", func(w *world) { w.space.FreeBytes = 9 << 30 }},
	{"too full for images only", "disk-space: disk-space-low (error)", func(w *world) { w.space.FreeBytes = 12 << 30 }},
	{"a full disk of another's", "disk-space: disk-space-low (error)", func(w *world) {
		w.spaces["/var/lib/kubelet"] = Space{Device: 2, Bytes: 100, FreeBytes: 1}
	}},
	{"few inodes", "disk-space: inodes-low (error)", func(w *world) { w.space.FreeFiles = 1000 }},
	{"davit in a container", "directories: root-on-unfit-filesystem (error)", func(w *world) { w.edit(mounts1, "- ext4", "- overlay") }},
	{"images in memory", "directories: root-on-tmpfs (warning)", func(w *world) { w.files[mounts1] += "9 1 0:50 / /var/lib/davit rw - tmpfs tmpfs rw\n" }},
	{"state on a disk", "directories: state-not-on-tmpfs (warning)", func(w *world) { w.edit(mounts1, "/run rw,nosuid,nodev shared:5 - tmpfs", "/other rw - tmpfs") }},
	{"nobody may pass /var/lib/davit", "directories: directory-closed (warning)", func(w *world) { w.modes["/var/lib/davit"] = 0o700 }},
	{"a disk with errors", "directories: read-only (error)", func(w *world) { w.files[mounts1] += "9 1 8:2 / /var/lib/davit ro - ext4 /dev/sdb rw\n" }},
	{"volumes without programs", "directories: kubelet-dir-noexec (warning)", func(w *world) { w.files[mounts1] += "9 1 8:2 / /var/lib/kubelet rw,noexec - ext4 /dev/sdb rw\n" }},
	{"/ is private", "propagation: root-mount-private (warning)", func(w *world) { w.edit("/proc/200/mountinfo", " shared:1", "") }},
}

var kubeletSeeds = []seed{
	{"the configuration is not YAML", "kubelet-config: kubelet-config-invalid (error)", func(w *world) {
		w.files["/etc/kubelet.d/10.conf"] = "a: ["
		w.process(100, "/usr/bin/kubelet", "--config="+config1, "--config-dir=/etc/kubelet.d")
	}},
	{"a drop-in of another kind", "kubelet-config: kubelet-config-invalid (error)", func(w *world) {
		w.files["/etc/kubelet.d/10.conf"] = "kind: Pod\n"
		w.process(100, "/usr/bin/kubelet", "--config="+config1, "--config-dir=/etc/kubelet.d")
	}},
	{"the kubelet is stopped", "kubelet-config: kubelet-not-running (warning)", func(w *world) { w.end(100) }},
	{"a cluster that was off for a year", "kubelet-certificate: kubelet-certificate-expired (error)", func(w *world) {
		w.kubeletCertificate(testNow.AddDate(-2, 0, 0), testNow.AddDate(-1, 0, 0))
	}},
	{"nobody approves certificates", "kubelet-certificate: kubelet-certificate-expires (warning)", func(w *world) {
		w.kubeletCertificate(testNow.AddDate(-1, 0, 3), testNow.AddDate(0, 0, 3))
	}},
	{"half a certificate", "kubelet-certificate: kubelet-certificate-unusable (error)", func(w *world) {
		w.files["/var/lib/kubelet/pki/kubelet-client-current.pem"] = "-----BEGIN CERTIFICATE-----\n"
	}},
	{"a flag of years ago", "kubelet-config: kubelet-flag-removed (error)", func(w *world) {
		w.end(100)
		w.files["/var/lib/kubelet/kubeadm-flags.env"] = `KUBELET_KUBEADM_ARGS="--container-runtime=remote --v=2"`
	}},
	{"an old kubelet with no runtime", "kubelet-endpoint: kubelet-endpoint-unset (error)", func(w *world) {
		w.edit(config1, "containerRuntimeEndpoint: unix:///run/davit/davit.sock\n", "")
		w.runs["/usr/bin/kubelet --version"] = output{"Kubernetes v1.26.1\n", nil}
	}},
	{"an endpoint without a scheme", "kubelet-endpoint: kubelet-endpoint-bad (warning)", func(w *world) { w.edit(config1, "unix:///run/davit", "/run/davit") }},
	{"an endpoint with one slash", "kubelet-endpoint: kubelet-endpoint-bad (warning)", func(w *world) { w.edit(config1, "unix:///run/davit", "unix:/run/davit") }},
	{"an endpoint with two slashes", "kubelet-endpoint: kubelet-endpoint-bad (error)", func(w *world) { w.edit(config1, "unix:///run/davit", "unix://run/davit") }},
	{"the kubelet is set to nothing", "kubelet-endpoint: kubelet-endpoint-dead (error)", func(w *world) {
		w.given.Runtime = Endpoint{"unix:///run/davit/davit.sock", "test"}
		w.edit(config1, "/run/davit/davit.sock", "/run/gone.sock")
	}},
	{"the kubelet's images come from nowhere", "kubelet-endpoint: kubelet-image-endpoint-dead (error)", func(w *world) { w.files[config1] += "imageServiceEndpoint: unix:///run/gone.sock\n" }},
	{"nobody tells the kubelet whose control groups are", "kubelet-metrics: kubelet-metrics-nameless (warning)", func(w *world) {
		w.configure(config{"cadvisorSocket": nil})
	}},
	{"the kubelet still uses containerd", "kubelet-endpoint: kubelet-endpoint-other (warning)", func(w *world) {
		w.given.Runtime = Endpoint{"unix:///run/davit/davit.sock", "test"}
		w.serving["/run/containerd/containerd.sock"] = nil
		w.edit(config1, "/run/davit/davit.sock", "/run/containerd/containerd.sock")
	}},
}

var socketSeeds = []seed{
	{"another's socket is not there", "socket: socket-missing (error)", func(w *world) { w.given.Runtime = Endpoint{"unix:///run/crio/crio.sock", "test"} }},
	{"the socket of a dead davitd", "socket: socket-stale (error)", func(w *world) {
		w.given.Runtime = Endpoint{"unix:///run/davit/other.sock", "test"}
		w.files["/run/davit/other.sock"] = socketMark
		w.serving["/run/davit/other.sock"] = syscall.ECONNREFUSED
	}},
	{"a folder instead of a socket", "socket: socket-not-a-socket (error)", func(w *world) {
		w.given.Runtime = Endpoint{"unix:///run/davit/other.sock", "test"}
		w.files["/run/davit/other.sock"] = dirMark
	}},
	{"a relative path", "socket: endpoint-bad (error)", func(w *world) { w.given.Runtime = Endpoint{"run/davit.sock", "--endpoint"} }},
	{"a TCP port for images", "socket: endpoint-bad (error)", func(w *world) { w.given.Images = Endpoint{"tcp://127.0.0.1:1", "--image-endpoint"} }},
	{"images are said to be where nobody is", "socket: image-socket-dead (error)", func(w *world) { w.given.Images = Endpoint{"/run/images.sock", "IMAGE_SERVICE_ENDPOINT"} }},
	{"images are said by crictl to be where nobody is", "socket: image-socket-dead (error)", func(w *world) {
		w.given.Crictl = "/root/crictl.yaml"
		w.files[w.given.Crictl] = "runtime-endpoint: /run/davit/davit.sock\nimage-endpoint: /run/images.sock\n"
	}},
	{"a socket for everybody", "socket: socket-open-to-all (error)", func(w *world) { w.modes["/run/davit/davit.sock"] = 0o666 }},
	{"a runtime that hangs", "cri: cri-hangs (error)", func(w *world) { w.answer = Answer{Err: context.DeadlineExceeded} }},
	{"containerd without the CRI", "cri: cri-off (error)", func(w *world) {
		w.answer = Answer{Refused: map[string]string{"v1": "Unimplemented: unknown service runtime.v1.RuntimeService", "v1alpha2": "Unimplemented"}}
	}},
	{"a runtime that is broken", "cri: cri-broken (error)", func(w *world) { w.answer = Answer{Refused: map[string]string{"v1": "Internal: disk I/O error"}} }},
	{"a runtime of 2021", "cri: cri-v1-missing (error)", func(w *world) { w.answer.APIs = []string{"v1alpha2"} }},
	{"a kubelet of 2021", "cri: cri-v1alpha2-missing (error)", func(w *world) {
		w.answer.APIs = []string{"v1"}
		w.runs["/usr/bin/kubelet --version"] = output{"Kubernetes v1.22.17\n", nil}
		w.process(100, "/usr/bin/kubelet", "--config="+config1, "--container-runtime-endpoint=unix:///run/davit/davit.sock")
	}},
	{"no images", "cri: cri-images-missing (error)", func(w *world) { w.answer.ImageErr = errors.New("Unimplemented") }},
	{"two runtimes, and kubeadm is to choose", "other-sockets: several-runtimes (warning)", func(w *world) {
		w.serving["/run/containerd/containerd.sock"] = nil
		w.withoutKubelet()
	}},
	{"crictl points to nothing", "other-sockets: crictl-endpoint-dead (warning)", func(w *world) { w.files["/etc/crictl.yaml"] = "runtime-endpoint: \"unix:///run/gone.sock\"\n" }},
	{"crictl's images are nowhere", "other-sockets: crictl-endpoint-dead (warning)", func(w *world) {
		w.given.Runtime = Endpoint{"/run/davit/other.sock", "test"}
		w.files["/run/davit/other.sock"] = socketMark
		w.serving["/run/davit/other.sock"] = nil
		w.files["/etc/crictl.yaml"] += "image-endpoint: unix:///run/gone.sock\n"
	}},
	{"CRI_CONFIG_FILE names nothing", "other-sockets: crictl-config-invalid (warning)", func(w *world) { w.given.Crictl = "/root/none.yaml" }},
	{"CRI_CONFIG_FILE names another runtime", "socket: socket-missing (error)", func(w *world) {
		w.given.Crictl = "/root/crictl.yaml"
		w.files[w.given.Crictl] = "runtime-endpoint: /run/crio/crio.sock\n"
	}},
	{"crictl's configuration is broken", "other-sockets: crictl-config-invalid (warning)", func(w *world) { w.files["/etc/crictl.yaml"] = "runtime-endpoint: unix:///a\n\ttimeout: 2\n" }},
	{"the runtime is not ready", "runtime-status: runtime-not-ready (error)", func(w *world) { w.answer.Conditions[0] = Condition{"RuntimeReady", false, "keeper is gone"} }},
	{"no network", "runtime-status: network-not-ready (error)", func(w *world) {
		w.answer.Conditions[1] = Condition{"NetworkReady", false, "cni plugin not initialized"}
	}},
	{"containerd has notices", "runtime-status: runtime-warns (warning)", func(w *world) {
		w.answer.Conditions = append(w.answer.Conditions, Condition{"ContainerdHasNoDeprecationWarnings", false, "registry mirrors"})
	}},
}

const loopback = `{"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}`

const conflict = `{"cniVersion": "1.0.0", "name": "more", "plugins": [{"type": "bridge", "bridge": "cni0"}]}`

// flannel is the node with that instead of a bridge.
func flannel(w *world) {
	w.files[cni1] = `{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true}}, {"type": "portmap"}]}`
	w.files["/opt/cni/bin/flannel"] = ""
	w.plugin("/opt/cni/bin/flannel", "1.0.0")
}

var cniSeeds = []seed{
	{"a file that is not JSON", "cni: cni-file-invalid (error)", func(w *world) { w.files[cni1] = "{" }},
	{"one beside a good one", "cni: cni-file-invalid (warning)", func(w *world) { w.files["/etc/cni/net.d/00-bad.conflist"] = "{" }},
	{"a network without a name", "cni: cni-config-unusable (error)", func(w *world) { w.edit(cni1, `"name": "pods", `, "") }},
	{"a plugin by its path", "cni: cni-config-unusable (error)", func(w *world) { w.edit(cni1, `"portmap"`, `"../../../tmp/x"`) }},
	{"a network without plugins", "cni: cni-config-unusable (error)", func(w *world) { w.files[cni1] = `{"cniVersion": "1.0.0", "name": "pods", "plugins": []}` }},
	{"only loopback", "cni: cni-config-unusable (error)", func(w *world) { w.files[cni1] = loopback }},
	{"CNI of the future", "cni: cni-version-unknown (error)", func(w *world) { w.edit(cni1, "1.0.0", "2.0.0") }},
	{"a plugin is not installed", "cni: cni-plugin-missing (error)", func(w *world) { delete(w.files, "/opt/cni/bin/portmap") }},
	{"a plugin that may not be executed", "cni: cni-plugin-not-executable (error)", func(w *world) { w.modes["/opt/cni/bin/portmap"] = 0o644 }},
	{"a plugin for another machine", "cni: cni-plugin-broken (error)", func(w *world) { w.runs["/opt/cni/bin/bridge"] = output{"", syscall.ENOEXEC} }},
	{"an old plugin", "cni: cni-plugin-version (error)", func(w *world) { w.plugin("/opt/cni/bin/bridge", "0.3.1", "0.4.0") }},
	{"flannel does not run", "cni: flannel-subnet-missing (error)", flannel},
	{"two networks", "cni: cni-several-configs (warning)", func(w *world) { w.files["/etc/cni/net.d/99-more.conflist"] = conflict }},
	{"pods' addresses are the office's", "pod-subnets: pod-subnet-overlap (error)", func(w *world) {
		w.files["/proc/net/route"] += "tun0\t0000F40A\t0102000A\t0003\t0\t0\t0\t0000FFFF\n"
	}},
	{"flannel's bridge of the cluster before", "pod-subnets: cni-bridge-other-subnet (error)", func(w *world) {
		flannel(w)
		w.files["/run/flannel/subnet.env"] = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	}},
	{"another subnet was configured", "pod-subnets: cni-bridge-other-subnet (error)", func(w *world) { w.edit(cni1, "10.244.1.0/24", "10.42.0.0/24") }},
	{"more pods than addresses", "pod-subnets: pod-subnet-small (warning)", func(w *world) { w.edit(cni1, "10.244.1.0/24", "10.244.1.0/26") }},
	{"davit's own are taken", "pod-subnets: pod-subnet-overlap (error)", func(w *world) {
		builtIn(w)
		w.configure(config{"subnets": []string{"10.0.0.0/9", "fd00::/64"}})
	}},
}

var davitSeeds = []seed{
	{"no OCI runtime", "oci-runtimes: oci-runtime-missing (error)", func(w *world) { delete(w.files, "/usr/bin/crun"); delete(w.files, "/usr/bin/runc") }},
	{"a handler without a program", "oci-runtimes: oci-runtime-missing (error)", func(w *world) {
		w.configure(config{"runtimes": map[string]string{"kata": "/opt/kata/bin/kata"}})
	}},
	{"a default without a program", "oci-runtimes: default-runtime-missing (error)", func(w *world) { w.configure(config{"defaultRuntime": "youki"}) }},
	{"crun may not be executed", "oci-runtimes: oci-runtime-not-executable (error)", func(w *world) {
		w.modes["/usr/bin/crun"] = 0o644
	}},
	{"crun lacks a library", "oci-runtimes: oci-runtime-broken (error)", func(w *world) {
		w.runs["/usr/bin/crun --version"] = output{"", errors.New("error while loading shared libraries: libyajl.so.2")}
	}},
	{"an ancient runc", "oci-runtimes: oci-runtime-too-old (error)", func(w *world) {
		w.runs["/usr/bin/runc --version"] = output{"runc version 0.1.1\nlibseccomp: 2.5.4\n", nil}
	}},
	{"crun without seccomp", "oci-runtimes: oci-runtime-without-seccomp (warning)", func(w *world) { w.runs["/usr/bin/crun --version"] = output{"crun version 1.8.1\n+SYSTEMD\n", nil} }},
	{"an unknown key", "davitd-config: davitd-config-invalid (error)", func(w *world) {
		builtIn(w) // what is configured is not known
		delete(w.files, "/etc/davit/tls.crt")
		w.runs["/usr/bin/davitd --check"] = output{"", &Exit{"davitd: /etc/davit/config.toml:3:1: rooot: unknown key"}}
	}},
	{"a reload that cannot take over all", "davitd-config: davitd-config-needs-restart (warning)", func(w *world) { w.answer.NeedRestart = []string{"network.mtu"} }},
	{"davitd does not run", "davitd: davitd-not-running (error)", func(w *world) {
		w.end(200)
		delete(w.files, "/run/davit/davit.sock")
		delete(w.serving, "/run/davit/davit.sock")
		w.withoutKubelet()
		delete(w.files, "/etc/crictl.yaml")
	}},
	{"no davit-monitor", "davitd: davit-monitor-missing (error)", func(w *world) { delete(w.files, "/usr/bin/davit-monitor") }},
	{"the monitor died", "davitd: davit-monitor-not-running (error)", func(w *world) { w.end(202) }},
	{"the keeper is another's", "davitd: davit-monitor-not-running (error)", func(w *world) { w.process(201, "/usr/bin/davit-monitor", "keep", "--state=/run/other") }},
	{"davitd was not updated", "versions: version-mismatch (warning)", func(w *world) {
		w.runs["/usr/bin/davitd --version"] = output{"davitd 0.0.9\n", nil}
		w.answer.Version = "0.0.9"
	}},
	{"davit-monitor was not updated", "versions: version-mismatch (warning)", func(w *world) {
		w.runs["/usr/bin/davit-monitor --version"] = output{"davit-monitor 0.0.9\n", nil}
	}},
	{"davitd was not restarted", "versions: version-mismatch (warning)", func(w *world) { w.answer.Version = "0.0.9" }},
	{"the keeper runs an old program", "versions: program-replaced (warning)", func(w *world) { w.files["/proc/201/exe"] = "->/usr/bin/davit-monitor (deleted)" }},
	{"a unit that kills containers", "unit: unit-kills-containers (error)", func(w *world) {
		w.files["/etc/systemd/system/davitd.service.d/10.conf"] = "[Service]\nKillMode=mixed\n"
	}},
	{"a unit of few tasks", "unit: tasks-max-low (warning)", func(w *world) { w.files["/sys/fs/cgroup/system.slice/davitd.service/pids.max"] = "100" }},
	{"few open files", "limits: open-files-low (warning)", func(w *world) { w.edit("/proc/200/limits", "1048576", "4096   ") }},
	{"few processes", "limits: processes-low (warning)", func(w *world) {
		w.edit("/proc/200/limits", "unlimited            unlimited            processes", "100 100 processes")
	}},
	{"the keeper in use goes first, another stands by", "limits: oom-score-high (warning)", func(w *world) {
		w.process(190, "/usr/bin/davit-monitor", "keep", "--wait", "--state", "/run/davit")
		w.edit("/proc/202/status", "NSpid:", "PPid:\t201\nNSpid:")
		w.files["/proc/201/oom_score_adj"] = "0"
	}},
	{"the keeper goes first", "limits: oom-score-high (warning)", func(w *world) { w.files["/proc/201/oom_score_adj"] = "0" }},
	{"a damaged file of the network", "records: records-set-aside (warning)", func(w *world) { w.files["/var/lib/davit/damaged/pod-cidr"] = "{" }},
	{"a damaged record", "records: records-set-aside (warning)", func(w *world) { w.files["/var/lib/davit/damaged/pods-x.json"] = "{" }},
	{"a pod without a record", "records: leftover-state (warning)", func(w *world) { w.files["/run/davit/pods/ccc"] = dirMark }},
	{"a truncated image database", "image-store: image-store-damaged (error)", func(w *world) { w.files["/var/lib/davit/images/images.db"] = boltHeader()[:40] }},
	{"a flipped bit in it", "image-store: image-store-damaged (error)", func(w *world) {
		page := []byte(boltHeader())
		page[30] ^= 1
		w.files["/var/lib/davit/images/images.db"] = string(page)
	}},
	{"a damaged one was replaced", "image-store: image-store-set-aside (warning)", func(w *world) { w.files["/var/lib/davit/damaged/images.db"] = "" }},
	{"a lost one was replaced", "image-store: image-store-set-aside (warning)", func(w *world) { w.files["/var/lib/davit/damaged/images.db.gone"] = "" }},
	{"a certificate of last year", "streaming-certificate: streaming-certificate-expired (error)", func(w *world) { w.certificate(testNow.AddDate(-2, 0, 0), testNow.AddDate(-1, 0, 0)) }},
	{"a certificate of next year", "streaming-certificate: streaming-certificate-expired (error)", func(w *world) { w.certificate(testNow.AddDate(1, 0, 0), testNow.AddDate(2, 0, 0)) }},
	{"a certificate for three days more", "streaming-certificate: streaming-certificate-expires (warning)", func(w *world) { w.certificate(testNow.AddDate(-1, 0, 0), testNow.AddDate(0, 0, 3)) }},
	{"another certificate's key", "streaming-certificate: streaming-certificate-unusable (error)", func(w *world) {
		cert := w.files["/etc/davit/tls.crt"]
		w.certificate(testNow, testNow)
		w.files["/etc/davit/tls.crt"] = cert
	}},
	{"a CDI spec that is none", "devices: cdi-spec-invalid (warning)", func(w *world) { w.files["/etc/cdi/nic.json"] = "[]" }},
	{"a device that has gone", "devices: cdi-device-missing (warning)", func(w *world) { delete(w.files, "/dev/nic0") }},
	{"no links for systemd", "devices: nvidia-links-missing (warning)", func(w *world) { delete(w.files, "/dev/char/195:0") }},
}

var seeds = slices.Concat(hostSeeds, kernelSeeds, cgroupSeeds, sysctlSeeds, diskSeeds, kubeletSeeds, socketSeeds, cniSeeds, davitSeeds)

// Each fault is named exactly, alone, and with a fix.
func TestSeededFaults(t *testing.T) {
	for _, s := range seeds {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			w := healthy()
			s.plant(w)
			r := examine(t, w)
			if got := found(r); !slices.Equal(got, []string{s.want}) {
				t.Errorf("found %q, want %q", got, s.want)
			}
			for _, c := range r.Checks {
				for _, f := range c.Findings {
					if f.Message == "" || f.Fix == "" || strings.Contains(f.Message+f.Fix, "%!") {
						t.Errorf("%s: message %q, fix %q", f.Fault, f.Message, f.Fix)
					}
					if out, err := exec.Command("sh", "-n", "-c", f.Fix).CombinedOutput(); err != nil { // what is to be pasted
						t.Errorf("%s: fix %q: %v: %s", f.Fault, f.Fix, err, out)
					}
				}
			}
		})
	}
}

// The fix for an endpoint is for each file that kubeadm keeps it in.
func TestFixOfEndpoint(t *testing.T) {
	w := healthy()
	w.serving["/run/containerd/containerd.sock"] = nil
	w.given.Runtime = Endpoint{"unix:///run/davit/davit.sock", "test"}
	w.edit(config1, "/run/davit/davit.sock", "/run/containerd/containerd.sock")
	files := []string{config1, "/var/lib/kubelet/instance-config.yaml", "/var/lib/kubelet/kubeadm-flags.env"}
	for _, file := range files[1:] {
		w.files[file] = "x"
	}
	r := examine(t, w)
	if got := found(r); !slices.Equal(got, []string{"kubelet-endpoint: kubelet-endpoint-other (warning)"}) {
		t.Errorf("found %q", got)
	}
	for _, c := range r.Checks {
		for _, f := range c.Findings {
			for _, file := range files {
				if !strings.Contains(f.Fix, file) {
					t.Errorf("%s: fix %q has no %s", f.Fault, f.Fix, file)
				}
			}
		}
	}
}

// No fault is only documented.
func TestEveryFaultIsSeeded(t *testing.T) {
	seeded := map[string]bool{}
	for _, s := range seeds {
		name, _, _ := strings.Cut(s.want, " (")
		seeded[name] = true
	}
	for _, c := range Checks() {
		for _, f := range c.Faults {
			if !seeded[c.Name+": "+f.Name] {
				t.Errorf("no seed for %s: %s", c.Name, f.Name)
			}
		}
	}
}

// What may be on a node that works: nothing of it is a fault.
func TestNoFaults(t *testing.T) {
	for name, change := range map[string]func(*world){
		"flannel": func(w *world) {
			flannel(w)
			w.files["/run/flannel/subnet.env"] = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"
		},
		"a disk without programs of its own, which overlayfs does not mind": func(w *world) {
			w.files[mounts1] += "9 1 8:2 / /var/lib/davit rw,noexec,nodev - ext4 /dev/sdb rw\n"
		},
		"a node in a cluster":                 func(w *world) { w.kubeletCertificate(testNow.AddDate(0, -1, 0), testNow.AddDate(0, 11, 0)) },
		"a firewall, and a network of others": func(w *world) { w.drops = []string{"ip filter FORWARD"} },
		"a file for loopback":                 func(w *world) { w.files["/etc/cni/net.d/99-loopback.conf"] = loopback },
		"multus before the main network": func(w *world) {
			w.files["/etc/cni/net.d/00-multus.conf"] = `{"cniVersion": "1.0.0", "name": "multus", "type": "multus-shim"}`
			w.files["/opt/cni/bin/multus-shim"] = ""
			w.plugin("/opt/cni/bin/multus-shim", "1.0.0")
		},
		"the built-in network": func(w *world) { builtIn(w); w.files["/proc/sys/net/ipv4/ip_forward"] = "0" },
		"swap, allowed": func(w *world) {
			w.files["/proc/swaps"] += "/dev/sda2\tpartition\t1\t0\t-2\n"
			w.files[config1] += "failSwapOn: false\n"
		},
		"a kubelet that evicts for memory only": func(w *world) {
			w.files[config1] += "evictionHard: {memory.available: 100Mi}\n"
			w.space.FreeBytes = 5 << 30
		},
		"cgroup v1, allowed": func(w *world) { v1(w, "", "cpu", "memory", "cpuset", "pids") },
		"v1 and v2 beside":   func(w *world) { v1(w, unified1, "cpu", "memory", "cpuset", "pids") },
		"somebody who calls himself davitd": func(w *world) {
			w.process(150, "/tmp/davitd", "--state=/tmp/x")
			w.edit("/proc/150/status", "Uid:\t0\t0\t0\t0", "Uid:\t4711\t4711\t4711\t4711")
		},
		"programs that are slow": func(w *world) {
			w.runs["/usr/bin/crun --version"] = output{"", errSlow}
			w.runs["/opt/cni/bin/bridge"] = output{"", errSlow}
		},
		"images elsewhere": func(w *world) {
			w.given.Images = Endpoint{"/run/images.sock", "--image-endpoint"}
			w.serving["/run/images.sock"] = nil
		},
		"another crictl.yaml, the usual one being wrong": func(w *world) {
			w.given.Crictl = "/root/crictl.yaml"
			w.files[w.given.Crictl] = "runtime-endpoint: /run/davit/davit.sock\n"
			w.files["/etc/crictl.yaml"] = "\t"
		},
		"a plain path":                             func(w *world) { w.given.Runtime = Endpoint{"/run/davit/davit.sock", "test"} },
		"figures without names, as it is wanted":   func(w *world) { w.configure(config{"cadvisorSocket": ""}) },
		"a certificate of none":                    func(w *world) { w.configure(config{"certFile": "", "keyFile": ""}) },
		"two runtimes, and the kubelet set to one": func(w *world) { w.serving["/run/containerd/containerd.sock"] = nil },
	} {
		w := healthy()
		change(w)
		r := examine(t, w)
		if got := found(r); got != nil || r.Skipped > 0 {
			t.Errorf("%s: found %q, %d skipped", name, got, r.Skipped)
		}
	}
}

// Where davit is not installed, its own checks are left out and the rest is done.
func TestOtherRuntime(t *testing.T) {
	w := healthy()
	w.withoutDavit()
	w.serving["/run/containerd/containerd.sock"] = nil
	w.files["/run/containerd/containerd.sock"] = socketMark
	w.edit(config1, "/run/davit/davit.sock", "/run/containerd/containerd.sock")
	w.files["/etc/crictl.yaml"] = "runtime-endpoint: unix:///run/containerd/containerd.sock\n"
	w.answer.Name, w.answer.Version, w.answer.APIs = "containerd", "2.4.0", []string{"v1"}
	w.answer.ImageDirs = []string{"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"}
	r := examine(t, w)
	if got := found(r); got != nil {
		t.Errorf("found %q", got)
	}
	var skipped []string
	for _, c := range r.Checks {
		if c.Level == Skipped {
			skipped = append(skipped, c.Check)
		}
	}
	want := []string{"crun-cgroups", "kubelet-metrics", "oci-runtimes", "davitd-config", "davitd", "versions", "unit", "limits", "records", "image-store"}
	if !slices.Equal(skipped, want) {
		t.Errorf("skipped %q, want %q", skipped, want)
	}
}

// A node with nothing on it is told of without a failure of the checks themselves.
func TestBareNode(t *testing.T) {
	w := &world{files: map[string]string{"/proc/sys/kernel/osrelease": "6.12.0"}, now: testNow, sync: true}
	r := examine(t, w)
	for _, c := range r.Checks {
		if c.Level != OK && c.Level != Skipped && len(c.Findings) == 0 {
			t.Errorf("%+v", c)
		}
	}
}

// What hangs for ever is told as not done, and ends nothing else.
func TestHangingNode(t *testing.T) {
	n := healthy().node(t)
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan struct{})
	defer close(stuck)
	n.Space = func(string) (Space, error) { // as on a dead NFS server
		cancel()
		<-stuck
		return Space{}, fs.ErrInvalid
	}
	r := run(ctx, n, time.Minute)
	for _, c := range r.Checks {
		if c.Check == "disk-space" && (c.Level != Skipped || !strings.Contains(c.Message, "not done")) || len(c.Findings) > 0 {
			t.Errorf("%s is %s: %s %v", c.Check, c.Level, c.Message, c.Findings)
		}
	}
}

func TestReportJSON(t *testing.T) {
	w := healthy()
	w.sync = false
	w.given.Runtime = Endpoint{"unix:///run/davit/davit.sock", "--endpoint"}
	r := examine(t, w)
	r.TookMillis = 12
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.json", string(raw)+"\n")
}

// The table in docs/doctor.md is that of the code.
func TestDocumentation(t *testing.T) {
	const path = "../../docs/doctor.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(text), "| check |")
	if !ok {
		t.Fatal("docs/doctor.md has no table")
	}
	var table strings.Builder
	table.WriteString("| check | looks at | faults |\n|---|---|---|\n")
	for _, c := range Checks() {
		var faults []string
		for _, f := range c.Faults {
			faults = append(faults, fmt.Sprintf("**%s** (%s): %s", f.Name, f.Level, f.What))
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", c.Name, c.What, strings.Join(faults, "<br>"))
	}
	golden(t, path, before+table.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what the code says; go test -update ./internal/doctor writes it. It would be:\n%s", path, got)
	}
}

// How layers are kept is told as the davitd that is asked tells it.
func TestKindOfStore(t *testing.T) {
	const files, database = "EROFS files, mounted by loop devices, since the other way fails", "/var/lib/davit/images/images.db"
	for _, c := range []struct {
		name, layers, want string
	}{
		{"davit", files, database + "; new layers are kept as " + files},
		{"davit", "", database},
		{"containerd", files, database},
	} {
		w := healthy()
		w.answer.Name, w.answer.ImageLayers = c.name, c.layers
		for _, r := range examine(t, w).Checks {
			if r.Check == "image-store" && r.Message != c.want {
				t.Errorf("%s: %q", c.name, r.Message)
			}
		}
	}
}
