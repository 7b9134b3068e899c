package nri_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/nri"
	"github.com/davit-runtime/davit/internal/nri/nritest"
)

// The test program is a plugin when davit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginNameEnvVar) != "" {
		launched()
	}
	os.Exit(m.Run())
}

// launched does as its configuration says: note where its process is, and die.
func launched() {
	var file string
	var die bool
	p := &nritest.Plugin{
		OnConfig: func(config, runtime string) error {
			file, die = strings.CutPrefix(strings.TrimSpace(config), "die ")
			return os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())+" "+runtime), 0o600)
		},
		OnCreate: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			if die {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			}
			a := &api.ContainerAdjustment{}
			a.AddEnv("BY", file)
			return a, nil, nil
		},
	}
	if err := p.Run(); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// A node is what davit has, as plugins see it.
type node struct {
	mu         sync.Mutex
	pods       []nri.Pod
	containers []nri.Container
	asked      []nri.Answer
}

func (n *node) Known() ([]nri.Pod, []nri.Container) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods), slices.Clone(n.containers)
}

func (n *node) Apply(_ context.Context, a nri.Answer) (failed []nri.Update) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, a)
	for _, u := range a.Updates {
		if u.ID == "unknown" {
			failed = append(failed, u)
		}
	}
	return failed
}

// A stand is plugins that run, and their log.
type stand struct {
	*nri.Plugins
	*node
	socket string
	mu     sync.Mutex
	text   bytes.Buffer
}

func (s *stand) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *stand) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// newStand starts plugins; they end with the test.
func newStand(t *testing.T, c nri.Config) *stand {
	t.Helper()
	s := &stand{node: &node{}}
	dir := t.TempDir()
	if c.Socket == "" {
		c.Socket = filepath.Join(dir, "nri", "nri.sock")
	}
	if c.PluginDir == "" {
		c.PluginDir = filepath.Join(dir, "none")
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 20 * time.Second
	}
	c.Version, c.Log, s.socket = "1.2.3", slog.New(slog.NewTextHandler(s, nil)), c.Socket
	s.Plugins = nri.New(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx, s.node) }()
	t.Cleanup(func() { cancel(); <-done })
	s.enter(t)() // it has started
	return s
}

func (s *stand) enter(t *testing.T) (leave func()) {
	t.Helper()
	leave, _, err := s.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func (s *stand) listening(t *testing.T) bool {
	t.Helper()
	leave, listening, err := s.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leave()
	return listening
}

func podA() *nri.Pod {
	return &nri.Pod{
		ID: "pod1", Handler: "crun", Pid: 7, CgroupsPath: "/kubepods/pod1",
		Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Uid: "u1", Namespace: "ns"},
			Labels:   map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent: "/kubepods", Overhead: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9},
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: 5},
			},
		},
		Namespaces: map[string]string{"network": "/run/net", "ipc": "/run/ipc"}, IPs: []string{"10.0.0.2", "fd00::2"},
	}
}

func containerA() *nri.Container {
	limit, score := int64(1<<20), 100
	return &nri.Container{
		ID: "c1", PodID: "pod1", ImageID: "sha256:abc", State: nri.Created, Pid: 42,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Labels: map[string]string{"k": "v"},
			Annotations: map[string]string{"ann": "x"},
			Image:       &runtimeapi.ImageSpec{Image: "docker.io/x@sha256:1", UserSpecifiedImage: "x:1"},
			CDIDevices:  []*runtimeapi.CDIDevice{{Name: "vendor.com/class=dev"}},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p.json"},
			}},
		},
		Times:     nri.Times{Created: time.Unix(1, 2)},
		Resources: &runtimeapi.LinuxContainerResources{CpuQuota: 5000, CpuPeriod: 100000},
		Spec: &specs.Spec{
			Process: &specs.Process{
				Args: []string{"sh"}, Env: []string{"A=1", "B=2"}, OOMScoreAdj: &score, User: specs.User{UID: 5},
				Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}},
			},
			Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/data", Source: "/a", Options: []string{"rbind"}}},
			Annotations: map[string]string{"spec": "y"},
			Linux: &specs.Linux{
				CgroupsPath: "/kubepods/c1", Sysctl: map[string]string{"net.x": "1"},
				Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/net"}, {Type: specs.PIDNamespace}},
				Resources:  &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
			},
		},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Each event reaches the plugin, in its own words.
