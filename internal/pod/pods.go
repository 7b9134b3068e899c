// Package pod is the core: what pods and containers are, what they hold, and
// how they change.
//
// It owns their records (one directory each, one file, replaced whole) and is
// the only one to change their state. Everything that touches the kernel, an
// image or a process is a driver behind the interfaces in drivers.go; the few
// mounts of a pod's own are in podsteps.go. Package cri calls it.
//
// Nothing is acquired before it is written down. No lock is held across I/O,
// exec or RPC, save a record's own for its one small file. Reading waits for
// nothing. No work ends because its caller has gone.
//
//	Open(ctx, Options) (*Pods, error)            load records, recover; then it may be served
//	(*Pods) Serve(ctx) error                     watch exits and retry releases until ctx ends
//	(*Pods) Close()                              end what is under way, as a crash would; wait
//	(*Pods) Run(ctx, config, handler) (id, error)
//	(*Pods) Stop, Remove(ctx, id) error          idempotent; unknown IDs succeed
//	(*Pods) Pod(id) (*Snapshot, error), List()   id: any unique prefix; never blocks
//	(*Pods) CreateContainer(ctx, podID, config) (id, error)
//	(*Pods) StartContainer(ctx, id); StopContainer(ctx, id, grace); RemoveContainer(ctx, id)
//	(*Pods) Container(id), Live(), EachContainer()  never blocks
//	(*Pods) UpdateContainer(ctx, id, resources); ReopenLog(ctx, id)
//	(*Pods) Exec(ctx, id, args, timeout); ExecStream(ctx, id, args, stream); Attach(ctx, id, stream)
//	(*Pods) Subscribe(ctx)                       events from now on; nobody waits for a reader
package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/operation"
	"github.com/davit-runtime/davit/internal/store"
)

// How long operations may take, whoever waits for them.
const (
	makeBudget    = 5 * time.Minute // of a pod or a container
	startBudget   = 2 * time.Minute
	releaseBudget = time.Minute
)

// Options are what Open needs. All drivers are required.
type Options struct {
	Root  string // records and volumes; outlives a boot
	State string // what a boot ends: pinned namespaces, bundles; a tmpfs
	Log   *slog.Logger
	Host  Host
	Specs Specs

	Namespaces Namespaces
	Network    Network
	Rootfs     Rootfs
	Cgroups    Cgroups
	Processes  Processes
	Sessions   Sessions
	Runtimes   Runtimes
	Hooks      Hooks // nil: no plugins

	mounts mounts                                      // the kernel's if nil
	save   func(path string, version int, v any) error // store.SaveJSON if nil
}

// Pods is all pods and containers of one davitd.
type Pods struct {
	opt            Options
	log            *slog.Logger
	crew           *operation.Crew
	podSteps       []step[*pod]
	containerSteps []step[*container]
	leftovers      []func(context.Context) // what recovery leaves to Serve
	board          board

	mu            sync.RWMutex // for the maps: never held across anything that waits
	pods          map[string]*pod
	containers    map[string]*container
	ofPods        map[string][]*container // by pod ID
	podKeys       map[podKey]*pod
	containerKeys map[containerKey]*container
}

// A podKey is whose an operation on a pod is. CRI: api.proto, PodSandboxMetadata.
type podKey struct {
	uid, namespace, name string
	attempt              uint32
}

// A containerKey is whose an operation on a container is.
type containerKey struct {
	podID, name string
	attempt     uint32
}

