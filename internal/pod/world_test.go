package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
)

// A process is a container or holder in the world.
type process struct {
	Container monitor.Container
	Started   bool
	Exit      *monitor.Exit
	Stubborn  bool // ignores its stop signal
	Undead    bool // outlives SIGKILL
}

// A world is all drivers at once: what exists is in maps. It outlives a
// "crash" of davitd, as the kernel does.
type world struct {
	mu      sync.Mutex
	have    map[string]bool // "network <id>", "rootfs <id>", …
	procs   map[string]*process
	pid     int
	calls   []string
	failAt  int                      // the number of the call that fails, once; 0: none
	after   bool                     // it fails having done its work
	fail    map[string]error         // by name of the call, every time
	chance  *rand.Rand               // if set, calls fail and take their time at random
	hang    map[string]chan struct{} // by name: it waits for that or its context
	deaf    map[string]chan struct{} // the same, but whatever its context does
	watch   map[int]func(monitor.Exit)
	nwatch  int
	image   imagespec.ImageConfig
	spec    *specs.Spec
	input   ocispec.Input
	users   *idmap.Users // of the last root file system
	label   string       // likewise
	shm     string       // options of the last
	trees   []idmap.Tree // attached, ever
	owner   [2]uint32    // of the last container's standard streams
	limits  []*runtimeapi.LinuxContainerResources
	memory  map[string]int64 // limit in force, by container
	score   map[string]int64 // oom_score_adj, by container
	signals []int
	exec    monitor.Exec
	live    []network.Attached // of the last Collect
}

var errInjected = errors.New("injected")

func newWorld() *world {
	return &world{
		have: map[string]bool{}, procs: map[string]*process{}, pid: 100,
		fail: map[string]error{}, hang: map[string]chan struct{}{}, deaf: map[string]chan struct{}{},
		watch: map[int]func(monitor.Exit){}, memory: map[string]int64{}, score: map[string]int64{},
	}
}

// call notes a driver's call, and does its work under the lock unless it is to fail.
func (w *world) call(ctx context.Context, name string, work func() error) error {
	w.mu.Lock()
	w.calls = append(w.calls, name)
	fails, after := w.failAt != 0 && len(w.calls) == w.failAt, w.after
	var slow time.Duration
	if w.chance != nil {
		fails, after = w.chance.IntN(20) == 0, w.chance.IntN(2) == 0
		if name != "save" && w.chance.IntN(10) == 0 {
			slow = time.Duration(w.chance.IntN(30000)) * time.Millisecond
		}
		if name == "Processes.List" {
			fails = false
		}
	}
	hang, deaf, always := w.hang[name], w.deaf[name], w.fail[name]
	w.mu.Unlock()
	if deaf != nil {
		<-deaf
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if fails && !after {
		return errInjected
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if always != nil {
		return always
	}
	if err := work(); err != nil {
		return err
	}
	if fails {
		return errInjected
	}
	return nil
}

func (w *world) make(ctx context.Context, name, thing string) error {
	return w.call(ctx, name, func() error { w.have[thing] = true; return nil })
}

func (w *world) unmake(ctx context.Context, name, thing string) error {
	return w.call(ctx, name, func() error { delete(w.have, thing); return nil })
}

// set changes the world between calls.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// left returns what exists.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Sorted(maps.Keys(w.have))
	for id, p := range w.procs {
		all = append(all, fmt.Sprintf("process %s exited=%v", id, p.Exit != nil))
	}
	return all
}

func (w *world) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.calls)
}

// die ends a process and tells those who watch.
func (w *world) die(id string, code int) {
	w.mu.Lock()
	tell := w.dieLocked(id, code)
	w.mu.Unlock()
	tell()
}

