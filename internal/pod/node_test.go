package pod

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/store"
	"github.com/davit-runtime/davit/internal/testkit"
)

// A node is a world with directories, on which davitd is started.
type node struct {
	*world
	t           *testing.T
	root, state string
	boot        string
	atSave      func() // called before and after each save
	hooks       Hooks
}

func newNode(t *testing.T) *node {
	dir := t.TempDir()
	return &node{world: newWorld(), t: t, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), boot: "boot 1"}
}

func (n *node) options() Options {
	w := n.world
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(testkit.Output(n.t), nil))
	}
	return Options{
		Root: n.root, State: n.state, Log: log, Host: Host{BootID: n.boot},
		Specs: Specs{
			Build: func(in ocispec.Input) (*specs.Spec, error) {
				quota := int64(1000)
				spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{
					CgroupsPath: in.CgroupsPath,
					Resources:   &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}}, Seccomp: &specs.LinuxSeccomp{},
				}}
				err := w.call(context.Background(), "Specs.Build", func() error { w.input, w.spec = in, spec; return nil })
				return spec, err
			},
			ResolveUser: func(string, *runtimeapi.LinuxContainerSecurityContext, string) (ocispec.User, error) {
				return ocispec.User{UID: 7}, nil
			},
		},
		Namespaces: fakeNamespaces{w}, Network: fakeNetwork{w}, Rootfs: fakeRootfs{w}, Cgroups: fakeCgroups{w},
		Processes: fakeProcesses{w}, Sessions: fakeProcesses{w}, Runtimes: fakeRuntimes{w}, Hooks: n.hooks, mounts: fakeMounts{w},
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
	return n.openWith(n.options())
}

func (n *node) openWith(options Options) *daemon {
	n.t.Helper()
	p, err := Open(n.t.Context(), options)
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
