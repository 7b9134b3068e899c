package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/nri"
	"github.com/davit-runtime/davit/internal/nri/nritest"
	"github.com/davit-runtime/davit/internal/testkit"
)

// openWithPlugins starts davitd and what plugins connect to.
func (n *node) openWithPlugins() (d *daemon, socket string) {
	n.t.Helper()
	socket = filepath.Join(n.t.TempDir(), "nri.sock")
	plugins := nri.New(nri.Config{
		Socket: socket, PluginDir: filepath.Join(n.t.TempDir(), "none"),
		Log: slog.New(slog.NewTextHandler(testkit.Output(n.t), nil)), RequestTimeout: 20 * time.Second,
	})
	n.hooks = plugins
	d = n.open()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = plugins.Run(ctx, d.Pods) }()
	stop := d.stop
	d.stop = sync.OnceFunc(func() { cancel(); <-done; stop() })
	n.t.Cleanup(d.stop)
	leave, _, err := plugins.Enter(n.t.Context()) // it has started
	must(n.t, err)
	leave()
	return d, socket
}

var (
	podLife       = []string{"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"}
	containerLife = []string{"CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "StopContainer", "RemoveContainer"}
)

func wantTold(t *testing.T, p *nritest.Plugin, id string, want ...string) {
	t.Helper()
	if got := p.Of(id); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// Plugins hear of a whole life, each thing once and in order; a container that
// exits by itself included. Calls that come twice tell nothing twice.
func TestPluginsHearOfALife(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	p := &nritest.Plugin{}
	p.Join(t, socket)
	podID, id := n.run(d, "web", shared)
	must(t, d.UpdateContainer(t.Context(), id, &runtimeapi.LinuxContainerResources{CpuShares: 9}))
	second, err := d.CreateContainer(t.Context(), podID, containerConfig("second"))
	must(t, err)
	must(t, d.StartContainer(t.Context(), second))
	n.die(second, 3)
	p.Await(t, "StopContainer "+second)
	for range 2 {
		must(t, d.StopContainer(t.Context(), id, time.Second))
		must(t, d.Stop(t.Context(), podID))
	}
	if told := p.Told(); told[len(told)-1] != "StopPodSandbox "+podID {
		t.Errorf("the pod stopped before its containers: %q", told)
	}
	for range 2 {
		must(t, d.Remove(t.Context(), podID))
	}
	wantTold(t, p, podID, podLife...)
	wantTold(t, p, second, containerLife...)
	wantTold(t, p, id, "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
		"UpdateContainer", "PostUpdateContainer", "StopContainer", "RemoveContainer")
	if n.clean(); d.podOf(&container{podID: "gone"}).ID != "gone" {
		t.Error("the pod of an orphan")
	}
}

// A plugin learns of what there is when it joins, and so does one that joins a
// davitd that was started again. It hears of the ends of all that.
func TestPluginsLearnWhatThereIs(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	podID, id := n.run(d, "web", private)
	ended, err := d.CreateContainer(t.Context(), podID, containerConfig("ended"))
	must(t, err)
	must(t, d.StopContainer(t.Context(), ended, 0))
	check := func(d *daemon, socket string) *nritest.Plugin {
		p := &nritest.Plugin{OnSync: func(pods []*api.PodSandbox, containers []*api.Container) {
			if len(pods) != 1 || len(containers) != 1 || containers[0].GetState() != api.ContainerState_CONTAINER_RUNNING {
				t.Errorf("told of %v %v", pods, containers)
			}
		}}
		p.Join(t, socket)
		wantTold(t, p, podID, "SyncPod")
		wantTold(t, p, id, "SyncContainer")
		return p
	}
	check(d, socket)
	d.stop()
	d, socket = n.openWithPlugins()
	p := check(d, socket)
	must(t, d.Remove(t.Context(), podID))
	wantTold(t, p, podID, "SyncPod", "StopPodSandbox", "RemovePodSandbox")
	wantTold(t, p, id, "SyncContainer", "StopContainer", "RemoveContainer")
	n.clean()
}

// What plugins adjust is in the bundle, is what is applied, and is what the
// container's status says. What they want of other containers is done first.
func TestPluginAdjusts(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	podID, other := n.run(d, "web", private)
	p := &nritest.Plugin{OnCreate: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddAnnotation("by", "plugin")
		a.SetLinuxCPUShares(321)
		a.SetLinuxMemoryLimit(1 << 30)
		a.SetLinuxCgroupsPath("/elsewhere/" + c.GetId())
		score := -500
		a.SetLinuxOomScoreAdj(&score)
		return a, []*api.ContainerUpdate{sharesOf(other, 55)}, nil
	}}
	p.Join(t, socket)
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("adjusted"))
	must(t, err)
	if c, _ := d.Container(other); c.Resources.CpuShares != 55 {
		t.Errorf("the other's limits: %v", c.Resources)
	}
	must(t, d.StartContainer(t.Context(), id))
	c, err := d.Container(id)
	must(t, err)
	if r := c.Resources; r.CpuShares != 321 || r.MemoryLimitInBytes != 1<<30 || r.OomScoreAdj != 0 { // as clamped
		t.Errorf("limits %v", r)
	}
	if last := n.limits[len(n.limits)-1]; last.CpuShares != 321 {
		t.Errorf("applied at start: %v", last)
	}
	data, err := os.ReadFile(filepath.Join(d.bundle(id), "config.json"))
	must(t, err)
	var spec specs.Spec
	must(t, json.Unmarshal(data, &spec))
	if spec.Annotations["by"] != "plugin" || *spec.Linux.Resources.Memory.Limit != 1<<30 || spec.Linux.CgroupsPath != "/elsewhere/"+id {
		t.Errorf("bundle %s", data)
	}
	if spec.Process.OOMScoreAdj == nil || *spec.Process.OOMScoreAdj != 0 {
		t.Error("the OOM score is not clamped to what this host allows")
	}
	if place := d.containers[id].state.Load().Place; place.Path != "/elsewhere/"+id {
		t.Errorf("place %+v", place)
	}
	theirs := d.containers[other].state.Load().Place.Path
	for _, bad := range []string{
		"relative", "/a//b", "a.slice:x:y", "/", "/elsewhere", theirs, filepath.Dir(theirs), "/system/sshd", // not its own
		theirs + "/$ID", theirs + "/x/$ID", "/elsewhere/" + id + "/$ID", "/x/../$ID", "/x/$ID/", // where it goes with another, or not clean
	} {
		p.OnCreate = func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.SetLinuxCgroupsPath(strings.ReplaceAll(bad, "$ID", c.GetId()))
			return a, nil, nil
		}
		if _, err = d.CreateContainer(t.Context(), podID, containerConfig("bad")); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	must(t, d.Remove(t.Context(), podID))
}