func (w *world) dieLocked(id string, code int) (tell func()) {
	p := w.procs[id]
	if p == nil || p.Exit != nil {
		return func() {}
	}
	p.Exit = &monitor.Exit{ID: id, Code: code, At: time.Now()}
	if code > 128 {
		p.Exit.Signal = code - 128
	}
	all := slices.Collect(maps.Values(w.watch))
	return func() {
		for _, f := range all {
			f(*p.Exit)
		}
	}
}

type (
	fakeNamespaces struct{ *world }
	fakeNetwork    struct{ *world }
	fakeRootfs     struct{ *world }
	fakeCgroups    struct{ *world }
	fakeProcesses  struct{ *world }
	fakeRuntimes   struct{ *world }
	fakeMounts     struct{ *world }
)

func (f fakeNamespaces) Create(ctx context.Context, dir string, _ namespace.Spec) error {
	return f.make(ctx, "Namespaces.Create", "namespaces "+filepath.Base(dir))
}

func (f fakeNamespaces) Release(ctx context.Context, dir string) error {
	return f.unmake(ctx, "Namespaces.Release", "namespaces "+filepath.Base(dir))
}

func (f fakeNetwork) Attach(ctx context.Context, p network.Pod) (network.Result, error) {
	return network.Result{Driver: "fake", Interface: "eth0"}, f.make(ctx, "Network.Attach", "network "+p.ID)
}

func (f fakeNetwork) Detach(ctx context.Context, p network.Pod) error {
	return f.unmake(ctx, "Network.Detach", "network "+p.ID)
}

func (f fakeNetwork) Check(ctx context.Context, _ network.Pod) error {
	return f.call(ctx, "Network.Check", func() error { return nil })
}

func (f fakeNetwork) Collect(ctx context.Context, live []network.Attached) error {
	return f.call(ctx, "Network.Collect", func() error {
		f.live = live
		for thing := range f.have {
			if id, ok := strings.CutPrefix(thing, "network "); ok && !slices.ContainsFunc(live, func(p network.Attached) bool { return p.ID == id }) {
				delete(f.have, thing)
			}
		}
		return nil
	})
}

