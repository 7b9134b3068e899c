package pod

import (
	"context"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// Run makes a pod and returns its ID once it is ready.
//
// The work belongs to the pod's uid, namespace, name and attempt, not to ctx:
// when ctx ends, Run returns Unavailable, which names the step under way, and
// the work goes on. Calling it again joins that work, and returns the same ID.
// When the work fails, all that it acquired is released.
//
// It returns Exists for the name of a pod that was stopped and not removed.
func (p *Pods) Run(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if _, err := p.opt.Runtimes.Runtime(handler); err != nil {
		return "", err
	}
	pod, err := p.beginRun(ctx, config, handler)
	if err != nil {
		return "", err
	}
	if err := pod.making.Wait(ctx); err != nil {
		return "", err
	}
	return pod.id, nil
}

// beginRun returns the pod that config names and the operation that makes it,
// both new unless there are any.
func (p *Pods) beginRun(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (*pod, error) {
	encoded, err := protojson.Marshal(config)
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "pod configuration: %w", err)
	}
	key := keyOfPod(config)
	p.mu.Lock()
	defer p.mu.Unlock()
	if pod, ok := p.podKeys[key]; ok {
		if s := pod.state.Load(); s.State == NotReady {
			return nil, fault.New(fault.Exists, "", "pod %s/%s, attempt %d, is stopped but not removed yet: %s", key.namespace, key.name, key.attempt, s.ID)
		}
		return pod, nil
	}
	id := newID()
	pod := p.addPod(&podState{
		Snapshot: Snapshot{
			ID: id, Config: proto.CloneOf(config), Handler: handler, State: Preparing, CreatedAt: time.Now(),
		},
		podMemo: podMemo{
			Boot:  p.opt.Host.BootID,
			Place: p.opt.Cgroups.Place(config.GetLinux().GetCgroupParent(), id),
		},
		config: encoded,
	})
	pod.slot.Seize() // nobody else knows it yet
	pod.making = p.crew.Occupy(ctx, &pod.slot, "pod "+pod.id+": run", makeBudget, func(ctx context.Context) error {
		return p.makePod(ctx, key, pod)
	})
	p.podKeys[key] = pod
	return pod, nil
}

func (p *Pods) makePod(ctx context.Context, key podKey, pod *pod) error {
	p.opt.Cgroups.Expect() // its first container comes next
	err := acquire(ctx, pod, p.podSteps)
	if err == nil {
		err = p.tellRun(ctx, pod)
	}
	if err == nil {
		err = pod.commit(func(s *podState) error { return s.enter(made) })
	}
	if err == nil {
		return nil
	}
	p.mu.Lock()
	delete(p.podKeys, key) // a retry makes another
	p.mu.Unlock()
	_ = pod.note(func(s *podState) error { s.Doomed = true; return nil })
	if p.releaseNow(ctx, func(ctx context.Context) error { return p.losePod(ctx, pod) }) != nil {
		p.retryPod(pod)
	}
	return err
}

// CreateContainer makes a container in a ready pod and returns its ID. Its
// process is there then but runs nothing before StartContainer.
//
// The work belongs to the pod, the container's name and its attempt, as Run's
// does. It returns NotFound for an unknown pod or an image that is absent,
// Precondition if the pod is not ready, Exists if the name's container has
// been started already.
func (p *Pods) CreateContainer(ctx context.Context, podID string, config *runtimeapi.ContainerConfig) (string, error) {
	c, err := p.beginCreate(ctx, podID, config)
	if err != nil {
		return "", err
	}
	if err := c.making.Load().Wait(ctx); err != nil {
		return "", err
	}
	return c.id, nil
}

func (p *Pods) beginCreate(ctx context.Context, podID string, config *runtimeapi.ContainerConfig) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod, err := find(p.pods, podID, "pod")
	if err != nil {
		return nil, err
	}
	// Under p.mu, so that a stop, which looks for containers once the pod is
	// not ready any more, finds this one.
	ps := pod.state.Load()
	if ps.State != Ready {
		return nil, fault.New(fault.Precondition, "", "pod %s is %s", pod.id, ps.State)
	}
	key := keyOfContainer(pod.id, config)
	if c, ok := p.containerKeys[key]; ok {
		if s := c.state.Load(); s.Doomed || s.State != Preparing && s.State != Created {
			return nil, fault.New(fault.Exists, "", "container %s of pod %s, attempt %d, is %s: %s", key.name, pod.id, key.attempt, s.State, s.ID)
		}
		return c, nil
	}
	s, err := p.newContainer(ps, config)
	if err != nil {
		return nil, err
	}
	c := p.addContainer(s)
	c.slot.Seize() // nobody else knows it yet
	c.making.Store(p.crew.Occupy(ctx, &c.slot, "container "+c.id+": create", makeBudget, func(ctx context.Context) error {
		return p.makeContainer(ctx, key, c)
	}))
	p.containerKeys[key] = c
	return c, nil
}

// newContainer returns a container's first state. Invalid if it cannot be
// written down, or its log would leave the pod's log directory.
func (p *Pods) newContainer(pod *podState, config *runtimeapi.ContainerConfig) (*containerState, error) {
	s := &containerState{}
	s.ID, s.PodID, s.Handler = newID(), pod.ID, pod.Handler
	s.State, s.CreatedAt = Preparing, time.Now()
	s.Config = proto.CloneOf(config)
	var err error
	if s.config, err = protojson.Marshal(config); err != nil {
		return nil, fault.New(fault.Invalid, "", "container configuration: %w", err)
	}
	s.Resources = &runtimeapi.LinuxContainerResources{}
	if r := config.GetLinux().GetResources(); r != nil {
		s.Resources = proto.CloneOf(r)
	}
	s.Resources = p.inForce(s.Resources)
	if dir, path := pod.Config.GetLogDirectory(), config.GetLogPath(); dir != "" && path != "" {
		if !filepath.IsLocal(path) {
			return nil, fault.New(fault.Invalid, "", "log path %q leaves the pod's log directory", path)
		}
		s.LogPath = filepath.Join(dir, path)
	}
	s.Place = p.opt.Cgroups.Place(pod.Config.GetLinux().GetCgroupParent(), s.ID)
	return s, nil
}

func (p *Pods) makeContainer(ctx context.Context, key containerKey, c *container) error {
	defer func() { c.recipe = nil }()
	p.opt.Cgroups.Expect()
	err := p.findImage(c)
	if err == nil {
		err = acquire(ctx, c, p.containerSteps)
	}
	if err == nil {
		err = c.commit(func(s *containerState) error { return s.enter(made) })
	}
	if err == nil {
		c.mu.Lock()
		early := c.early
		c.mu.Unlock()
		if early != nil {
			p.exited(*early)
		}
		p.tellCreated(ctx, c)
		return nil
	}
	p.mu.Lock()
	delete(p.containerKeys, key) // a retry makes another
	p.mu.Unlock()
	_ = c.note(func(s *containerState) error { s.Doomed = true; return nil })
	if p.releaseNow(ctx, func(ctx context.Context) error { return p.loseContainer(ctx, c) }) != nil {
		p.retryContainer(c)
	}
	return err
}

// releaseNow runs f with a time limit of its own: that of what failed may be over.
func (p *Pods) releaseNow(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(span.Attach(p.crew.Context(), span.From(ctx)), releaseBudget)
	defer cancel()
	return f(ctx)
}
