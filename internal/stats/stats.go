// Package stats joins what the kernel tells of containers and pods: control
// groups, network interfaces, writable layers.
//
// It reads when it is asked, and does nothing in between. What it keeps is one
// sample of CPU time for each container and pod that runs, to tell how much of
// a CPU it uses. Packages cri and cri/metrics call it.
package stats

import (
	"cmp"
	"path"
	"runtime"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/pod"
)

// Views shows pods and containers. *pod.Pods implements it.
type Views interface {
	List() []*pod.Snapshot
	Live() []*pod.ContainerSnapshot // created or running
}

// Layers knows what writable layers take on disk. *image.Store implements it.
type Layers interface {
	WritableUsage(id string) (image.Usage, error)
	WritableUsages() image.Usage // of all together
}

// A Reader reads figures. Safe for concurrent use.
type Reader struct {
	views   Views
	cgroups *cgroup.Host
	layers  Layers

	mu      sync.Mutex // guards what follows; held for memory only
	windows map[string]window
	pruned  time.Time
}

// New returns a Reader.
func New(views Views, cgroups *cgroup.Host, layers Layers) *Reader {
	return &Reader{views: views, cgroups: cgroups, layers: layers, windows: map[string]window{}}
}

// A Container is a container's figures.
type Container struct {
	*pod.ContainerSnapshot
	cgroup.Reading        // zero unless it is created or runs
	NanoCores      uint64 // how much of a CPU it uses
	Layer          image.Usage
	Place          cgroup.Place
	Cgroup         string  // its path, "/kubepods/…"; by Details only
	Detail         *Detail // by Details only
}

// A Pod is a pod's figures. Those of its own cgroup count whatever is in the
// pod; where it has none, they are the sum of its containers, without pressure.
type Pod struct {
	*pod.Snapshot
	cgroup.Reading
	NanoCores  uint64
	Processes  uint64
	Interfaces []namespace.Interface // the default one first; none with the host's network
	Containers []*Container
	Place      cgroup.Place
	Cgroup     string // its path; by Details only
}

// active reports whether a container has processes to be counted.
func active(c *pod.ContainerSnapshot) bool {
	return c.State == pod.Created || c.State == pod.Running
}

// Container returns one container's figures; those of one that does not run
// are its writable layer alone.
func (r *Reader) Container(c *pod.ContainerSnapshot) (*Container, error) {
	got := r.read(c, r.parents().of[c.PodID])
	if got == nil {
		return nil, fault.New(fault.NotFound, "stats.Container", "container %s is gone", c.ID)
	}
	r.rate(got)
	r.prune()
	return got, nil
}

// Containers returns the figures of those of the containers that are still there.
func (r *Reader) Containers(list []*pod.ContainerSnapshot) []*Container {
	all := r.readAll(list, r.parents())
	r.prune()
	return all
}

// Layers returns what all writable layers take together, those of containers
// that have exited included.
func (r *Reader) Layers() image.Usage { return r.layers.WritableUsages() }

// Pods returns the figures of pods.
func (r *Reader) Pods(list []*pod.Snapshot) ([]*Pod, error) {
	byID := map[string]*Pod{}
	all := make([]*Pod, len(list))
	var ready, connected []*Pod
	var files []string
	for i, s := range list {
		all[i] = &Pod{Snapshot: s, Reading: cgroup.Reading{At: time.Now()}}
		if s.State != pod.Ready {
			continue
		}
		byID[s.ID], ready = all[i], append(ready, all[i])
		if file := s.Paths["net"]; file != "" {
			files, connected = append(files, file), append(connected, all[i])
		}
	}
	var network sync.WaitGroup
	var err error
	network.Go(func() {
		var interfaces [][]namespace.Interface
		interfaces, err = namespace.Interfaces(files)
		for i := range interfaces {
			connected[i].Interfaces = defaultFirst(interfaces[i], connected[i].Network.Interface)
		}
	})
	parents := r.parents()
	var want []*pod.ContainerSnapshot
	for _, c := range r.views.Live() {
		if byID[c.PodID] != nil {
			want = append(want, c)
		}
	}
	for _, c := range r.readAll(want, parents) {
		p := byID[c.PodID]
		p.Containers = append(p.Containers, c)
	}
	inHalves(len(ready), func(i int) { r.readPod(ready[i], parents) })
	network.Wait()
	r.prune()
	return all, err
}

