package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// A node is a kubelet with a runtime and what both stand on.
type node struct {
	t       *testing.T
	version string // of the kubelet
	program string
	runtime *runtime
	dir     string // everything on disk
	pods    string // where its manifests are
	logFile string
	more    map[string]any // settings beside the usual ones
	cmd     *exec.Cmd
	ended   chan error
}

// nodeAddress is the address of the node's uplink: by RFC 5737, where the
// network is the test's own.
var nodeAddress = "192.0.2.2"

// newNode makes a node of a kubelet and a runtime that serves, and starts the
// kubelet. Settings in more override the usual ones.
func newNode(t *testing.T, version string, r *runtime, more map[string]any) *node {
	t.Helper()
	n := &node{t: t, version: version, program: kubeletOf(t, version), runtime: r, dir: r.dir, more: more}
	n.pods, n.logFile = filepath.Join(n.dir, "manifests"), filepath.Join(n.dir, "kubelet.log")
	for _, dir := range []string{n.pods, filepath.Join(n.dir, "kubelet")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		n.stop()
		unmountBelow(t, n.dir)
		if t.Failed() {
			t.Logf("the kubelet's log ends\n%s", lastLines(n.log(), 60))
		}
	})
	n.start()
	return n
}

// place makes directories that kubelets have wired in into private ones, and
// gives the node a link to the rest of the world.
func place(t *testing.T) {
	t.Helper()
	wired := []string{"/var/lib/kubelet", "/var/log/pods", "/var/log/containers"}
	if *endpoint == "" {
		wired = append(wired, filepath.Dir(cadvisorSocket))
	}
	for _, dir := range wired {
		if err := os.Mkdir(dir, 0o755); err == nil {
			t.Cleanup(func() { _ = os.Remove(dir) })
		}
		if err := unix.Mount("kubelet", dir, "tmpfs", 0, "mode=0755"); err != nil {
			t.Fatalf("cover %s: %v", dir, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("uncover %s: %v", dir, err)
			}
		})
	}
	if address := elsewhere(t); address != "" {
		nodeAddress = address
		return
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "beyond"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatalf("make an uplink: %v", err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	peer, err := netlink.LinkByName("beyond")
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddress), Mask: net.CIDRMask(24, 32)}}
	route := &netlink.Route{LinkIndex: link.Index, Gw: net.ParseIP("192.0.2.1")}
	if err := errors.Join(netlink.LinkSetUp(peer), netlink.LinkSetUp(link), netlink.AddrAdd(link, address), netlink.RouteAdd(route)); err != nil {
		t.Fatalf("configure the uplink: %v", err)
	}
}

// elsewhere returns the address of a node that has a way to elsewhere already.
func elsewhere(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteGet(net.ParseIP("192.0.2.53"))
	if err != nil || len(routes) == 0 || routes[0].Src == nil {
		return ""
	}
	return routes[0].Src.String()
}

// cgroupRoot makes a cgroup for all that this kubelet makes, where that can be:
// on cgroup v1. Elsewhere it is the root, and only what is new there is removed.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/kubelet-test-%d", os.Getpid())
	if len(mounts) == 0 {
		name = "/"
	}
	for _, m := range mounts {
		if err := os.Mkdir(m.Mountpoint+name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, m := range mounts {
			removeCgroups(m.Mountpoint + name)
			if _, err := os.Stat(m.Mountpoint + name); err == nil {
				t.Errorf("cgroup %s is in use", m.Mountpoint+name)
			}
		}
		if name != "/" {
			removeCgroups("/sys/fs/cgroup/unified" + name) // of the hybrid layout
		}
		if name == "/" {
			removeCgroups("/sys/fs/cgroup/kubepods")
			if _, err := os.Stat("/sys/fs/cgroup/kubepods.slice"); err == nil {
				_ = exec.Command("systemctl", "stop", "kubepods.slice").Run()
			}
		}
	})
	return name
}

// removeCgroups removes a cgroup and those below it; what is in use stays.
func removeCgroups(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroups(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}

// unmountBelow unmounts what a kubelet left mounted below dir, which it does
// for volumes of pods that it never saw end.
func unmountBelow(t *testing.T, dir string) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(dir, "kubelet")))
	if err != nil {
		t.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		t.Errorf("the kubelet left %s mounted", m.Mountpoint)
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
}

// asksForDriver is the minor version since which kubelets take their cgroup
// driver from the runtime, whatever is configured.
const asksForDriver = 31

