// Package nritest has a plugin of the Node Resource Interface for tests: a real
// one, by the library's stub, that notes what it is told.
package nritest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// A Plugin notes all that it is told. Its functions, where set, are called in
// the hook of that name; they may block and fail.
type Plugin struct {
	Index, Name string // "00", "test" unless set

	OnConfig    func(config, runtime string) error
	OnSync      func(pods []*api.PodSandbox, containers []*api.Container)
	OnRun       func(ctx context.Context, p *api.PodSandbox) error
	OnUpdatePod func(ctx context.Context, p *api.PodSandbox) error
	OnCreate    func(ctx context.Context, p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	OnStart     func(ctx context.Context, c *api.Container) error
	OnUpdate    func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error)
	OnStop      func(c *api.Container) ([]*api.ContainerUpdate, error)

	stub stub.Stub
	mu   sync.Mutex
	told []string
	more chan struct{} // closed and replaced with each event
}

// Join connects the plugin and returns once it has been synchronised. It leaves
// when the test ends, or by Leave.
func (p *Plugin) Join(t testing.TB, socket string) {
	t.Helper()
	if err := p.start(stub.WithSocketPath(socket)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Leave)
	p.Await(t, "Synchronize")
}

func (p *Plugin) start(options ...stub.Option) error {
	if p.Index == "" {
		p.Index = "00"
	}
	if p.Name == "" {
		p.Name = "test"
	}
	p.mu.Lock()
	if p.more == nil {
		p.more = make(chan struct{})
	}
	p.mu.Unlock()
	options = append(options, stub.WithPluginName(p.Name), stub.WithPluginIdx(p.Index), stub.WithLogger(silence{}), stub.WithOnClose(func() {}))
	s, err := stub.New(p, options...)
	if err != nil {
		return err
	}
	p.stub = s
	return s.Start(context.Background())
}

// Leave disconnects the plugin. Idempotent.
func (p *Plugin) Leave() { p.stub.Stop() }

// Run is a whole plugin that davitd has started.
func (p *Plugin) Run() error {
	p.more = make(chan struct{})
	s, err := stub.New(p, stub.WithLogger(silence{}))
	if err != nil {
		return err
	}
	p.stub = s
	return s.Run(context.Background())
}

// Change asks for updates outside any hook.
func (p *Plugin) Change(updates ...*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	return p.stub.UpdateContainers(updates)
}

// Told returns what the plugin has been told: "Event ID", where Synchronize has
// a line of its own and one for each pod and container.
func (p *Plugin) Told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// Of returns the events of one pod or container.
func (p *Plugin) Of(id string) []string {
	var events []string
	for _, line := range p.Told() {
		var event, about string
		if n, _ := fmt.Sscanf(line, "%s %s", &event, &about); n == 2 && about == id {
			events = append(events, event)
		}
	}
	return events
}

// Await waits until the plugin has been told line.
func (p *Plugin) Await(t testing.TB, line string) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		p.mu.Lock()
		more, there := p.more, slices.Contains(p.told, line)
		p.mu.Unlock()
		if there {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("the plugin was not told %q, but %q", line, p.Told())
		}
	}
}

func (p *Plugin) note(event, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, event+" "+id)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *Plugin) Configure(_ context.Context, config, runtime, _ string) (api.EventMask, error) {
	if p.OnConfig != nil {
		return 0, p.OnConfig(config, runtime)
	}
	return 0, nil
}

func (p *Plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	if p.OnSync != nil {
		p.OnSync(pods, containers)
	}
	for _, pod := range pods {
		p.note("SyncPod", pod.GetId())
	}
	for _, c := range containers {
		p.note("SyncContainer", c.GetId())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, "Synchronize")
	close(p.more)
	p.more = make(chan struct{})
	return nil, nil
}

func (p *Plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	p.note("RunPodSandbox", pod.GetId())
	if p.OnRun != nil {
		return p.OnRun(ctx, pod)
	}
	return nil
}

func (p *Plugin) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	p.note("UpdatePodSandbox", pod.GetId())
	if p.OnUpdatePod != nil {
		return p.OnUpdatePod(ctx, pod)
	}
	return nil
}

func (p *Plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("PostUpdatePodSandbox", pod.GetId())
	return nil
}

func (p *Plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("StopPodSandbox", pod.GetId())
	return nil
}

func (p *Plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("RemovePodSandbox", pod.GetId())
	return nil
}

func (p *Plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("CreateContainer", c.GetId())
	if p.OnCreate != nil {
		return p.OnCreate(ctx, pod, c)
	}
	return nil, nil, nil
}

func (p *Plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostCreateContainer", c.GetId())
	return nil
}

func (p *Plugin) StartContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("StartContainer", c.GetId())
	if p.OnStart != nil {
		return p.OnStart(ctx, c)
	}
	return nil
}

func (p *Plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostStartContainer", c.GetId())
	return nil
}

func (p *Plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("UpdateContainer", c.GetId())
	if p.OnUpdate != nil {
		return p.OnUpdate(c, r)
	}
	return nil, nil
}

func (p *Plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostUpdateContainer", c.GetId())
	return nil
}

func (p *Plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("StopContainer", c.GetId())
	if p.OnStop != nil {
		return p.OnStop(c)
	}
	return nil, nil
}

func (p *Plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("RemoveContainer", c.GetId())
	return nil
}

// silence is a log that nobody reads.
type silence struct{}

func (silence) Debugf(context.Context, string, ...any) {}
func (silence) Infof(context.Context, string, ...any)  {}
func (silence) Warnf(context.Context, string, ...any)  {}
func (silence) Errorf(context.Context, string, ...any) {}
