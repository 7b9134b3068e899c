package cadvisor

import (
	"maps"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/pod"
)

// A node is pods and containers, the latter in the order made.
type node struct {
	pods       map[string]*pod.Snapshot
	containers []*pod.ContainerSnapshot
}

func (n *node) Pod(id string) (*pod.Snapshot, error) {
	if p, ok := n.pods[id]; ok {
		return p, nil
	}
	return nil, fault.New(fault.NotFound, "", "no pod %q", id)
}

func (n *node) Emerging(id string) (*pod.ContainerSnapshot, error) {
	i := slices.IndexFunc(n.containers, func(c *pod.ContainerSnapshot) bool { return c.ID == id })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "", "no container %q", id)
	}
	return n.containers[i], nil
}

func (n *node) Live() (all []*pod.ContainerSnapshot) {
	for _, c := range n.containers {
		if mayRun(c) && c.State != pod.Preparing {
			all = append(all, c)
		}
	}
	return all
}

func (n *node) add(podID, id string, state pod.State) *pod.ContainerSnapshot {
	c := &pod.ContainerSnapshot{ID: id, PodID: podID, State: state, Config: &runtimeapi.ContainerConfig{}}
	n.containers = append(n.containers, c)
	return c
}

func onNetwork(mode runtimeapi.NamespaceMode) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: mode},
	}}}
}

// Of a pod's containers that may run one stands for its network, and goes on to
// while it runs.
func TestOneFaceEach(t *testing.T) {
	n := &node{pods: map[string]*pod.Snapshot{
		"web":    {ID: "web", Config: onNetwork(runtimeapi.NamespaceMode_POD)},
		"old":    {ID: "old", Config: onNetwork(runtimeapi.NamespaceMode_POD)},
		"host":   {ID: "host", Config: onNetwork(runtimeapi.NamespaceMode_NODE)},
		"shared": {ID: "shared", Config: onNetwork(runtimeapi.NamespaceMode_POD), HolderPid: 7},
	}}
	// What ran before davitd was started, and is not asked for again.
	n.add("old", "old1", pod.Running)
	n.add("old", "old2", pod.Running)
	b := &New(n, "").book
	network := func(id string) bool {
		t.Helper()
		s, err := b.find(id)
		if err != nil {
			t.Fatal(err)
		}
		return s.network
	}
	expect := func(want bool, id string) {
		t.Helper()
		if got := network(id); got != want {
			t.Errorf("%s stands for its pod's network: %v", id, got)
		}
	}
	expect(false, "old2")
	expect(true, "old1")

	begin := n.add("web", "init", pod.Preparing) // asked for as soon as its control group is there
	expect(true, "init")
	begin.State = pod.Exited
	main := n.add("web", "main", pod.Created)
	n.add("web", "sidecar", pod.Running)
	expect(true, "main")
	expect(false, "sidecar")
	expect(true, "main") // asked for twice
	expect(false, "init")
	main.State = pod.Exited
	n.add("web", "again", pod.Running)
	expect(false, "main") // exited: its control group lingers
	expect(true, "again")

	n.add("host", "host1", pod.Running)
	expect(false, "host1")
	n.add("shared", "shared1", pod.Running)
	expect(false, "shared1")
	expect(true, "shared")

	delete(n.pods, "web")
	delete(n.pods, "old")
	n.pods["next"] = &pod.Snapshot{ID: "next", Config: onNetwork(runtimeapi.NamespaceMode_POD)}
	n.add("next", "next1", pod.Running)
	expect(true, "next1")
	if kept := slices.Collect(maps.Keys(b.faces)); !slices.Equal(kept, []string{"next"}) {
		t.Errorf("remembers %v", kept)
	}
}