func TestEvents(t *testing.T) {
	s := newStand(t, nri.Config{})
	if s.listening(t) {
		t.Error("somebody listens before anybody joined")
	}
	s.pods, s.containers = []nri.Pod{*podA()}, []nri.Container{*containerA()}
	p := &nritest.Plugin{}
	p.Join(t, s.socket)
	if !s.listening(t) {
		t.Error("nobody listens")
	}
	leave := s.enter(t)
	defer leave()
	for _, e := range []nri.Event{nri.RunPod, nri.UpdatePod, nri.PodUpdated, nri.StopPod, nri.RemovePod} {
		must(t, s.Pod(t.Context(), e, podA()))
	}
	_, err := s.Create(t.Context(), podA(), containerA())
	must(t, err)
	for _, e := range []nri.Event{nri.ContainerCreated, nri.StartContainer, nri.ContainerStarted, nri.ContainerUpdated, nri.StopContainer, nri.RemoveContainer} {
		_, err := s.Container(t.Context(), e, podA(), containerA())
		must(t, err)
	}
	_, err = s.Update(t.Context(), podA(), containerA())
	must(t, err)
	want := []string{"SyncPod pod1", "SyncContainer c1", "Synchronize", "RunPodSandbox pod1", "UpdatePodSandbox pod1", "PostUpdatePodSandbox pod1",
		"StopPodSandbox pod1", "RemovePodSandbox pod1", "CreateContainer c1", "PostCreateContainer c1", "StartContainer c1",
		"PostStartContainer c1", "PostUpdateContainer c1", "StopContainer c1", "RemoveContainer c1", "UpdateContainer c1"}
	if got := p.Told(); !slices.Equal(got, want) {
		t.Errorf("told\n%q, want\n%q", got, want)
	}
	if err := s.Pod(t.Context(), nri.StartContainer, podA()); err == nil {
		t.Error("a container's event for a pod")
	}
}

// What a plugin objects to fails, with its words and a kind of davit's own.
func TestObjection(t *testing.T) {
	s := newStand(t, nri.Config{})
	p := &nritest.Plugin{OnRun: func(context.Context, *api.PodSandbox) error { return errors.New("not on my node") }}
	p.Join(t, s.socket)
	defer s.enter(t)()
	err := s.Pod(t.Context(), nri.RunPod, podA())
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "not on my node") || !strings.Contains(err.Error(), "RunPodSandbox") {
		t.Errorf("%v", err)
	}
	if strings.Contains(s.log(), "closing") {
		t.Error("the plugin was thrown out for an objection")
	}
}

// Plugins answer an update with another, and with updates of other containers.
func TestUpdate(t *testing.T) {
	s := newStand(t, nri.Config{})
	p := &nritest.Plugin{}
	p.OnUpdate = func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		if r.GetCpu().GetShares().GetValue() != 100 || r.GetMemory().GetLimit() != nil {
			return nil, errors.New("asked for something else")
		}
		own := &api.ContainerUpdate{ContainerId: c.GetId()}
		own.SetLinuxCPUSetCPUs("0-1")
		other := &api.ContainerUpdate{ContainerId: "c2", IgnoreFailure: true}
		other.SetLinuxMemoryLimit(77)
		return []*api.ContainerUpdate{own, other}, nil
	}
	p.Join(t, s.socket)
	defer s.enter(t)()
	c := containerA()
	c.NewResources = &runtimeapi.LinuxContainerResources{CpuShares: 100, OomScoreAdj: 3}
	a, err := s.Update(t.Context(), podA(), c)
	must(t, err)
	if r := a.Resources; r.CpuShares != 100 || r.CpusetCpus != "0-1" || r.OomScoreAdj != 3 || r.MemoryLimitInBytes != 0 {
		t.Errorf("%v", r)
	}
	if len(a.Updates) != 1 || a.Updates[0].ID != "c2" || a.Updates[0].Resources.MemoryLimitInBytes != 77 || !a.Updates[0].MayFail {
		t.Errorf("%+v", a.Updates)
	}
	failed, err := p.Change(sharesOf("c1", 5), sharesOf("unknown", 6))
	must(t, err)
	if len(failed) != 1 || failed[0].GetContainerId() != "unknown" || len(s.asked) != 1 || s.asked[0].Updates[0].Resources.CpuShares != 5 {
		t.Errorf("failed %v, asked %+v", failed, s.asked)
	}
}

func sharesOf(id string, shares uint64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{ContainerId: id}
	u.SetLinuxCPUShares(shares)
	return u
}

// A plugin that hangs costs one timeout, and is thrown out.
func TestHangingPlugin(t *testing.T) {
	s := newStand(t, nri.Config{RequestTimeout: time.Second})
	end := make(chan struct{})
	defer close(end)
	p := &nritest.Plugin{OnRun: func(context.Context, *api.PodSandbox) error { <-end; return nil }}
	p.Join(t, s.socket)
	leave := s.enter(t)
	begun := time.Now()
	must(t, s.Pod(t.Context(), nri.RunPod, podA()))
	if took := time.Since(begun); took < 900*time.Millisecond || took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	leave()
	if s.listening(t) {
		t.Error("it still listens")
	}
	if log := s.log(); !strings.Contains(log, "closing plugin 00-test") || !strings.Contains(log, "RunPodSandbox") {
		t.Errorf("log:\n%s", log)
	}
}

