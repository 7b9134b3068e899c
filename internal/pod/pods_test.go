package pod

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/network"
)

// A pod's and a container's life, as the kubelet has it.
func TestLife(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, id := n.run(d, "web", shared)
	s, err := d.Pod(podID[:12])
	must(t, err)
	if s.State != Ready || s.HolderPid == 0 || s.Paths["pid"] == "" || s.Network.Driver != "fake" {
		t.Errorf("pod: %+v", s)
	}
	c, err := d.Container(id[:12])
	must(t, err)
	if c.State != Running || c.StartedAt.IsZero() || c.Pid == 0 || c.StopSignal != "SIGTERM" {
		t.Errorf("container: %+v", c)
	}
	must(t, d.StopContainer(t.Context(), id, 1e9))
	if c, err = d.Container(id); err != nil || c.State != Exited || c.ExitCode != 143 || c.Reason != "Error" {
		t.Errorf("container: %+v, %v", c, err)
	}
	must(t, d.Stop(t.Context(), podID))
	if s, err = d.Pod(podID); err != nil || s.State != NotReady || len(s.Held) > 0 {
		t.Errorf("pod: %+v, %v", s, err)
	}
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}

func TestFind(t *testing.T) {
	all := map[string]int{"aabb": 1, "aacc": 2, "dd": 3}
	for id, want := range map[string]int{"aabb": 1, "aab": 1, "d": 3} {
		if got, err := find(all, id, "pod"); err != nil || got != want {
			t.Errorf("%q: %d, %v", id, got, err)
		}
	}
	for id, kind := range map[string]fault.Kind{"": fault.NotFound, "x": fault.NotFound, "aabbc": fault.NotFound, "aa": fault.Invalid} {
		_, err := find(all, id, "pod")
		wantKind(t, err, kind)
	}
}

// What the network is told of a pod, and the resolver without a configuration.
func TestPodEdges(t *testing.T) {
	n := newNode(t)
	opt := n.options()
	opt.Host.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(opt.Host.ResolvConf, []byte("nameserver 1.2.3.4\n"), 0o600))
	p, err := Open(t.Context(), opt)
	must(t, err)
	defer p.Close()
	config := podConfig("web", private)
	config.DnsConfig, config.Linux.CgroupParent = nil, ""
	config.PortMappings = []*runtimeapi.PortMapping{
		{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1", Protocol: runtimeapi.Protocol_UDP},
		{ContainerPort: 81},
	}
	id, err := p.Run(t.Context(), config, "")
	must(t, err)
	pod, err := p.findPod(id)
	must(t, err)
	got := p.networkPod(pod.state.Load())
	want := network.Port{Protocol: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, ContainerPort: 80}
	if len(got.Ports) != 1 || got.Ports[0] != want || got.NetNS != filepath.Join(n.state, "pods", id, "net") || got.UID != "uid-web" {
		t.Errorf("%+v", got)
	}
	if resolv, _ := os.ReadFile(filepath.Join(n.state, "pods", id, "resolv.conf")); string(resolv) != "nameserver 1.2.3.4\n" {
		t.Errorf("%q", resolv)
	}
	if !slices.Contains(n.names(), "Cgroups.Prepare") {
		t.Error("davit's own control group was not prepared")
	}
	other, err := p.Run(t.Context(), podConfig("other", private), "")
	must(t, err)
	target, err := p.CreateContainer(t.Context(), other, containerConfig("main"))
	must(t, err)
	for ref, kind := range map[string]fault.Kind{target: fault.Invalid, "absent": fault.NotFound} {
		cc := containerConfig("debug")
		cc.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: ref},
		}}
		_, err = p.CreateContainer(t.Context(), id, cc)
		wantKind(t, err, kind)
	}
}

// Exits are watched again after the watch broke.
func TestWatchBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.fail["Sessions.Watch"] = errors.New("broken")
		d := n.open()
		_, id := n.run(d, "web", private)
		n.die(id, 5)
		time.Sleep(time.Minute)
		if c, _ := d.Container(id); c.State != Running {
			t.Errorf("%+v", c)
		}
		n.set(func() { clear(n.fail) })
		time.Sleep(2 * time.Minute)
		if c, _ := d.Container(id); c.State != Exited || c.ExitCode != 5 {
			t.Errorf("%+v", c)
		}
	})
}
