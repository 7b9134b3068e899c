package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/calls"
	"github.com/davit-runtime/davit/internal/cri/metrics"
	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/stream"
)

// world stands in for pod and image: it knows some pods, containers and
// images, and notes what it is asked to do. A non-nil fail is every call's answer.
type world struct {
	mu         sync.Mutex
	pods       []*pod.Snapshot
	containers []*pod.ContainerSnapshot
	images     []image.Image
	fail       error
	panics     bool
	calls      *calls.Calls
	done       []string
	auth       image.Auth
	grace      time.Duration
	config     *runtimeapi.ContainerConfig
	command    stream.Command
	forward    stream.Forward
	joined     monitor.Stream
	events     chan pod.Event
	stopping   chan struct{}
	troubles   []string
}

func (w *world) do(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.panics {
		panic("the world ends")
	}
	w.done = append(w.done, what)
	return w.fail
}

func (w *world) Run(_ context.Context, _ *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return "newpod", w.do("run " + handler)
}
func (w *world) Stop(_ context.Context, id string) error   { return w.do("stop " + id) }
func (w *world) Remove(_ context.Context, id string) error { return w.do("remove " + id) }
func (w *world) List() []*pod.Snapshot                     { return w.pods }
func (w *world) Pod(id string) (*pod.Snapshot, error) {
	for _, p := range w.pods {
		if p.ID == id {
			return p, nil
		}
	}
	return nil, fault.New(fault.NotFound, "", "no pod %s", id)
}

func (w *world) CreateContainer(_ context.Context, podID string, c *runtimeapi.ContainerConfig) (string, error) {
	w.config = c
	return "newctr", w.do("create in " + podID)
}
func (w *world) StartContainer(_ context.Context, id string) error { return w.do("start " + id) }
func (w *world) StopContainer(_ context.Context, id string, grace time.Duration) error {
	w.grace = grace
	return w.do("stop " + id)
}
func (w *world) RemoveContainer(_ context.Context, id string) error { return w.do("remove " + id) }
func (w *world) UpdateContainer(_ context.Context, id string, _ *runtimeapi.LinuxContainerResources) error {
	return w.do("update " + id)
}
func (w *world) UpdatePod(_ context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	return w.do(fmt.Sprint("update pod ", id, " ", overhead.GetCpuShares(), " ", resources.GetCpuShares()))
}
func (w *world) Live() []*pod.ContainerSnapshot {
	return slices.DeleteFunc(slices.Clone(w.containers), func(c *pod.ContainerSnapshot) bool { return !live(c) })
}
func live(c *pod.ContainerSnapshot) bool { return c.State == pod.Created || c.State == pod.Running }
func (w *world) EachContainer() iter.Seq[*pod.ContainerSnapshot] {
	return slices.Values(w.containers)
}
func (w *world) ContainersOf(podID string) (all []*pod.ContainerSnapshot) {
	for _, c := range w.containers {
		if c.PodID == podID && c.State != pod.Preparing {
			all = append(all, c)
		}
	}
	return all
}
func (w *world) States() (pods, containers map[pod.State]int) {
	return map[pod.State]int{pod.Ready: len(w.pods)}, map[pod.State]int{pod.Running: len(w.containers)}
}
func (w *world) Subscribe(context.Context) *pod.Subscription {
	return &pod.Subscription{Events: w.events}
}
func (w *world) Container(id string) (*pod.ContainerSnapshot, error) {
	for _, c := range w.containers {
		if c.ID == id {
			return c, nil
		}
	}
	return nil, fault.New(fault.NotFound, "", "no container %s", id)
}
func (w *world) SetPodCIDR(_ context.Context, subnets []netip.Prefix) error {
	return w.do(fmt.Sprint("pod CIDR ", subnets))
}
func (w *world) ReopenLog(_ context.Context, id string) error { return w.do("reopen " + id) }
func (w *world) Exec(_ context.Context, id string, args []string, _ time.Duration) (monitor.ExecResult, error) {
	return monitor.ExecResult{Code: 3, Stdout: []byte("out\xff"), Stderr: []byte("err")}, w.do("exec " + id + " " + args[0])
}

func (w *world) ExecStream(_ context.Context, id string, args []string, s monitor.Stream) (int, error) {
	w.joined = s
	return 4, w.do("exec " + id + " " + args[0])
}
func (w *world) Attach(_ context.Context, id string, s monitor.Stream) error {
	w.joined = s
	return w.do("attach " + id)
}

// streamWorld has the methods of the streaming server.
type streamWorld struct{ *world }

func (w streamWorld) Exec(c stream.Command) (string, error) {
	w.command = c
	return "http://exec", w.do("offer exec")
}
func (w streamWorld) Attach(c stream.Command) (string, error) {
	w.command = c
	return "http://attach", w.do("offer attach")
}
func (w streamWorld) Forward(f stream.Forward) (string, error) {
	w.forward = f
	return "http://forward", w.do("offer forward")
}

// imageWorld has the image methods, whose names overlap with the pod's.
type imageWorld struct{ *world }

func (w imageWorld) Pull(_ context.Context, ref string, o image.PullOptions) (image.Image, error) {
	w.auth = o.Auth
	return image.Image{ID: "sha256:pulled"}, w.do("pull " + ref)
}
func (w imageWorld) Get(ref string) (image.Image, error) {
	for _, i := range w.images {
		if i.ID == ref || slices.Contains(i.RepoTags, ref) {
			return i, nil
		}
	}
	return image.Image{}, fault.New(fault.NotFound, "", "no image %s", ref)
}
func (w imageWorld) List() []image.Image { return w.images }
func (w imageWorld) Usage() image.Usage {
	return image.Usage{Mountpoint: "/images", Bytes: 5, Inodes: 6, At: time.Unix(7, 0)}
}

// server serves the CRI over w in memory; the buffer is its log.
func server(t testing.TB, w *world) (runtimeapi.RuntimeServiceClient, runtimeapi.ImageServiceClient, *grpc.ClientConn, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	surface := New(Parts{Pods: w, Containers: w, Resources: w, Views: w, Sessions: w, Images: imageWorld{w}, Streams: streamWorld{w}, Stats: statsWorld{}, Events: w, Network: w}, Config{
		Version: "1.2.3",
		Node: validate.Node{Handlers: func() []validate.Handler {
			return []validate.Handler{{Name: "runc"}, {Name: "crun", Default: true, RecursiveReadOnly: true, UserNamespaces: true}}
		}},
		Dial: func(_ context.Context, netns string, port uint16) (net.Conn, error) {
			return nil, w.do(fmt.Sprintf("dial %s:%d", netns, port))
		},
		Metrics:      metrics.New(metrics.Host{}),
		RuntimeReady: func() error { return nil },
		NetworkReady: func() error { return errors.New("no CNI plugin bridge in /opt/cni/bin") },
		Troubles:     func() []string { return w.troubles },
		Spec:         func(string) ([]byte, error) { return []byte(`{"ociVersion":"1.0.0"}`), nil },
		Info:         map[string]any{"maxContainerLogLineSize": 16384},
		Stopping:     w.stopping,
		Calls:        w.calls,
		Log:          slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	conn := serve(t, surface.Server())
	return runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn, log
}

// serve serves s in memory and returns a connection to it.
func serve(t testing.TB, s *grpc.Server) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///buf", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		<-served
	})
	return conn
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