func sharesOf(id string, shares uint64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{ContainerId: id}
	u.SetLinuxCPUShares(shares)
	return u
}

// Plugins answer updates and stops with updates, ask for some on their own, and evict.
func TestPluginUpdates(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	podID, id := n.run(d, "web", private)
	other, err := d.CreateContainer(t.Context(), podID, containerConfig("other"))
	must(t, err)
	p := &nritest.Plugin{
		OnUpdate: func(c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
			return []*api.ContainerUpdate{sharesOf(c.GetId(), 20), sharesOf(other, 30)}, nil
		},
		OnStop: func(*api.Container) ([]*api.ContainerUpdate, error) {
			return []*api.ContainerUpdate{sharesOf(other, 40)}, nil // not for itself
		},
	}
	p.Join(t, socket)
	shares := func(id string) int64 {
		c, err := d.Container(id)
		must(t, err)
		return c.Resources.CpuShares
	}
	must(t, d.UpdateContainer(t.Context(), id, &runtimeapi.LinuxContainerResources{CpuShares: 10, CpusetCpus: "0"}))
	if c, _ := d.Container(id); c.Resources.CpuShares != 20 || c.Resources.CpusetCpus != "0" || shares(other) != 30 {
		t.Errorf("%v, the other %d", c.Resources, shares(other))
	}
	failed, err := p.Change(sharesOf(id, 21), sharesOf("unknown", 1))
	must(t, err)
	if len(failed) != 1 || shares(id) != 21 {
		t.Errorf("failed %v, shares %d", failed, shares(id))
	}
	must(t, d.StopContainer(t.Context(), id, 0))
	if got := shares(other); got != 40 {
		t.Errorf("after the stop of the first: %d", got)
	}
	d.Apply(t.Context(), nri.Answer{Evictions: []nri.Eviction{{ID: other, Reason: "room"}}})
	p.Await(t, "StopContainer "+other)
	if c, _ := d.Container(other); c.State != Exited {
		t.Errorf("evicted: %v", c.State)
	}
	must(t, d.UpdatePod(t.Context(), podID, nil, &runtimeapi.LinuxContainerResources{CpuShares: 7}))
	if pod, _ := d.Pod(podID); pod.Config.Linux.Resources.GetCpuShares() != 7 {
		t.Errorf("the pod's resources: %v", pod.Config.Linux.Resources)
	}
	p.OnUpdatePod = func(context.Context, *api.PodSandbox) error { return errors.New("no") }
	wantKind(t, d.UpdatePod(t.Context(), podID, nil, &runtimeapi.LinuxContainerResources{CpuShares: 8}), fault.Precondition)
	if pod, _ := d.Pod(podID); pod.Config.Linux.Resources.GetCpuShares() != 7 {
		t.Errorf("changed against a veto: %v", pod.Config.Linux.Resources)
	}
	wantTold(t, p, podID, "SyncPod", "UpdatePodSandbox", "PostUpdatePodSandbox", "UpdatePodSandbox")
	must(t, d.Remove(t.Context(), podID))
}

