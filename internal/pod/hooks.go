package pod

import (
	"context"
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/nri"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/span"
)

// Hooks let plugins take part in the life of pods and containers. Package nri
// implements it. All but Enter are called only between Enter and leave, and
// only if Enter says that somebody listens.
type Hooks interface {
	// Enter keeps plugins from joining until leave is called.
	Enter(ctx context.Context) (leave func(), listening bool, err error)
	Pod(ctx context.Context, e nri.Event, p *nri.Pod) error
	Container(ctx context.Context, e nri.Event, p *nri.Pod, c *nri.Container) (nri.Answer, error)
	Create(ctx context.Context, p *nri.Pod, c *nri.Container) (nri.Answer, error) // changes c.Spec
	Update(ctx context.Context, p *nri.Pod, c *nri.Container) (nri.Answer, error)
}

// heedWithin is how long an operation waits until what plugins want of other
// containers is done; that goes on afterwards. Two that wait for each other
// wait no longer than this.
const heedWithin = 2 * time.Second

// A knowledge is the last that plugins have been told of a pod or container, or
// would have been if there had been any. It only grows. What plugins are told
// when they join is exactly this, so that nothing is lost or told twice.
type knowledge struct{ stage atomic.Int32 }

const (
	untold int32 = iota
	toldMade
	toldStarted // containers only
	toldStopped
	heeded // what plugins wanted when they were told is done; containers only
	toldRemoved
)

func (k *knowledge) at() int32 { return k.stage.Load() }

// reach makes it stage, unless it is further already.
func (k *knowledge) reach(stage int32) {
	for {
		now := k.stage.Load()
		if now >= stage || k.stage.CompareAndSwap(now, stage) {
			return
		}
	}
}

// told is what plugins have been told of a pod in this state at least, after a restart.
func (s *podState) told() int32 {
	switch {
	case s.State == Preparing:
		return untold
	case s.State == NotReady && len(s.Held) == 0:
		return toldStopped
	}
	return toldMade
}

// told is what plugins have been told of a container in this state, after a restart.
func (s *containerState) told() int32 {
	switch s.State {
	case Preparing:
		return untold
	case Created:
		return toldMade
	case Exited:
		return heeded
	}
	return toldStarted
}

// gate calls f, with whether plugins listen, while none can join.
func (p *Pods) gate(ctx context.Context, f func(listening bool) error) error {
	if p.opt.Hooks == nil {
		return f(false)
	}
	leave, listening, err := p.opt.Hooks.Enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if listening {
		defer span.Step(ctx, "plugins")()
	}
	return f(listening)
}

// hook calls f if plugins listen, and lets k reach stage before one can join.
func (p *Pods) hook(ctx context.Context, k *knowledge, stage int32, f func() error) error {
	return p.gate(ctx, func(listening bool) error {
		defer k.reach(stage)
		if !listening {
			return nil
		}
		return f()
	})
}

// hookOrLog is hook where an objection changes nothing any more.
func (p *Pods) hookOrLog(ctx context.Context, what, id string, k *knowledge, stage int32, f func() error) {
	if err := p.hook(ctx, k, stage, f); err != nil {
		p.log.Warn("plugins were not told, or object", "of", what, "id", id, "error", err)
	}
}

// tellRun asks plugins about a pod whose steps are done. It is not listed meanwhile.
func (p *Pods) tellRun(ctx context.Context, pod *pod) error {
	return p.hook(ctx, &pod.known, toldMade, func() error {
		pod.hidden.Store(true)
		defer pod.hidden.Store(false)
		return p.opt.Hooks.Pod(ctx, nri.RunPod, p.nriPod(pod.state.Load()))
	})
}

// changeResources makes plugins take part in apply, which changes the resources
// of a whole pod.
func (p *Pods) changeResources(ctx context.Context, pod *pod, overhead, resources *runtimeapi.LinuxContainerResources, apply func() error) error {
	err := p.hook(ctx, &pod.known, untold, func() error {
		about := p.nriPod(pod.state.Load())
		about.NewOverhead, about.NewResources = overhead, resources
		return p.opt.Hooks.Pod(ctx, nri.UpdatePod, about)
	})
	if err != nil {
		return err
	}
	if err := apply(); err != nil {
		return err
	}
	p.hookOrLog(ctx, string(nri.PodUpdated), pod.id, &pod.known, untold, func() error {
		return p.opt.Hooks.Pod(ctx, nri.PodUpdated, p.nriPod(pod.state.Load()))
	})
	return nil
}