// parents are the pods' cgroup_parent, by pod ID, and how many have the same.
type parents struct {
	of     map[string]string
	shared map[string]int
}

func (r *Reader) parents() parents {
	pods := r.views.List()
	all := parents{make(map[string]string, len(pods)), make(map[string]int, len(pods))}
	for _, p := range pods {
		parent := path.Join("/", p.Config.GetLinux().GetCgroupParent())
		all.of[p.ID] = parent
		if p.State == pod.Ready {
			all.shared[parent]++
		}
	}
	return all
}

// own reports whether the pod's parent is its own: the kubelet gives each pod
// one, others may give several pods the same, or none.
func (a parents) own(id string) bool { return a.of[id] != "/" && a.shared[a.of[id]] == 1 }

// parallel is from how many things on two threads read them.
const parallel = 16

// inHalves calls f for 0 to n-1, on two threads if it is worth that.
func inHalves(n int, f func(int)) {
	part := func(from, to int) {
		for i := from; i < to; i++ {
			f(i)
		}
	}
	if n < parallel || runtime.GOMAXPROCS(0) < 2 {
		part(0, n)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { part(0, n/2) })
	part(n/2, n)
	wg.Wait()
}

// readAll reads containers.
func (r *Reader) readAll(list []*pod.ContainerSnapshot, parents parents) []*Container {
	all := make([]*Container, len(list))
	inHalves(len(list), func(i int) { all[i] = r.read(list[i], parents.of[list[i].PodID]) })
	there := all[:0]
	for _, c := range all {
		if c != nil {
			r.rate(c)
			there = append(there, c)
		}
	}
	return there
}

// read returns nil for a container that is gone.
func (r *Reader) read(s *pod.ContainerSnapshot, parent string) *Container {
	c := &Container{ContainerSnapshot: s}
	layer, err := r.layers.WritableUsage(s.ID)
	if err != nil {
		return nil
	}
	if layer.At.IsZero() { // when it was as good as empty
		layer.At = s.CreatedAt
	}
	c.Layer = layer
	if !active(s) {
		return c
	}
	c.Place = r.cgroups.Place(parent, s.ID)
	if c.Reading, err = r.cgroups.Read(c.Place); err != nil {
		return nil
	}
	return c
}

// readPod fills in what a pod has beyond its containers.
func (r *Reader) readPod(p *Pod, parents parents) {
	holder := r.cgroups.Place(parents.of[p.ID], p.ID)
	p.Place = r.cgroups.Above(holder)
	for _, c := range p.Containers {
		p.Processes += uint64(len(r.cgroups.Processes(c.Place)))
	}
	if p.HolderPid > 0 {
		p.Processes++
	}
	if parents.own(p.ID) {
		if got, err := r.cgroups.Read(p.Place); err == nil {
			p.Reading = got
			p.NanoCores = r.nanoCores(p.ID, got, p.CreatedAt)
			return
		}
	}
	p.Reading = sum(p.Containers)
	for _, c := range p.Containers {
		p.NanoCores += c.NanoCores
	}
}

// sum adds up what containers use.
func sum(containers []*Container) cgroup.Reading {
	all := cgroup.Reading{At: time.Now()}
	all.Memory.Limit, all.Swap.Limit = cgroup.Unlimited, cgroup.Unlimited
	for _, c := range containers {
		all.CPU.UsageNanos += c.CPU.UsageNanos
		all.CPU.Known = all.CPU.Known || c.CPU.Known
		m, n := &all.Memory, &c.Memory
		m.Usage += n.Usage
		m.Anon += n.Anon
		m.File += n.File
		m.InactiveFile += n.InactiveFile
		m.Faults += n.Faults
		m.MajorFaults += n.MajorFaults
		m.Known = m.Known || n.Known
		all.Swap.Usage += c.Swap.Usage
		all.Swap.Known = all.Swap.Known || c.Swap.Known
	}
	return all
}

// defaultFirst moves the interface of that name to the front.
func defaultFirst(all []namespace.Interface, name string) []namespace.Interface {
	name = cmp.Or(name, "eth0")
	for i := range all {
		if all[i].Name == name {
			all[0], all[i] = all[i], all[0]
			break
		}
	}
	return all
}