// Whoever tells plugins of a container's end, each stop returns once what they
// then want is done. One that its caller does not wait for has succeeded, for
// the container has ended.
func TestStopWaitsForPlugins(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	podID, id := n.run(d, "web", private)
	other, err := d.CreateContainer(t.Context(), podID, containerConfig("other"))
	must(t, err)
	p := &nritest.Plugin{OnStop: func(c *api.Container) ([]*api.ContainerUpdate, error) {
		return []*api.ContainerUpdate{sharesOf(other, 40)}, nil
	}}
	p.Join(t, socket)
	applied := make(chan struct{})
	n.mu.Lock()
	n.hang["Cgroups.Limit"] = applied
	n.mu.Unlock()
	must(t, d.opt.Processes.Signal(t.Context(), id, 9)) // somebody else's: what hears of it tells of it
	p.Await(t, "StopContainer "+id)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	must(t, d.StopContainer(short, id, 0))
	stopped := make(chan error, 1)
	go func() { stopped <- d.StopContainer(t.Context(), id, 0) }()
	select {
	case err := <-stopped:
		t.Errorf("it came back (%v) before the plugin's answer was applied", err)
	case <-time.After(50 * time.Millisecond):
		close(applied)
		must(t, <-stopped)
	}
	if c, _ := d.Container(other); c.Resources.CpuShares != 40 {
		t.Errorf("after the stop: %v", c.Resources)
	}
	must(t, d.Remove(t.Context(), podID))
}

// What plugins object to does not happen, and leaves nothing.
func TestPluginObjects(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	objection := errors.New("objection")
	var mu sync.Mutex
	var podID, id string
	p := &nritest.Plugin{
		OnRun: func(_ context.Context, pod *api.PodSandbox) error {
			mu.Lock()
			defer mu.Unlock()
			podID = pod.GetId()
			return objection
		},
		OnCreate: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			mu.Lock()
			defer mu.Unlock()
			id = c.GetId()
			return nil, nil, objection
		},
		OnStart:  func(context.Context, *api.Container) error { return objection },
		OnUpdate: func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error) { return nil, objection },
	}
	p.Join(t, socket)
	_, err := d.Run(t.Context(), podConfig("web", private), "")
	wantKind(t, err, fault.Precondition)
	wantTold(t, p, podID, podLife...)
	n.clean()

	p.OnRun = nil
	podID, err = d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	_, err = d.CreateContainer(t.Context(), podID, containerConfig("main"))
	wantKind(t, err, fault.Precondition)
	wantTold(t, p, id, "CreateContainer", "StopContainer", "RemoveContainer")
	if len(d.Containers()) != 0 || len(n.procs) != 0 {
		t.Errorf("left: %v %v", d.Containers(), n.procs)
	}

	p.OnCreate = nil
	id, err = d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	wantKind(t, d.UpdateContainer(t.Context(), id, &runtimeapi.LinuxContainerResources{CpuShares: 9}), fault.Precondition)
	if c, _ := d.Container(id); c.Resources.CpuShares != 0 || len(n.limits) != 0 {
		t.Errorf("limits changed: %v, %v", c.Resources, n.limits)
	}
	wantKind(t, d.StartContainer(t.Context(), id), fault.Precondition)
	if c, _ := d.Container(id); c.State != Exited || c.Reason != "StartError" {
		t.Errorf("%+v", c)
	}
	must(t, d.Remove(t.Context(), podID))
	wantTold(t, p, id, "CreateContainer", "PostCreateContainer", "UpdateContainer", "StartContainer", "StopContainer", "RemoveContainer")
	n.clean()
}