// tellPodStopped tells plugins that a pod's containers have ended, before what
// the pod holds is released. The pod's slot must be held.
func (p *Pods) tellPodStopped(ctx context.Context, pod *pod) {
	if at := pod.known.at(); at == untold || at >= toldStopped {
		return
	}
	p.hookOrLog(ctx, string(nri.StopPod), pod.id, &pod.known, toldStopped, func() error {
		return p.opt.Hooks.Pod(ctx, nri.StopPod, p.nriPod(pod.state.Load()))
	})
}

// tellPodRemoved tells plugins that a pod will not be heard of again. The pod's
// slot must be held.
func (p *Pods) tellPodRemoved(ctx context.Context, pod *pod) {
	if at := pod.known.at(); at == untold || at >= toldRemoved {
		return
	}
	p.hookOrLog(ctx, string(nri.RemovePod), pod.id, &pod.known, toldRemoved, func() error {
		return p.opt.Hooks.Pod(ctx, nri.RemovePod, p.nriPod(pod.state.Load()))
	})
}

// tellCreate asks plugins about a container that is to be made from spec, and
// changes both as they want it. No plugin joins before write has written the
// bundle, from which it would be told of the container.
func (p *Pods) tellCreate(ctx context.Context, c *container, spec *specs.Spec, write func() error) error {
	var answer nri.Answer
	err := p.gate(ctx, func(listening bool) (err error) {
		defer c.known.reach(toldMade)
		if listening {
			answer, err = p.adjust(ctx, c, spec)
		}
		if err != nil {
			return err
		}
		return write()
	})
	if err == nil {
		p.heed(ctx, c.id, answer)
	}
	return err
}

// adjust changes a container and its spec as plugins want it.
func (p *Pods) adjust(ctx context.Context, c *container, spec *specs.Spec) (nri.Answer, error) {
	answer, err := p.opt.Hooks.Create(ctx, p.podOf(c), p.nriContainer(c, spec))
	if err != nil {
		return answer, err
	}
	if score := spec.Process.OOMScoreAdj; score != nil {
		*score = int(ocispec.ClampOOMScoreAdj(int64(*score), p.opt.Host.MinOOMScoreAdj))
	}
	place, err := p.placeAt(c.state.Load(), spec.Linux.CgroupsPath)
	if err != nil {
		return answer, err
	}
	return answer, c.amend(func(s *containerState) {
		s.Place, s.Resources = place, p.inForce(merged(s.Resources, answer.Resources))
	})
}

// tellCreated and the like tell plugins of a container what has come about.
func (p *Pods) tellCreated(ctx context.Context, c *container) {
	p.tellContainer(ctx, c, nri.ContainerCreated, toldMade)
}

// tellStart asks plugins about a container that is to be started.
func (p *Pods) tellStart(ctx context.Context, c *container) error {
	return p.hook(ctx, &c.known, toldStarted, func() error {
		_, err := p.opt.Hooks.Container(ctx, nri.StartContainer, p.podOf(c), p.nriContainer(c, nil))
		return err
	})
}

func (p *Pods) tellStarted(ctx context.Context, c *container) {
	p.tellContainer(ctx, c, nri.ContainerStarted, toldStarted)
}

// tellUpdate asks plugins about limits that are to be changed, and returns
// what is to be applied.
func (p *Pods) tellUpdate(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	answer := nri.Answer{Resources: r}
	err := p.hook(ctx, &c.known, untold, func() (err error) {
		about := p.nriContainer(c, nil)
		about.NewResources = r
		answer, err = p.opt.Hooks.Update(ctx, p.podOf(c), about)
		return err
	})
	if err == nil {
		p.heed(ctx, c.id, answer)
	}
	return answer.Resources, err
}

func (p *Pods) tellUpdated(ctx context.Context, c *container) {
	p.tellContainer(ctx, c, nri.ContainerUpdated, untold)
}

func (p *Pods) tellContainer(ctx context.Context, c *container, e nri.Event, stage int32) {
	p.hookOrLog(ctx, string(e), c.id, &c.known, stage, func() error {
		_, err := p.opt.Hooks.Container(ctx, e, p.podOf(c), p.nriContainer(c, nil))
		return err
	})
}

