package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/criclient"
)

// A world is a node to check: files, and what the other seams say.
type world struct {
	files   map[string]string // "->target" is a symbolic link, socketMark a socket, dirMark a folder
	modes   map[string]fs.FileMode
	runs    map[string]output // by "program argument …"
	serving map[string]error  // by socket: nil accepts; those not here do not exist
	answer  Answer
	space   Space
	spaces  map[string]Space // by directory
	sync    bool
	now     time.Time
	uid     int
	given   Given
	drops   []string // chains
	tries   map[string]error
}

type output struct {
	text string
	err  error
}

const (
	socketMark = "\x00socket"
	dirMark    = "\x00directory"
)

var testNow = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

// A config is what davitd --check of the healthy node says.
type config map[string]any

func healthyConfig() config {
	return config{
		"root": "/var/lib/davit", "state": "/run/davit", "socket": "/run/davit/davit.sock",
		"cadvisorSocket": "/run/containerd/containerd.sock",
		"certFile":       "/etc/davit/tls.crt", "keyFile": "/etc/davit/tls.key", "cdiSpecDirs": []string{"/etc/cdi"},
	}
}

func (w *world) configure(change config) {
	c := healthyConfig()
	maps.Copy(c, change)
	text, _ := json.Marshal(c)
	w.runs["/usr/bin/davitd --check"] = output{string(text), nil}
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/davit/davit.sock
resolvConf: /run/systemd/resolve/resolv.conf
`

const mountTable = `1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
2 1 0:5 / /proc rw - proc proc rw
3 1 0:6 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
4 1 0:7 / /run rw,nosuid,nodev shared:5 - tmpfs tmpfs rw,mode=755
`

// healthy is a node with systemd, a kubelet and davit, on which nothing is amiss.
func healthy() *world {
	w := &world{
		modes: map[string]fs.FileMode{"/run/davit/davit.sock": 0o660},
		runs: map[string]output{
			"/usr/bin/kubelet --version":       {"Kubernetes v1.34.2\n", nil},
			"/usr/bin/davitd --version":        {"davitd 0.1.0\n", nil},
			"/usr/bin/davit-monitor --version": {"davit-monitor 0.1.0\n", nil},
			"/usr/bin/crun --version":          {"crun version 1.8.1\ncommit: f8a096be\nspec: 1.0.0\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF\n", nil},
			"/usr/bin/runc --version":          {"runc version 1.1.5+ds1\nspec: 1.0.2-dev\ngo: go1.19.8\nlibseccomp: 2.5.4\n", nil},
		},
		serving: map[string]error{"/run/davit/davit.sock": nil},
		answer: Answer{
			Name: "davit", Version: "0.1.0", APIs: []string{"v1", "v1alpha2"}, CgroupDriver: "systemd",
			Conditions: []Condition{{"RuntimeReady", true, ""}, {"NetworkReady", true, ""}},
			ImageDirs:  []string{"/var/lib/davit/images"},
		},
		space: Space{Device: 1, Bytes: 100 << 30, FreeBytes: 60 << 30, Files: 1000000, FreeFiles: 900000},
		sync:  true, now: testNow,
		spaces: map[string]Space{}, tries: map[string]error{},
	}
	w.files = map[string]string{
		"/proc/sys/kernel/osrelease": "6.12.30-amd64\n", "/proc/sys/kernel/hostname": "node1\n",
		"/proc/filesystems":                          "nodev\tproc\nnodev\toverlay\n\text4\n",
		"/proc/self/mountinfo":                       mountTable,
		"/proc/cgroups":                              "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t9\t1\ncpu\t0\t9\t1\nmemory\t0\t9\t1\npids\t0\t9\t1\n",
		"/proc/modules":                              "overlay 151552 3 - Live 0x0\nbr_netfilter 32768 0 - Live 0x0\n",
		"/boot/config-6.12.30-amd64":                 "CONFIG_VETH=m\nCONFIG_BRIDGE=m\nCONFIG_NF_TABLES=m\nCONFIG_OVERLAY_FS=m\n# CONFIG_X is not set\n",
		"/lib/modules/6.12.30-amd64/modules.dep":     "kernel/drivers/net/veth.ko.xz:\nkernel/net/bridge/bridge.ko.xz: kernel/net/llc/llc.ko.xz\nkernel/net/netfilter/nf_tables.ko.xz:\n",
		"/lib/modules/6.12.30-amd64/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
		"/proc/sys/kernel/seccomp/actions_avail":     "kill_process trap errno allow\n",
		"/sys/module/apparmor/parameters/enabled":    "Y\n", "/usr/sbin/apparmor_parser": "",
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
		"/run/systemd/system":               dirMark,
		"/proc/swaps":                       "Filename\tType\tSize\tUsed\tPriority\n",
		"/proc/net/route":                   "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\neth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\ncni0\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
		"/proc/net/ipv6_route":              "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n",
		"/etc/machine-id":                   "0123456789abcdef0123456789abcdef\n",
		"/run/systemd/resolve/resolv.conf":  "nameserver 10.0.2.3\nsearch example.org\n",
		"/etc/resolv.conf":                  "nameserver 127.0.0.53\n",
		"/etc/crictl.yaml":                  "runtime-endpoint: unix:///run/davit/davit.sock\n",
		"/var/lib/kubelet/config.yaml":      kubeletConfig,
		"/usr/bin/kubelet":                  "", "/usr/bin/davitd": "", "/usr/bin/davit-monitor": "", "/usr/bin/crun": "", "/usr/bin/runc": "",
		"/run/davit/davit.sock":           socketMark,
		"/etc/cni/net.d/10-pods.conflist": `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]}}, {"type": "portmap"}]}`,
		"/opt/cni/bin/bridge":             "", "/opt/cni/bin/portmap": "",
		"/etc/cdi/nic.json": `{"cdiVersion": "0.6.0", "kind": "example.org/nic", "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nic0"}]}}]}`,
		"/dev/nic0":         "", "/dev/nvidia0": "", "/dev/char/195:0": "->../nvidia0",
		"/var/lib/davit/images/images.db":                     boltHeader(),
		"/var/lib/davit/pods/aaa/record.json":                 "{}",
		"/run/davit/pods/aaa":                                 dirMark,
		"/var/lib/davit/containers/bbb/record.json":           "{}",
		"/run/davit/containers/bbb":                           dirMark,
		"/usr/lib/systemd/system/davitd.service":              "[Service]\nExecStart=/usr/bin/davitd\nKillMode=process\n",
		"/sys/fs/cgroup/system.slice/davitd.service/pids.max": "max\n",
	}
	for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt", "cgroup", "user"} {
		w.files["/proc/self/ns/"+kind] = ""
	}
	for name, value := range map[string]string{
		"user/max_user_namespaces": "63000", "net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1", "net/ipv4/conf/all/rp_filter": "0",
		"vm/overcommit_memory": "0", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1", "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
		"fs/inotify/max_user_instances": "128", "fs/inotify/max_user_watches": "65536", "kernel/pid_max": "4194304", "vm/max_map_count": "65530",
		"net/netfilter/nf_conntrack_max": "262144", "net/netfilter/nf_conntrack_count": "100", "fs/file-nr": "1000\t0\t9223372036854775807", "kernel/modules_disabled": "0",
	} {
		w.files["/proc/sys/"+name] = value + "\n"
	}
	w.process(100, "/usr/bin/kubelet", "--config=/var/lib/kubelet/config.yaml")
	w.process(200, "/usr/bin/davitd")
	w.process(201, "/usr/bin/davit-monitor", "keep", "--state", "/run/davit")
	w.process(202, "/usr/bin/davit-monitor", "serve", "--state", "/run/davit")
	w.certificate(testNow.AddDate(-1, 0, 0), testNow.AddDate(1, 0, 0))
	w.plugin("/opt/cni/bin/bridge", "0.4.0", "1.0.0")
	w.plugin("/opt/cni/bin/portmap", "0.4.0", "1.0.0")
	w.configure(nil)
	return w
}

// process puts a process of systemd's into /proc.
func (w *world) process(pid int, args ...string) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	w.files[dir+"cmdline"] = strings.Join(args, "\x00") + "\x00"
	w.files[dir+"exe"] = "->" + args[0]
	w.files[dir+"status"] = fmt.Sprintf("Name:\t%s\nUid:\t0\t0\t0\t0\nNSpid:\t%d\nCapEff:\t000001ffffffffff\n", filepath.Base(args[0]), pid)
	w.files[dir+"cgroup"] = "0::/system.slice/davitd.service\n"
	w.files[dir+"limits"] = "Limit                     Soft Limit           Hard Limit           Units\nMax processes             unlimited            unlimited            processes\nMax open files            1024                 1048576              files\n"
	w.files[dir+"oom_score_adj"] = "-999\n"
	w.files[dir+"mountinfo"] = mountTable
	w.files[dir+"fd/3"] = "->anon_inode:inotify"
}

func (w *world) end(pid int) {
	maps.DeleteFunc(w.files, func(name, _ string) bool { return strings.HasPrefix(name, fmt.Sprintf("/proc/%d/", pid)) })
}

// without is the node without davit.
func (w *world) withoutDavit() {
	for _, pid := range []int{200, 201, 202} {
		w.end(pid)
	}
	delete(w.files, "/usr/bin/davitd")
	delete(w.files, "/usr/bin/davit-monitor")
	delete(w.files, "/run/davit/davit.sock")
	delete(w.serving, "/run/davit/davit.sock")
	maps.DeleteFunc(w.files, func(name, _ string) bool { return strings.HasPrefix(name, "/var/lib/davit/") })
}

// withoutKubelet is the node before a kubelet is set up.
func (w *world) withoutKubelet() {
	w.end(100)
	delete(w.files, "/var/lib/kubelet/config.yaml")
	w.files["/etc/resolv.conf"] = "nameserver 10.0.2.3\n"
}

func (w *world) edit(name, old, replacement string) {
	if !strings.Contains(w.files[name], old) {
		panic(name + " has no " + old)
	}
	w.files[name] = strings.Replace(w.files[name], old, replacement, 1)
}

func (w *world) plugin(path string, versions ...string) {
	text, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "supportedVersions": versions})
	w.runs[path] = output{string(text), nil}
}

func (w *world) certificate(from, to time.Time) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to}
	cert, _ := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	der, _ := x509.MarshalPKCS8PrivateKey(key)
	w.files["/etc/davit/tls.crt"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	w.files["/etc/davit/tls.key"] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// kubeletCertificate is the one by which the kubelet is known in its cluster.
func (w *world) kubeletCertificate(from, to time.Time) {
	own := [...]string{w.files["/etc/davit/tls.crt"], w.files["/etc/davit/tls.key"]}
	w.certificate(from, to)
	w.files["/var/lib/kubelet/pki/kubelet-client-current.pem"] = w.files["/etc/davit/tls.key"] + w.files["/etc/davit/tls.crt"]
	w.files["/etc/davit/tls.crt"], w.files["/etc/davit/tls.key"] = own[0], own[1]
}

// boltHeader is a database's first page.
func boltHeader() string {
	page := make([]byte, 4096)
	order := binary.NativeEndian
	order.PutUint32(page[16:], 0xED0CDAED)
	order.PutUint32(page[20:], 2)
	order.PutUint32(page[24:], 4096)
	sum := fnv.New64a()
	sum.Write(page[16:72])
	order.PutUint64(page[72:], sum.Sum64())
	return string(page)
}

// node lays the world out below a new root.
func (w *world) node(t *testing.T) *Node {
	t.Helper()
	root, err := os.MkdirTemp("/dev/shm", "doctor") // in memory: these are many small files
	if err != nil {
		root = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	for name, text := range w.files {
		if err := w.put(root, name, text); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range w.modes {
		if _, ok := w.files[name]; !ok && !strings.HasPrefix(name, "/var/lib/davit") {
			continue // taken away again
		}
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	return &Node{
		Root: root, Given: w.given, Version: "0.1.0", Uid: w.uid, Program: "/usr/bin/davit", Path: []string{"/usr/sbin", "/usr/bin"},
		Now:          func() time.Time { return w.now },
		Synchronised: func() (bool, error) { return w.sync, nil },
		Space: func(path string) (Space, error) {
			if s, ok := w.spaces["/"+strings.TrimPrefix(strings.TrimPrefix(path, root), "/")]; ok {
				return s, nil
			}
			return w.space, nil
		},
		Connect: func(_ context.Context, socket string) error {
			if err, ok := w.serving[strings.TrimPrefix(socket, "/var")]; ok {
				return err
			}
			return fs.ErrNotExist
		},
		Ask: func(_ context.Context, runtime, images string) Answer {
			if err, ok := w.serving[strings.TrimPrefix(runtime, "unix://")]; !ok || err != nil {
				return Answer{Err: syscall.ECONNREFUSED}
			}
			if err, ok := w.serving[strings.TrimPrefix(images, "unix://")]; !ok || err != nil {
				w.answer.ImageErr = &criclient.EndpointError{Endpoint: images}
			}
			return w.answer
		},
		Run: func(_ context.Context, _ []string, program string, args ...string) (string, error) {
			out, ok := w.runs[strings.Join(append([]string{program}, args...), " ")]
			if !ok {
				return "", fs.ErrNotExist
			}
			return out.text, out.err
		},
		Try:      func(feature string) error { return w.tries[feature] },
		Dropping: func(string) ([]string, error) { return w.drops, nil },
	}
}

func (w *world) put(root, name, text string) error {
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	target, link := strings.CutPrefix(text, "->")
	switch {
	case link:
		return os.Symlink(target, path)
	case text == socketMark:
		return unix.Mknod(path, unix.S_IFSOCK|0o660, 0)
	case text == dirMark:
		return os.MkdirAll(path, 0o755)
	}
	return errors.Join(os.WriteFile(path, bytes.Clone([]byte(text)), 0o755), os.Chtimes(path, testNow, testNow))
}

// found returns what a report tells, as "check: fault (level)".
func found(r *Report) []string {
	var all []string
	for _, c := range r.Checks {
		for _, f := range c.Findings {
			all = append(all, fmt.Sprintf("%s: %s (%s)", c.Check, f.Fault, f.Level))
		}
	}
	slices.Sort(all)
	return all
}