// A plugin that hangs while it joins holds up the hooks for one timeout.
func TestHangingJoin(t *testing.T) {
	s := newStand(t, nri.Config{RequestTimeout: time.Second})
	end, reached := make(chan struct{}), make(chan struct{})
	p := &nritest.Plugin{OnSync: func([]*api.PodSandbox, []*api.Container) { close(reached); <-end }}
	joined := make(chan struct{})
	go func() { defer close(joined); p.Join(t, s.socket) }()
	select {
	case <-reached:
	case <-joined:
		t.Fatal("it was thrown out before it hung")
	}
	if s.listening(t) { // waits for the join to fail
		t.Error("it listens")
	}
	close(end)
	<-joined
}

// Plugins that davit starts: found, configured, heard, and ended with davit. One
// that dies in a hook is thrown out.
func TestLaunched(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	dir, configs := t.TempDir(), t.TempDir()
	must(t, os.Symlink(self, filepath.Join(dir, "10-good")))
	must(t, os.Symlink(self, filepath.Join(dir, "20-dies")))
	must(t, os.WriteFile(filepath.Join(dir, "30-never-registers"), []byte("#!/bin/sh\necho $$ >"+configs+"/never.pid\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "README"), nil, 0o644)) // no program, so no plugin
	for name, config := range map[string]string{"10-good.conf": configs + "/good.pid", "dies.conf": "die " + configs + "/dies.pid"} {
		must(t, os.WriteFile(filepath.Join(configs, name), []byte(config+"\n"), 0o644))
	}
	var pids []int
	t.Run("run", func(t *testing.T) {
		s := newStand(t, nri.Config{PluginDir: dir, ConfigDir: configs})
		for _, name := range []string{"good.pid", "dies.pid"} {
			text, err := os.ReadFile(filepath.Join(configs, name))
			must(t, err)
			pid, runtime, _ := strings.Cut(string(text), " ")
			n, err := strconv.Atoi(pid)
			must(t, err)
			if pids = append(pids, n); runtime != "davit" {
				t.Errorf("it was told to be in %q", runtime)
			}
		}
		for range 2 { // the second time without the one that died
			c := containerA()
			_, err := s.Create(t.Context(), podA(), c)
			must(t, err)
			if !slices.Contains(c.Spec.Process.Env, "BY="+configs+"/good.pid") {
				t.Errorf("environment %q", c.Spec.Process.Env)
			}
		}
		if log := s.log(); !strings.Contains(log, "closing plugin 20-dies") || !strings.Contains(log, `failed to start pre-installed NRI plugin \"never-registers\"`) {
			t.Errorf("log:\n%s", log)
		}
		text, err := os.ReadFile(filepath.Join(configs, "never.pid"))
		must(t, err)
		never, err := strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
		awaitGone(t, never) // while davitd goes on
	})
	for _, pid := range pids {
		awaitGone(t, pid)
	}
}

// awaitGone waits until a process is gone, also as a zombie.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("plugin %d is still there", pid)
		}
	}
}

// The library's own validator, and plugins that are required.
func TestValidator(t *testing.T) {
	s := newStand(t, nri.Config{Validator: &nri.Validator{Hooks: true, Required: []string{"needed"}}})
	_, err := s.Create(t.Context(), podA(), containerA())
	if err == nil || !strings.Contains(err.Error(), "needed") {
		t.Errorf("without the plugin that is required: %v", err)
	}
	p := &nritest.Plugin{Name: "needed", OnCreate: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, nil, nil
	}}
	p.Join(t, s.socket)
	s.enter(t)()
	_, err = s.Create(t.Context(), podA(), containerA())
	must(t, err)
	hooks := &nritest.Plugin{Name: "hooks", OnCreate: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddHooks(&api.Hooks{Prestart: []*api.Hook{{Path: "/x"}}})
		return a, nil, nil
	}}
	hooks.Join(t, s.socket)
	s.enter(t)()
	_, err = s.Create(t.Context(), podA(), containerA())
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "hook") {
		t.Errorf("hooks: %v", err)
	}
}

// What stands in the way of plugins is told, and nothing else fails.
func TestInTheWay(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	socket := filepath.Join(dir, "served.sock")
	l, err := net.Listen("unix", socket)
	must(t, err)
	defer func() { _ = l.Close() }()
	plugins := filepath.Join(dir, "plugins")
	must(t, os.MkdirAll(plugins, 0o700))
	must(t, os.WriteFile(filepath.Join(plugins, "badname"), nil, 0o755))
	for _, c := range []struct {
		config nri.Config
		want   string
	}{
		{nri.Config{Socket: file}, "not a socket"},
		{nri.Config{Socket: socket}, "another runtime serves it"},
		{nri.Config{Socket: filepath.Join(dir, strings.Repeat("x", 120))}, "the kernel allows 107"},
		{nri.Config{Socket: filepath.Join(file, "nri.sock")}, "not a directory"},
		{nri.Config{PluginDir: plugins}, "badname: want two digits"},
	} {
		s := newStand(t, c.config)
		if s.listening(t) {
			t.Error("somebody listens")
		}
		if log := s.log(); !strings.Contains(log, c.want) {
			t.Errorf("log: %s, want %q", log, c.want)
		}
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the other's socket: %v", err)
	}
}