// tellEnded tells plugins that a container has ended, once, and has done what
// they then want when it returns. It waits for the container's slot, so that
// they hear of its start first.
func (p *Pods) tellEnded(ctx context.Context, c *container) error {
	if p.opt.Hooks == nil || c.known.at() == untold || c.known.at() >= heeded {
		return nil
	}
	leave, listening, err := p.opt.Hooks.Enter(ctx)
	if err != nil {
		return err
	}
	nobody := !listening && c.known.at() < toldStopped
	if nobody {
		c.known.reach(heeded)
	}
	leave()
	if nobody {
		return nil
	}
	return p.crew.With(ctx, &c.slot, "container "+c.id+": tell plugins of its end", startBudget, func(ctx context.Context) error {
		p.tellStopped(ctx, c)
		return nil
	})
}

// tellStopped is tellEnded for those who have the container's slot.
func (p *Pods) tellStopped(ctx context.Context, c *container) {
	if at := c.known.at(); at == untold || at >= toldStopped {
		return
	}
	defer c.known.reach(heeded)
	var answer nri.Answer
	p.hookOrLog(ctx, string(nri.StopContainer), c.id, &c.known, toldStopped, func() (err error) {
		answer, err = p.opt.Hooks.Container(ctx, nri.StopContainer, p.podOf(c), p.nriContainer(c, nil))
		return err
	})
	p.heed(ctx, c.id, answer)
}

// tellContainerRemoved tells plugins that a container will not be heard of
// again. The container's slot must be held.
func (p *Pods) tellContainerRemoved(ctx context.Context, c *container) {
	if at := c.known.at(); at != untold && at < toldRemoved {
		p.tellContainer(ctx, c, nri.RemoveContainer, toldRemoved)
	}
}

// heed does what plugins want of other containers than the one they were told
// of, whose slot is held.
func (p *Pods) heed(ctx context.Context, own string, a nri.Answer) {
	a.Updates = slices.DeleteFunc(a.Updates, func(u nri.Update) bool { return u.ID == own })
	if len(a.Updates)+len(a.Evictions) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, heedWithin)
	defer cancel()
	p.Apply(ctx, a)
}

// Apply changes and stops containers as plugins want, all at once, and returns
// the changes that failed. Those that ctx has ended too early for are not made;
// containers are stopped in the background.
func (p *Pods) Apply(ctx context.Context, a nri.Answer) (failed []nri.Update) {
	for _, e := range a.Evictions {
		p.log.Warn("a plugin evicts a container", "container", e.ID, "reason", e.Reason)
		p.crew.Start(func(ctx context.Context) {
			if err := p.StopContainer(ctx, e.ID, 0); err != nil {
				p.log.Warn("evict a container", "container", e.ID, "error", err)
			}
		})
	}
	errs := make([]error, len(a.Updates))
	_ = inParallel(indexes(a.Updates), func(i int) error {
		ctx, cancel := context.WithTimeout(ctx, heedWithin)
		defer cancel()
		errs[i] = p.changeLimits(ctx, a.Updates[i].ID, a.Updates[i].Resources)
		return nil
	})
	for i, err := range errs {
		if err == nil {
			continue
		}
		p.log.Warn("apply a plugin's update", "container", a.Updates[i].ID, "error", err)
		if !a.Updates[i].MayFail {
			failed = append(failed, a.Updates[i])
		}
	}
	return failed
}

func indexes[E any](all []E) []int {
	out := make([]int, len(all))
	for i := range all {
		out[i] = i
	}
	return out
}

// Known returns the pods and containers that plugins have been told of, and
// not been told the end of.
func (p *Pods) Known() ([]nri.Pod, []nri.Container) {
	p.mu.RLock()
	var pods []*podState
	for _, pod := range p.pods {
		if at := pod.known.at(); at != untold && at < toldRemoved {
			pods = append(pods, pod.state.Load())
		}
	}
	var containers []*container
	for _, c := range p.containers {
		if at := c.known.at(); at == toldMade || at == toldStarted {
			containers = append(containers, c)
		}
	}
	p.mu.RUnlock()
	outPods := make([]nri.Pod, len(pods))
	for i, s := range pods {
		outPods[i] = *p.nriPod(s)
	}
	outContainers := make([]nri.Container, len(containers))
	for i, c := range containers {
		outContainers[i] = *p.nriContainer(c, nil)
	}
	return outPods, outContainers
}