// While plugins are asked about a pod or container, neither is there for others.
func TestHiddenWhilePluginsThink(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	reached, goOn := make(chan string), make(chan struct{})
	p := &nritest.Plugin{
		OnRun: func(_ context.Context, pod *api.PodSandbox) error { reached <- pod.GetId(); <-goOn; return nil },
		OnCreate: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			reached <- c.GetId()
			<-goOn
			return nil, nil, nil
		},
	}
	p.Join(t, socket)
	done := make(chan error)
	go func() { _, err := d.Run(t.Context(), podConfig("web", private), ""); done <- err }()
	podID := <-reached
	if pods := d.List(); len(pods) != 0 {
		t.Errorf("listed: %+v", pods[0])
	}
	_, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
	wantKind(t, err, fault.Precondition)
	goOn <- struct{}{}
	must(t, <-done)
	go func() { _, err := d.CreateContainer(t.Context(), podID, containerConfig("main")); done <- err }()
	id := <-reached
	_, err = d.Container(id)
	wantKind(t, err, fault.NotFound)
	if all := d.Containers(); len(all) != 0 {
		t.Errorf("listed: %+v", all[0])
	}
	goOn <- struct{}{}
	must(t, <-done)
	must(t, d.Remove(t.Context(), podID))
}

// Plugins that join while pods come and go learn of each exactly once.
func TestPluginsJoinWithoutARace(t *testing.T) {
	n := newNode(t)
	d, socket := n.openWithPlugins()
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string][]string{} // of pods and containers, with their lives
	for i := range 4 {
		wg.Go(func() {
			for k := range 3 {
				podID, err := d.Run(t.Context(), podConfig(fmt.Sprintf("p%d-%d", i, k), private), "")
				if err != nil {
					t.Error(err)
					return
				}
				var own []string
				for _, name := range []string{"a", "b"} {
					id, err := d.CreateContainer(t.Context(), podID, containerConfig(name))
					if err == nil {
						err = d.StartContainer(t.Context(), id)
					}
					if err != nil {
						t.Error(err)
						return
					}
					own = append(own, id)
				}
				n.die(own[1], 1)
				if err := d.Remove(t.Context(), podID); err != nil {
					t.Error(err)
				}
				mu.Lock()
				ids[podID] = podLife
				for _, id := range own {
					ids[id] = containerLife
				}
				mu.Unlock()
			}
		})
	}
	var plugins []*nritest.Plugin
	for i := range 4 {
		p := &nritest.Plugin{Index: fmt.Sprintf("%02d", i), OnSync: func(_ []*api.PodSandbox, containers []*api.Container) {
			for _, c := range containers {
				if c.GetLinux().GetCgroupsPath() == "" {
					t.Errorf("told of %.8s, but not what is in its bundle", c.GetId())
				}
			}
		}}
		p.Join(t, socket)
		plugins = append(plugins, p)
	}
	wg.Wait()
	whole := 0
	for _, p := range plugins {
		for id, life := range ids {
			got := p.Of(id)
			if slices.Equal(got, life) {
				whole++
			}
			if len(got) > 0 && strings.HasPrefix(got[0], "Sync") {
				got = got[1:]
			} else if len(got) > 0 && got[0] != life[0] && got[0] != "RemoveContainer" { // that of one that had ended
				t.Errorf("plugin %s heard of %.8s from the middle: %q", p.Index, id, got)
			}
			if want := life[len(life)-len(got):]; !slices.Equal(got, want) {
				t.Errorf("plugin %s heard of %.8s: %q, want %q", p.Index, id, got, want)
			}
		}
	}
	if whole == 0 {
		t.Error("no plugin joined in time to hear of a whole life")
	}
	n.clean()
}

// Without plugins, hooks cost next to nothing.
func TestHooksCostNothing(t *testing.T) {
	n := newNode(t)
	d, _ := n.openWithPlugins()
	podID, id := n.run(d, "web", private)
	pod, c := d.pods[podID], d.containers[id]
	allocs := testing.AllocsPerRun(100, func() {
		_ = d.tellRun(t.Context(), pod)
		_ = d.tellCreate(t.Context(), c, &specs.Spec{}, func() error { return nil })
		d.tellCreated(t.Context(), c)
		_ = d.tellStart(t.Context(), c)
		d.tellStarted(t.Context(), c)
	})
	if allocs > 30 {
		t.Errorf("%v allocations", allocs)
	}
	t.Logf("%v allocations for five hooks", allocs)
	must(t, d.Remove(t.Context(), podID))
}