func (f fakeRootfs) Config(ref string) (string, imagespec.ImageConfig, error) {
	if ref == "absent" {
		return "", imagespec.ImageConfig{}, fault.New(fault.NotFound, "", "no image %q", ref)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return "sha256:1234", f.image, nil
}

func (f fakeRootfs) Mount(ctx context.Context, id, _ string, o image.MountOptions) (string, error) {
	return "/nonexistent/rootfs/" + id, f.call(ctx, "Rootfs.Mount", func() error {
		f.users, f.label, f.have["rootfs "+id] = o.Users, o.Label, true
		return nil
	})
}

func (f fakeRootfs) Unmount(ctx context.Context, id string) error {
	return f.unmake(ctx, "Rootfs.Unmount", "rootfs "+id)
}

func (f fakeRootfs) MountVolume(ctx context.Context, v image.Volume) (string, error) {
	if v.SubPath == "absent" {
		return "", fault.New(fault.NotFound, "", "no sub path %q", v.SubPath)
	}
	return fmt.Sprintf("/nonexistent/volumes/%s/%d", v.Container, v.Index), f.make(ctx, "Rootfs.MountVolume", "volumes "+v.Container)
}

func (f fakeRootfs) UnmountVolumes(ctx context.Context, container string) error {
	return f.unmake(ctx, "Rootfs.UnmountVolumes", "volumes "+container)
}

func (f fakeCgroups) Expect() {}

func (f fakeCgroups) Place(parent, id string) cgroup.Place {
	return cgroup.Place{Parent: parent, ID: id, Path: parent + "/" + id, Dirs: []string{"/sys/fs/cgroup" + parent + "/" + id}}
}

func (f fakeCgroups) Prepare(ctx context.Context, _ string) error {
	return f.call(ctx, "Cgroups.Prepare", func() error { return nil })
}

func (f fakeCgroups) Create(ctx context.Context, p cgroup.Place) error {
	return f.make(ctx, "Cgroups.Create", "cgroup "+p.ID)
}

func (f fakeCgroups) Limit(ctx context.Context, p cgroup.Place, r *runtimeapi.LinuxContainerResources) error {
	return f.call(ctx, "Cgroups.Limit", func() error {
		f.limits = append(f.limits, r)
		if r.MemoryLimitInBytes != 0 {
			f.memory[p.ID] = r.MemoryLimitInBytes
		}
		return nil
	})
}

func (f fakeCgroups) Current(p cgroup.Place, _ *runtimeapi.LinuxContainerResources) (before []cgroup.Value, err error) {
	err = f.call(context.Background(), "Cgroups.Current", func() error {
		before = []cgroup.Value{{File: "memory", Text: fmt.Sprint(f.memory[p.ID])}}
		return nil
	})
	return before, err
}

func (f fakeCgroups) Restore(ctx context.Context, p cgroup.Place, before []cgroup.Value) error {
	return f.call(ctx, "Cgroups.Restore", func() error {
		n, err := strconv.ParseInt(before[0].Text, 10, 64)
		f.memory[p.ID] = n
		return err
	})
}

func (f fakeCgroups) Rescore(p cgroup.Place, from, to int64) error {
	return f.call(context.Background(), "Cgroups.Rescore", func() error {
		if f.score[p.ID] == from {
			f.score[p.ID] = to
		}
		return nil
	})
}

func (f fakeCgroups) Kill(ctx context.Context, p cgroup.Place) error {
	tell, undead := func() {}, false
	err := f.call(ctx, "Cgroups.Kill", func() error {
		undead = f.procs[p.ID] != nil && f.procs[p.ID].Undead
		if f.procs[p.ID] != nil && !undead {
			tell = f.dieLocked(p.ID, 137)
		}
		return nil
	})
	tell()
	if undead { // as the kernel's: until ctx ends, and the error says who
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (f fakeCgroups) Remove(ctx context.Context, p cgroup.Place) error {
	return f.unmake(ctx, "Cgroups.Remove", "cgroup "+p.ID)
}

func (f fakeProcesses) Create(ctx context.Context, c monitor.Container) (pid int, err error) {
	err = f.call(ctx, "Processes.Create", func() error {
		if _, err := os.Stat(filepath.Join(c.Bundle, "config.json")); err != nil {
			return err
		}
		f.pid++
		pid = f.pid
		f.procs[c.ID] = &process{Container: c}
		f.owner = [2]uint32{c.UID, c.GID}
		f.have["cgroup "+c.ID] = true
		return nil
	})
	return pid, err
}

func (f fakeProcesses) Start(ctx context.Context, id string) error {
	return f.call(ctx, "Processes.Start", func() error {
		p := f.procs[id]
		if p == nil || p.Exit != nil && !p.Started {
			return fault.New(fault.NotFound, "", "no process to start")
		}
		p.Started = true
		return nil
	})
}

func (f fakeProcesses) Signal(ctx context.Context, id string, signal int) error {
	tell := func() {}
	err := f.call(ctx, "Processes.Signal", func() error {
		f.signals = append(f.signals, signal)
		p := f.procs[id]
		if p == nil || p.Exit != nil {
			return fault.New(fault.NotFound, "", "no process")
		}
		if !p.Stubborn {
			tell = f.dieLocked(id, 128+signal)
		}
		return nil
	})
	tell()
	return err
}

func (f fakeProcesses) Remove(ctx context.Context, id string) error {
	tell := func() {}
	err := f.call(ctx, "Processes.Remove", func() error {
		tell = f.dieLocked(id, 137)
		if p := f.procs[id]; p != nil && p.Container.ID != "" {
			delete(f.have, "cgroup "+id) // as OCI runtimes do
		}
		delete(f.procs, id)
		return nil
	})
	tell()
	return err
}

func (f fakeProcesses) List(ctx context.Context) (all []monitor.Status, err error) {
	err = f.call(ctx, "Processes.List", func() error {
		for id, p := range f.procs {
			all = append(all, monitor.Status{ID: id, Exit: p.Exit})
		}
		return nil
	})
	return all, err
}

func (f fakeProcesses) Exec(ctx context.Context, e monitor.Exec) (monitor.ExecResult, error) {
	return monitor.ExecResult{Stdout: []byte("out")}, f.call(ctx, "Sessions.Exec", func() error { f.exec = e; return nil })
}

func (f fakeProcesses) ExecStream(ctx context.Context, e monitor.Exec, s monitor.Stream) (int, error) {
	err := f.call(ctx, "Sessions.ExecStream", func() error { f.exec = e; return nil })
	if err == nil {
		_, err = s.Stdout.Write([]byte("out"))
	}
	return 3, err
}

func (f fakeProcesses) Attach(ctx context.Context, id string, s monitor.Stream) error {
	return f.call(ctx, "Sessions.Attach", func() error { f.exec = monitor.Exec{ContainerID: id}; return nil })
}

func (f fakeProcesses) ReopenLog(ctx context.Context, _ string) error {
	return f.call(ctx, "Sessions.ReopenLog", func() error { return nil })
}

func (f fakeProcesses) Hold(ctx context.Context, h monitor.Holder) (pid int, err error) {
	err = f.call(ctx, "Sessions.Hold", func() error {
		f.pid++
		pid = f.pid
		f.procs[h.ID] = &process{Started: true}
		if !f.have["cgroup "+h.ID] {
			return errors.New("no control group to put the holder in")
		}
		return nil
	})
	return pid, err
}

func (f fakeProcesses) Watch(ctx context.Context, tell func(monitor.Exit)) error {
	if err := f.call(ctx, "Sessions.Watch", func() error { return nil }); err != nil {
		return err
	}
	f.mu.Lock()
	f.nwatch++
	n := f.nwatch
	f.watch[n] = tell
	var past []monitor.Exit
	for _, p := range f.procs {
		if p.Exit != nil {
			past = append(past, *p.Exit)
		}
	}
	f.mu.Unlock()
	for _, e := range past {
		tell(e)
	}
	<-ctx.Done()
	f.mu.Lock()
	delete(f.watch, n)
	f.mu.Unlock()
	return ctx.Err()
}

func (f fakeRuntimes) Runtime(handler string) (ociruntime.Runtime, error) {
	if handler == "unknown" {
		return ociruntime.Runtime{}, fault.New(fault.Invalid, "", "unknown handler %q", handler)
	}
	return ociruntime.Runtime{Handler: handler, SystemdCgroup: true}, nil
}

func (f fakeRuntimes) Seccomp(ociruntime.Runtime, *specs.LinuxSeccomp) map[string]string {
	return map[string]string{"seccomp": "ready"}
}

// mountName is the same wherever the state directory is.
func mountName(path string) string {
	return "mount " + filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path)
}

func (f fakeMounts) shm(dir, options string) error {
	f.set(func() { f.world.shm = options })
	return f.make(context.Background(), "mounts.shm", mountName(dir))
}

func (f fakeMounts) attach(t idmap.Tree, at string) error {
	return f.call(context.Background(), "mounts.attach", func() error {
		f.trees = append(f.trees, t)
		f.have["tree "+filepath.Base(filepath.Dir(at))] = true
		return nil
	})
}

func (f fakeMounts) detach(dir string) error {
	return f.unmake(context.Background(), "mounts.detach", "tree "+filepath.Base(dir))
}

func (f fakeMounts) pin(_ int, file string) error {
	return f.make(context.Background(), "mounts.pin", mountName(file))
}

func (f fakeMounts) unmount(path string) error {
	return f.unmake(context.Background(), "mounts.unmount", mountName(path))
}

// Containers is EachContainer, all at once.
func (p *Pods) Containers() []*ContainerSnapshot { return slices.Collect(p.EachContainer()) }