// settings returns the kubelet's configuration.
func (n *node) settings() map[string]any {
	score := -999
	if !mayLower() {
		score = 0
	}
	s := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"staticPodPath": n.pods, "fileCheckFrequency": "2s", "syncFrequency": "10s",
		"address": "127.0.0.1", "port": 10250, "readOnlyPort": 10255, "healthzPort": 10248,
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		"cgroupRoot":     n.runtime.cgroup, "cgroupsPerQOS": true, "enforceNodeAllocatable": []string{"pods"},
		"oomScoreAdj": score, "failSwapOn": false, "makeIPTablesUtilChains": false,
		"resolvConf": n.file("resolv.conf", "nameserver 192.0.2.53\n"),
		// Nothing is to be evicted or collected behind a test's back.
		"evictionHard":                map[string]string{"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100, "serializeImagePulls": false, "registryPullQPS": 0,
		"containerLogMaxSize": "64Ki", "containerLogMaxFiles": 100,
		"volumePluginDir":       filepath.Join(n.dir, "plugins"),
		"runtimeRequestTimeout": times(2 * time.Minute).String(),
	}
	if n.minor() >= 30 {
		s["containerLogMonitorInterval"] = "3s"
	}
	if n.minor() >= 27 {
		s["containerRuntimeEndpoint"] = n.runtime.endpoint
	}
	if n.minor() >= 31 {
		s["failCgroupV1"] = false
	}
	if n.minor() < asksForDriver || !n.runtime.tells {
		s["cgroupDriver"] = n.runtime.driver
	}
	maps.Copy(s, n.more)
	delete(s, kubeconfig)
	return s
}

// kubeconfig is the setting that is none of the kubelet's configuration, but a
// file: how an API server is reached.
const kubeconfig = "kubeconfig"

func (n *node) minor() int { return minorOf(n.version) }

// file writes a file of the node's and returns its path.
func (n *node) file(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// start starts the kubelet and waits until it says that it is healthy.
func (n *node) start() {
	n.t.Helper()
	if err := n.tryStart(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) tryStart() error {
	config, err := yaml.Marshal(n.settings())
	if err != nil {
		return err
	}
	args := []string{
		"--config", n.file("kubelet.yaml", string(config)), "--root-dir", filepath.Join(n.dir, "kubelet"),
		"--cert-dir", filepath.Join(n.dir, "certificates"), "--hostname-override", "node", "--node-ip", nodeAddress, "--v", "2",
	}
	if n.minor() < 27 {
		args = append(args, "--container-runtime", "remote", "--container-runtime-endpoint", n.runtime.endpoint, "--image-service-endpoint", n.runtime.endpoint)
	}
	if text, ok := n.more[kubeconfig].(string); ok {
		args = append(args, "--kubeconfig", n.file("kubeconfig", text))
	}
	logFile, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	n.cmd = exec.Command(self, args...)
	n.cmd.Env = append(os.Environ(), wrapped+"="+n.program)
	n.cmd.Stdout, n.cmd.Stderr = logFile, logFile
	n.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if err := n.cmd.Start(); err != nil {
		return err
	}
	n.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(n.cmd, n.ended)
	return n.awaitHealth(time.Minute)
}

func (n *node) awaitHealth(limit time.Duration) error {
	for deadline := time.Now().Add(times(limit)); ; time.Sleep(50 * time.Millisecond) {
		err := n.healthy()
		if err == nil {
			return nil
		}
		select {
		case ended := <-n.ended:
			n.ended <- ended
			return fmt.Errorf("the kubelet ended (%v); its log ends\n%s", ended, lastLines(n.log(), 20))
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kubelet is not healthy: %w", err)
		}
	}
}

// healthy asks the kubelet's /healthz.
func (n *node) healthy() error {
	resp, err := http.Get("http://127.0.0.1:10248/healthz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("healthz: %s", resp.Status)
	}
	return nil
}

// stop ends the kubelet; its pods run on.
func (n *node) stop() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(times(20 * time.Second)):
		n.t.Error("the kubelet did not end within 20 s of SIGTERM")
		_ = n.cmd.Process.Kill()
		<-n.ended
	}
	n.cmd = nil
}

func (n *node) log() string {
	text, err := os.ReadFile(n.logFile)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func lastLines(text string, count int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// wrapped names the environment variable that makes this program a kubelet.
const wrapped = "DAVIT_TEST_KUBELET"

// becomeKubelet runs in a mount namespace of its own, and puts files in front
// of the kernel's settings that a kubelet sets for the whole machine: they are
// not a test's to change. All other mounts stay shared with the runtime.
func becomeKubelet(program string, args []string) error {
	if err := unix.Mount("", "/proc", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		if err := cover(filepath.Join("/proc/sys", name)); err != nil {
			return fmt.Errorf("cover %s: %w", name, err)
		}
	}
	if err := os.Unsetenv(wrapped); err != nil {
		return err
	}
	return unix.Exec(program, append([]string{program}, args...), os.Environ())
}

// cover puts a copy of a file in front of it.
func cover(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "davit-setting-")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if _, err := f.Write(text); err != nil {
		return err
	}
	return unix.Mount(f.Name(), path, "", unix.MS_BIND, "")
}
