package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/stream"
)

// fakeCRI is a runtime in memory behind a real socket. A container does what
// its command says: ["exit", N] ends at once with that code and writes its
// other arguments to its log; anything else runs until it is stopped.
type fakeCRI struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	path string

	mu         sync.Mutex
	calls      []string
	sandboxes  []*runtimeapi.PodSandbox
	logDirs    map[string]string
	containers []*fakeContainer
	images     []*runtimeapi.Image
	notReady   string           // reason of NetworkReady=false
	fail       map[string]error // by method
	auth       *runtimeapi.AuthConfig

	streams *stream.Server // of sessions
	program func(c *fakeContainer, cmd []string, s monitor.Stream) (code int, err error)
	port    string // address of what listens on the pods' port 80
}

type fakeContainer struct {
	config *runtimeapi.ContainerConfig
	status *runtimeapi.ContainerStatus
	pod    string
}

func newFakeCRI(t *testing.T) *fakeCRI {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri") // short: socket paths have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCRI{path: filepath.Join(dir, "cri.sock"), logDirs: map[string]string{}, fail: map[string]error{}}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.UnaryInterceptor(f.intercept))
	runtimeapi.RegisterRuntimeServiceServer(g, f)
	runtimeapi.RegisterImageServiceServer(g, f)
	f.streams, err = stream.Listen(stream.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- g.Serve(l) }()
	go func() { done <- f.streams.Serve(ctx) }()
	t.Cleanup(func() { g.Stop(); cancel(); <-done; <-done; os.RemoveAll(dir) })
	return f
}

// intercept records the call and fails it if so ordered.
func (f *fakeCRI) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, method)
	if err := f.fail[method]; err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (f *fakeCRI) called(methods ...string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, c := range f.calls {
		for _, m := range methods {
			if c == m {
				out = append(out, c)
			}
		}
	}
	return out
}

func fakeID(kind string, n int) string {
	return fmt.Sprintf("%s%010x%052x", kind, n, 0)
}

func (f *fakeCRI) Version(_ context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeCRI) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: f.notReady == ""}
	if f.notReady != "" {
		network.Reason, network.Message = "NetworkPluginNotReady", f.notReady
	}
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{{Type: runtimeapi.RuntimeReady, Status: true}, network}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{
			{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}, {Name: "runc"},
		},
	}, nil
}

func (f *fakeCRI) RunPodSandbox(_ context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	s := &runtimeapi.PodSandbox{
		Id: fakeID("aa", len(f.sandboxes)), Metadata: r.Config.Metadata, Labels: r.Config.Labels, Annotations: r.Config.Annotations,
		CreatedAt: time.Now().UnixNano(), RuntimeHandler: r.RuntimeHandler,
	}
	f.sandboxes = append(f.sandboxes, s)
	f.logDirs[s.Id] = r.Config.LogDirectory
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: s.Id}, nil
}

func (f *fakeCRI) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range f.sandboxes {
		fits := true
		for k, v := range r.GetFilter().GetLabelSelector() {
			fits = fits && s.Labels[k] == v
		}
		if fits {
			out.Items = append(out.Items, s)
		}
	}
	return out, nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	for _, s := range f.sandboxes {
		if s.Id == r.PodSandboxId {
			out := &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
				Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations,
				Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.1.2.3"},
			}}
			if r.Verbose {
				out.Info = map[string]string{"held": `["netns","network"]`, "note": "plain"}
			}
			return out, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no pod %s", r.PodSandboxId)
}