func (p *Pods) podOf(c *container) *nri.Pod {
	p.mu.RLock()
	pod := p.pods[c.podID]
	p.mu.RUnlock()
	if pod == nil { // an orphan, after a restart
		return &nri.Pod{ID: c.podID}
	}
	return p.nriPod(pod.state.Load())
}

func (p *Pods) nriPod(s *podState) *nri.Pod {
	out := &nri.Pod{
		ID: s.ID, Handler: s.Handler, Config: s.Config, Pid: s.HolderPid, CgroupsPath: s.Place.Path,
		Namespaces: make(map[string]string, len(s.Paths)),
	}
	for name, file := range s.Paths {
		if name == "net" {
			name = string(specs.NetworkNamespace)
		}
		out.Namespaces[name] = file
	}
	for _, a := range s.Network.Addrs {
		out.IPs = append(out.IPs, a.String())
	}
	return out
}

// nriContainer describes a container as far as plugins know it. Without a spec
// it reads the bundle's.
func (p *Pods) nriContainer(c *container, spec *specs.Spec) *nri.Container {
	s := c.state.Load()
	if spec == nil {
		spec = p.readSpec(c.id)
	}
	out := &nri.Container{
		ID: c.id, PodID: c.podID, Config: s.Config, ImageID: s.ImageID, Spec: spec, Resources: s.Resources,
		Pid: s.Pid, Times: nri.Times{Created: s.CreatedAt, Started: s.StartedAt, Finished: s.FinishedAt},
		ExitCode: s.ExitCode, Reason: s.Reason, Message: s.Message,
	}
	switch c.known.at() {
	case toldMade:
		out.State = nri.Created
	case toldStarted:
		out.State = nri.Running
	}
	if s.State == Exited {
		out.State = nri.Stopped
	}
	return out
}

// readSpec returns the spec in a container's bundle, or nil.
func (p *Pods) readSpec(id string) *specs.Spec {
	data, err := os.ReadFile(filepath.Join(p.bundle(id), "config.json"))
	spec := &specs.Spec{}
	if err != nil || json.Unmarshal(data, spec) != nil {
		return nil
	}
	return spec
}

// placeAt returns the place that an OCI spec's cgroupsPath names. Invalid for
// one that davit could not find again, and for one that is not the container's
// alone: all that is in it is killed with the container.
func (p *Pods) placeAt(s *containerState, cgroupsPath string) (cgroup.Place, error) {
	if cgroupsPath == s.Place.Path {
		return s.Place, nil
	}
	parent, id := path.Dir(cgroupsPath), path.Base(cgroupsPath)
	if slice, rest, ok := strings.Cut(cgroupsPath, ":"); ok {
		parent, id = slice, rest[strings.LastIndex(rest, ":")+1:]
	}
	place := p.opt.Cgroups.Place(parent, id)
	if place.Path != cgroupsPath {
		return place, fault.New(fault.Invalid, "", "cgroups path %q: davit would have %q", cgroupsPath, place.Path)
	}
	if id != s.ID {
		return place, fault.New(fault.Invalid, "", "cgroups path %q: it does not end in the container's ID, so others may be in it", cgroupsPath)
	}
	if other := p.inhabitant(cgroupsPath); other != "" && other != s.ID {
		return place, fault.New(fault.Invalid, "", "cgroups path %q: it is inside that of %s", cgroupsPath, other)
	}
	return place, nil
}

// inhabitant returns the ID of the container, or of the pod, if it has a
// holder, inside whose cgroup a path of cgroupfs is; or "".
func (p *Pods) inhabitant(cgroupsPath string) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for dir := range strings.SplitSeq(cgroupsPath, "/") {
		c, pod := p.containers[dir], p.pods[dir]
		if c != nil && strings.HasPrefix(cgroupsPath, c.state.kept.Load().Place.Path+"/") {
			return c.id
		}
		if pod != nil && strings.HasPrefix(cgroupsPath, pod.state.Load().Place.Path+"/") {
			return pod.id
		}
	}
	return ""
}
