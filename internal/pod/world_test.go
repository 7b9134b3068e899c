package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/store"
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
	hang    map[string]chan struct{} // by name: it waits for that or its context
	deaf    map[string]chan struct{} // the same, but whatever its context does
	watch   map[int]func(monitor.Exit)
	nwatch  int
	image   imagespec.ImageConfig
	spec    *specs.Spec
	input   ocispec.Input
	limits  []*runtimeapi.LinuxContainerResources
	signals []int
	exec    monitor.Exec
}

var errInjected = errors.New("injected")

func newWorld() *world {
	return &world{
		have: map[string]bool{}, procs: map[string]*process{}, pid: 100,
		fail: map[string]error{}, hang: map[string]chan struct{}{}, deaf: map[string]chan struct{}{},
		watch: map[int]func(monitor.Exit){},
	}
}

// call notes a driver's call, and does its work under the lock unless it is to fail.
func (w *world) call(ctx context.Context, name string, work func() error) error {
	w.mu.Lock()
	w.calls = append(w.calls, name)
	fails := w.failAt != 0 && len(w.calls) == w.failAt
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
	if err := ctx.Err(); err != nil {
		return err
	}
	if fails && !w.after {
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

func (f fakeNetwork) Collect(ctx context.Context, live []string) error {
	return f.call(ctx, "Network.Collect", func() error {
		for thing := range f.have {
			if id, ok := strings.CutPrefix(thing, "network "); ok && !slices.Contains(live, id) {
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

func (f fakeRootfs) Mount(ctx context.Context, id, _ string) (string, error) {
	return "/nonexistent/rootfs/" + id, f.make(ctx, "Rootfs.Mount", "rootfs "+id)
}

func (f fakeRootfs) Unmount(ctx context.Context, id string) error {
	return f.unmake(ctx, "Rootfs.Unmount", "rootfs "+id)
}

func (f fakeCgroups) Place(parent, id string) cgroup.Place {
	return cgroup.Place{Parent: parent, ID: id, Path: parent + "/" + id, Dirs: []string{"/sys/fs/cgroup" + parent + "/" + id}}
}

func (f fakeCgroups) Prepare(ctx context.Context, _ string) error {
	return f.call(ctx, "Cgroups.Prepare", func() error { return nil })
}

func (f fakeCgroups) Create(ctx context.Context, p cgroup.Place) error {
	return f.make(ctx, "Cgroups.Create", "cgroup "+p.ID)
}

func (f fakeCgroups) Limit(ctx context.Context, _ cgroup.Place, r *runtimeapi.LinuxContainerResources) error {
	return f.call(ctx, "Cgroups.Limit", func() error { f.limits = append(f.limits, r); return nil })
}

func (f fakeCgroups) Kill(ctx context.Context, p cgroup.Place) error {
	tell := func() {}
	err := f.call(ctx, "Cgroups.Kill", func() error {
		if proc := f.procs[p.ID]; proc != nil && !proc.Undead {
			tell = f.dieLocked(p.ID, 137)
		}
		return nil
	})
	tell()
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
	return ociruntime.Runtime{Handler: handler}, nil
}

func (f fakeRuntimes) Seccomp(ociruntime.Runtime, string) map[string]string {
	return map[string]string{"seccomp": "ready"}
}

// mountName is the same wherever the state directory is.
func mountName(path string) string {
	return "mount " + filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path)
}

func (f fakeMounts) shm(dir string) error {
	return f.make(context.Background(), "mounts.shm", mountName(dir))
}

func (f fakeMounts) pin(_ int, file string) error {
	return f.make(context.Background(), "mounts.pin", mountName(file))
}

func (f fakeMounts) unmount(path string) error {
	return f.unmake(context.Background(), "mounts.unmount", mountName(path))
}

// A node is a world with directories, on which davitd is started.
type node struct {
	*world
	t           *testing.T
	root, state string
	boot        string
	atSave      func() // called before and after each save
}

func newNode(t *testing.T) *node {
	dir := t.TempDir()
	return &node{world: newWorld(), t: t, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), boot: "boot 1"}
}

func (n *node) options() Options {
	w := n.world
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(n.t.Output(), nil))
	}
	return Options{
		Root: n.root, State: n.state, Log: log, Host: Host{BootID: n.boot},
		Specs: Specs{
			Build: func(in ocispec.Input) (*specs.Spec, error) {
				quota := int64(1000)
				spec := &specs.Spec{Linux: &specs.Linux{
					Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}}, Seccomp: &specs.LinuxSeccomp{},
				}}
				err := w.call(context.Background(), "Specs.Build", func() error { w.input, w.spec = in, spec; return nil })
				return spec, err
			},
			ResolveUser: func(string, *runtimeapi.LinuxContainerSecurityContext, string) (ocispec.User, error) {
				return ocispec.User{UID: 7}, nil
			},
		},
		Namespaces: fakeNamespaces{w}, Network: fakeNetwork{w}, Rootfs: fakeRootfs{w}, Cgroups: fakeCgroups{w},
		Processes: fakeProcesses{w}, Sessions: fakeProcesses{w}, Runtimes: fakeRuntimes{w}, mounts: fakeMounts{w},
		save: func(path string, version int, v any) error {
			err := w.call(context.Background(), "save", func() error { return nil })
			if err != nil {
				return err
			}
			if n.atSave != nil {
				n.atSave()
				defer n.atSave()
			}
			return store.SaveJSON(path, version, v)
		},
	}
}

// A daemon is a davitd's Pods that serve.
type daemon struct {
	*Pods
	stop func()
}

// open starts davitd. The test's end stops it.
func (n *node) open() *daemon {
	n.t.Helper()
	p, err := Open(n.t.Context(), n.options())
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Serve(ctx) }()
	d := &daemon{p, sync.OnceFunc(func() { cancel(); <-done })}
	n.t.Cleanup(d.stop)
	return d
}

// clean fails the test if anything is left, in the world or on disk.
func (n *node) clean() {
	n.t.Helper()
	if left := n.left(); len(left) > 0 {
		n.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	for _, dir := range []string{n.root, n.state} {
		for _, kind := range []string{"pods", "containers"} {
			if ids := subdirectories(filepath.Join(dir, kind)); len(ids) > 0 {
				n.t.Errorf("left behind in %s/%s: %v", dir, kind, ids)
			}
		}
	}
}

func podConfig(name string, pid runtimeapi.NamespaceMode) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: "",
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/kubepods/pod1",
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: pid}},
		},
	}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "busybox"},
	}
}

const (
	private = runtimeapi.NamespaceMode_CONTAINER
	shared  = runtimeapi.NamespaceMode_POD
)

// must fails the test at once if err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("got error %v (%v), want kind %v", err, fault.KindOf(err), kind)
	}
}

// run makes a pod with one container that runs.
func (n *node) run(d *daemon, name string, pid runtimeapi.NamespaceMode) (podID, id string) {
	n.t.Helper()
	podID, err := d.Run(n.t.Context(), podConfig(name, pid), "")
	must(n.t, err)
	id, err = d.CreateContainer(n.t.Context(), podID, containerConfig("main"))
	must(n.t, err)
	must(n.t, d.StartContainer(n.t.Context(), id))
	return podID, id
}