func (f *fakeCRI) StopPodSandbox(_ context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	for _, s := range f.sandboxes {
		if s.Id == r.PodSandboxId {
			s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		}
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (f *fakeCRI) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	var pods []*runtimeapi.PodSandbox
	for _, s := range f.sandboxes {
		if s.Id != r.PodSandboxId {
			pods = append(pods, s)
		}
	}
	var left []*fakeContainer
	for _, c := range f.containers {
		if c.pod != r.PodSandboxId {
			left = append(left, c)
		}
	}
	f.sandboxes, f.containers = pods, left
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (f *fakeCRI) CreateContainer(_ context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	c := &fakeContainer{config: r.Config, pod: r.PodSandboxId, status: &runtimeapi.ContainerStatus{
		Id: fakeID("cc", len(f.containers)), Metadata: r.Config.Metadata, CreatedAt: time.Now().UnixNano(), Image: r.Config.Image,
		Labels: r.Config.Labels, Annotations: r.Config.Annotations, Mounts: r.Config.Mounts,
		LogPath: filepath.Join(f.logDirs[r.PodSandboxId], r.Config.LogPath),
	}}
	for _, m := range r.Config.Mounts {
		if _, err := os.Stat(m.HostPath); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	f.containers = append(f.containers, c)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.status.Id}, nil
}

func (f *fakeCRI) StartContainer(_ context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	c.status.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	log := "2026-01-02T03:04:05.000000006Z stdout F " + c.config.Metadata.Name + " runs\n"
	if cmd := c.config.Command; len(cmd) > 1 && cmd[0] == "exit" {
		c.status.State = runtimeapi.ContainerState_CONTAINER_EXITED
		fmt.Sscan(cmd[1], &c.status.ExitCode)
		c.status.Reason = "Error"
		log += "2026-01-02T03:04:06Z stderr P it \n2026-01-02T03:04:07Z stderr F ends\n"
	}
	return &runtimeapi.StartContainerResponse{}, os.WriteFile(c.status.LogPath, []byte(log), 0o644)
}

func (f *fakeCRI) StopContainer(_ context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	f.calls[len(f.calls)-1] += fmt.Sprintf(" %s %d", c.config.Metadata.Name, r.Timeout)
	c.status.State = runtimeapi.ContainerState_CONTAINER_EXITED
	return &runtimeapi.StopContainerResponse{}, nil
}

func (f *fakeCRI) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range f.containers {
		if id := r.GetFilter().GetPodSandboxId(); id != "" && id != c.pod {
			continue
		}
		if s := r.GetFilter().GetState(); s != nil && s.State != c.status.State {
			continue
		}
		out.Containers = append(out.Containers, &runtimeapi.Container{
			Id: c.status.Id, PodSandboxId: c.pod, Metadata: c.status.Metadata, State: c.status.State,
			Image: c.status.Image, Labels: c.status.Labels, Annotations: c.status.Annotations, CreatedAt: c.status.CreatedAt,
		})
	}
	return out, nil
}

func (f *fakeCRI) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatusResponse{Status: c.status}, nil
}

func (f *fakeCRI) ExecSync(_ context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	var out, errOut bytes.Buffer
	code, err := f.run(c, r.Cmd, monitor.Stream{Stdout: &out, Stderr: &errOut})
	return &runtimeapi.ExecSyncResponse{Stdout: out.Bytes(), Stderr: errOut.Bytes(), ExitCode: int32(code)}, err
}

func (f *fakeCRI) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	url, err := f.streams.Exec(stream.Command{
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, TTY: r.Tty,
		Run: func(_ context.Context, s monitor.Stream) (int, error) { return f.run(c, r.Cmd, s) },
	})
	return &runtimeapi.ExecResponse{Url: url}, err
}

func (f *fakeCRI) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	url, err := f.streams.Attach(stream.Command{
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, TTY: r.Tty,
		Run: func(_ context.Context, s monitor.Stream) (int, error) { return f.run(c, nil, s) },
	})
	return &runtimeapi.AttachResponse{Url: url}, err
}

func (f *fakeCRI) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	url, err := f.streams.Forward(stream.Forward{Pod: r.PodSandboxId, Dial: func(ctx context.Context, port uint16) (net.Conn, error) {
		if port != 80 {
			return nil, fmt.Errorf("nothing listens on port %d", port)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", f.port)
	}})
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// run is what a command does: program, or what tells who it is.
func (f *fakeCRI) run(c *fakeContainer, cmd []string, s monitor.Stream) (code int, err error) {
	if f.program != nil {
		return f.program(c, cmd, s)
	}
	fmt.Fprintf(s.Stdout, "%s: %q\n", c.config.Metadata.Name, cmd)
	fmt.Fprint(s.Stderr, "err\n")
	if cmd[0] == "exit" {
		fmt.Sscan(cmd[1], &code)
	}
	return code, nil
}

func (f *fakeCRI) container(id string) (*fakeContainer, error) {
	for _, c := range f.containers {
		if c.status.Id == id {
			return c, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no container %s", id)
}

func (f *fakeCRI) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: f.images}, nil
}

func (f *fakeCRI) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	for _, i := range f.images {
		if i.Id == r.Image.Image || i.RepoTags[0] == r.Image.Image {
			return &runtimeapi.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (f *fakeCRI) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	f.auth = r.Auth
	i := &runtimeapi.Image{Id: "sha256:" + fakeID("11", len(f.images)), RepoTags: []string{r.Image.Image}, Size: 1300 << 10}
	f.images = append(f.images, i)
	return &runtimeapi.PullImageResponse{ImageRef: i.Id}, nil
}

func (f *fakeCRI) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	f.images = nil
	return &runtimeapi.RemoveImageResponse{}, nil
}