// Open loads the records below opt.Root, compares them with what the drivers
// know and says what became of each; what it finds damaged, it moves aside.
// What has to be released is left to Serve. It returns Unavailable if
// davit-monitor does not answer.
func Open(ctx context.Context, opt Options) (*Pods, error) {
	if opt.mounts == nil {
		opt.mounts = kernelMounts{}
	}
	if opt.save == nil {
		opt.save = store.SaveJSON
	}
	if opt.Host.ResolvConf == "" {
		opt.Host.ResolvConf = "/etc/resolv.conf"
	}
	if opt.Host.BootID == "" {
		id, err := store.BootID()
		if err != nil {
			return nil, err
		}
		opt.Host.BootID = id
	}
	p := &Pods{
		opt: opt, log: opt.Log, crew: operation.NewCrew(ctx, opt.Log),
		pods: map[string]*pod{}, containers: map[string]*container{}, ofPods: map[string][]*container{},
		podKeys: map[podKey]*pod{}, containerKeys: map[containerKey]*container{},
	}
	p.podSteps = p.stepsOfPods()
	p.containerSteps = p.stepsOfContainers()
	for _, dir := range []string{opt.Root, opt.State} {
		for _, kind := range []string{"pods", "containers"} {
			if err := os.MkdirAll(filepath.Join(dir, kind), 0o711); err != nil {
				return nil, err
			}
		}
	}
	if err := p.recover(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Serve finishes what recovery found, takes in containers' exits until ctx
// ends, and then waits for all work in the background, as Close does.
func (p *Pods) Serve(ctx context.Context) error {
	defer p.Close()
	p.finishRecovery()
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		from := time.Now()
		err := p.opt.Sessions.Watch(ctx, p.exited)
		if ctx.Err() != nil {
			return nil
		}
		p.log.Warn("lost sight of the containers' exits", "error", err)
		if time.Since(from) > retryMost {
			wait = retryFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// finishRecovery begins what recovery left, a few at a time.
func (p *Pods) finishRecovery() {
	turn := make(chan struct{}, 8)
	for _, f := range p.leftovers {
		p.crew.Start(func(ctx context.Context) {
			select {
			case turn <- struct{}{}:
				f(ctx)
				<-turn
			case <-ctx.Done():
			}
		})
	}
	p.leftovers = nil
}

// Close ends operations under way, as a crash would, and waits for them. What
// they held is released after the next Open. Idempotent.
func (p *Pods) Close() { p.crew.Dismiss() }

// Pod returns one pod. NotFound if there is none.
func (p *Pods) Pod(id string) (*Snapshot, error) {
	pod, err := p.findPod(id)
	if err != nil {
		return nil, err
	}
	return &pod.state.Load().Snapshot, nil
}

// List returns all pods, the oldest first, but for those that plugins are just
// asked about.
func (p *Pods) List() []*Snapshot {
	p.mu.RLock()
	all := make([]*Snapshot, 0, len(p.pods))
	for _, pod := range p.pods {
		if !pod.hidden.Load() {
			all = append(all, &pod.state.Load().Snapshot)
		}
	}
	p.mu.RUnlock()
	slices.SortFunc(all, func(a, b *Snapshot) int {
		return cmpAge(a.CreatedAt, b.CreatedAt, a.ID, b.ID)
	})
	return all
}

// Container returns one container. NotFound if there is none, or not yet.
func (p *Pods) Container(id string) (*ContainerSnapshot, error) {
	c, err := p.findContainer(id)
	if err != nil {
		return nil, err
	}
	s := c.state.Load()
	if s.State == Preparing {
		return nil, fault.New(fault.NotFound, "", "container %s is not made yet", c.id)
	}
	return &s.ContainerSnapshot, nil
}

// Emerging returns one container as Container does, also while it is made.
func (p *Pods) Emerging(id string) (*ContainerSnapshot, error) {
	c, err := p.findContainer(id)
	if err != nil {
		return nil, err
	}
	return &c.state.Load().ContainerSnapshot, nil
}

// Live returns the containers that are created or run, the oldest first.
func (p *Pods) Live() []*ContainerSnapshot {
	p.mu.RLock()
	all := slices.Collect(maps.Values(p.containers))
	p.mu.RUnlock()
	var live []*ContainerSnapshot
	for _, s := range byAge(all) { // unpacks none
		if s.State == Created || s.State == Running {
			live = append(live, &s.ContainerSnapshot)
		}
	}
	return live
}

// EachContainer returns all containers that have been made, the oldest first.
// Of the configuration of those that have exited it shows name, image, labels
// and annotations only; and no user, limits or log path.
func (p *Pods) EachContainer() iter.Seq[*ContainerSnapshot] {
	p.mu.RLock()
	all := slices.Collect(maps.Values(p.containers))
	p.mu.RUnlock()
	return func(yield func(*ContainerSnapshot) bool) {
		for _, s := range byAge(all) {
			if !yield(s.brief()) {
				return
			}
		}
	}
}

// ContainersOf returns a pod's containers that have been made, the oldest first.
func (p *Pods) ContainersOf(podID string) []*ContainerSnapshot {
	var all []*ContainerSnapshot
	for _, s := range byAge(p.containersOf(podID)) {
		all = append(all, &s.whole().ContainerSnapshot)
	}
	return all
}

// byAge returns the states of all that have been made, as they are kept.
func byAge(all []*container) []*containerState {
	states := make([]*containerState, 0, len(all))
	for _, c := range all {
		if s := c.state.kept.Load(); s.State != Preparing {
			states = append(states, s)
		}
	}
	slices.SortFunc(states, func(a, b *containerState) int {
		return cmpAge(a.CreatedAt, b.CreatedAt, a.ID, b.ID)
	})
	return states
}

// States counts pods and containers by their state.
func (p *Pods) States() (pods, containers map[State]int) {
	pods, containers = map[State]int{}, map[State]int{}
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, pod := range p.pods {
		pods[pod.state.Load().State]++
	}
	for _, c := range p.containers {
		containers[c.state.kept.Load().State]++
	}
	return pods, containers
}

func cmpAge(a, b time.Time, aID, bID string) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return strings.Compare(aID, bID)
}

func (p *Pods) findPod(id string) (*pod, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return find(p.pods, id, "pod")
}

func (p *Pods) findContainer(id string) (*container, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return find(p.containers, id, "container")
}

// find looks up an ID or a unique prefix of one. It returns NotFound, or
// Invalid if several begin like it.
func find[E any](all map[string]E, id, what string) (found E, err error) {
	if e, ok := all[id]; ok {
		return e, nil
	}
	n := 0
	if id != "" && len(id) < idDigits {
		for full, e := range all {
			if strings.HasPrefix(full, id) {
				found = e
				n++
			}
		}
	}
	var none E
	switch n {
	case 0:
		return none, fault.New(fault.NotFound, "", "no %s %q", what, id)
	case 1:
		return found, nil
	}
	return none, fault.New(fault.Invalid, "", "%d %ss begin with %q", n, what, id)
}

// containersOf returns all containers of a pod, also those not made yet.
func (p *Pods) containersOf(podID string) []*container {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Clone(p.ofPods[podID])
}

const idDigits = 64

func newID() string {
	var b [idDigits / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// addPod makes a pod known. p.mu must be held, or nobody else have p yet.
func (p *Pods) addPod(s *podState) *pod {
	pod := &pod{}
	pod.id, pod.slot, pod.save = s.ID, operation.NewSlot(), p.savePod
	pod.changed = p.podChanged
	pod.unsaved = func(err error) { p.log.Error("save a pod's record", "pod", pod.id, "error", err) }
	pod.state.Store(s)
	pod.known.reach(s.told())
	p.pods[s.ID] = pod
	return pod
}

// over is the end of containers that have exited when they become known.
var over = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// addContainer makes a container known. p.mu must be held, or nobody else have p yet.
func (p *Pods) addContainer(s *containerState) *container {
	c := &container{podID: s.PodID, done: over}
	if s.State != Exited {
		c.done = make(chan struct{})
	}
	c.id, c.slot, c.save = s.ID, operation.NewSlot(), p.saveContainer
	c.changed = func(was, is *containerState) { p.containerChanged(c, was, is) }
	c.unsaved = func(err error) { p.log.Error("save a container's record", "container", c.id, "error", err) }
	c.state.Store(s)
	c.known.reach(s.told())
	p.containers[s.ID] = c
	p.ofPods[s.PodID] = append(p.ofPods[s.PodID], c)
	return c
}

func keyOfPod(config *runtimeapi.PodSandboxConfig) podKey {
	m := config.GetMetadata()
	return podKey{m.GetUid(), m.GetNamespace(), m.GetName(), m.GetAttempt()}
}

func keyOfContainer(podID string, config *runtimeapi.ContainerConfig) containerKey {
	m := config.GetMetadata()
	return containerKey{podID, m.GetName(), m.GetAttempt()}
}

// Paths of what davit keeps of one pod or container.
func (p *Pods) podDir(id string) string        { return filepath.Join(p.opt.State, "pods", id) }
func (p *Pods) bundle(id string) string        { return filepath.Join(p.opt.State, "containers", id) }
func (p *Pods) podRoot(id string) string       { return filepath.Join(p.opt.Root, "pods", id) }
func (p *Pods) containerRoot(id string) string { return filepath.Join(p.opt.Root, "containers", id) }
