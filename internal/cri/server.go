package cri

import (
	"context"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/calls"
	"github.com/davit-runtime/davit/internal/cri/metrics"
	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/pod"
)

// Pods makes, ends and shows pods. *pod.Pods implements it and the next four.
type Pods interface {
	Run(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (id string, err error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Pod(id string) (*pod.Snapshot, error)
	List() []*pod.Snapshot
}

// Containers moves containers through their life.
type Containers interface {
	CreateContainer(ctx context.Context, podID string, config *runtimeapi.ContainerConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
}

// Resources changes limits.
type Resources interface {
	UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error
	UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error
}

// Views shows containers; it never blocks.
type Views interface {
	Container(id string) (*pod.ContainerSnapshot, error)
	Live() []*pod.ContainerSnapshot // created or running
	// EachContainer has of those that have exited only what lists show.
	EachContainer() iter.Seq[*pod.ContainerSnapshot]
	ContainersOf(podID string) []*pod.ContainerSnapshot
	States() (pods, containers map[pod.State]int)
}

// Sessions reaches into containers that run.
type Sessions interface {
	ReopenLog(ctx context.Context, id string) error
	Exec(ctx context.Context, id string, args []string, timeout time.Duration) (monitor.ExecResult, error)
	ExecStream(ctx context.Context, id string, args []string, s monitor.Stream) (code int, err error)
	Attach(ctx context.Context, id string, s monitor.Stream) error
}

// Images keeps images. *image.Store implements it.
type Images interface {
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Get(ref string) (image.Image, error) // NotFound if absent
	List() []image.Image
	Remove(ctx context.Context, ref string) error // unknown references succeed
	Usage() image.Usage
}

// Parts are what the surface calls.
type Parts struct {
	Pods       Pods
	Containers Containers
	Resources  Resources
	Views      Views
	Sessions   Sessions
	Images     Images
	Streams    Streams
	Stats      Stats
	Events     Events
	Network    Network
}

// Network connects pods. *network.Network implements it.
type Network interface {
	// SetPodCIDR gives pods to come addresses of these subnets.
	SetPodCIDR(ctx context.Context, subnets []netip.Prefix) error
}

// A Config says what the surface tells about this node.
type Config struct {
	validate.Node
	Version       string       // davit's, semantic
	SystemdCgroup bool         // cgroups by systemd instead of cgroupfs
	RuntimeReady  func() error // nil: ready; else the reason, for people
	NetworkReady  func() error // nil: ready; else the reason, for people
	// Troubles are what somebody should look at though pods run, a line each.
	Troubles func() []string
	// Spec returns a container's OCI runtime spec as it is on disk, for verbose status.
	Spec func(containerID string) ([]byte, error)
	// Dial connects to a port of the loopback interface in the network
	// namespace pinned at netns; empty is the host's.
	Dial    func(ctx context.Context, netns string, port uint16) (net.Conn, error)
	Metrics *metrics.Table // what this host can tell
	// Info is told in verbose Status as "config", in JSON.
	Info any
	// Stopping is closed when davitd is to stop: streams without an end end then.
	Stopping <-chan struct{}
	Calls    *calls.Calls // is told of each call; nil: nobody asks
	Log      *slog.Logger
}

// maxMessageBytes bounds one message in either direction: what the kubelet's
// client accepts. k8s.io/cri-client: maxMsgSize.
const maxMessageBytes = 16 << 20

// service implements both services of the CRI.
type service struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	Parts
	config  Config
	readers readers
}

// A Surface is the CRI's handlers, to be put on servers. The caller serves and
// stops those.
type Surface struct {
	service  *service
	versions []Version
}

// New returns the handlers of both services under the versions' names. No
// versions are all of them.
func New(p Parts, c Config, versions ...Version) *Surface {
	if len(versions) == 0 {
		versions = Versions
	}
	if c.Calls == nil {
		c.Calls = calls.New()
	}
	return &Surface{&service{Parts: p, config: c}, versions}
}

// Server returns a server with both services and the health service.
func (s *Surface) Server() *grpc.Server {
	g, h := s.empty()
	for _, v := range s.versions {
		s.runtime(g, h, v)
		s.images(g, h, v)
	}
	return g
}

// ImageServer returns a server with the image service and the health service:
// for kubelets with an image service endpoint of its own.
func (s *Surface) ImageServer() *grpc.Server {
	g, h := s.empty()
	for _, v := range s.versions {
		s.images(g, h, v)
	}
	return g
}

// Empty returns a server with the health service only, for services that are
// not the CRI's.
func (s *Surface) Empty() *grpc.Server {
	g, _ := s.empty()
	return g
}

func (s *Surface) empty() (*grpc.Server, *health.Server) {
	i := intercept{s.service.config.Log, s.service.config.Calls, s.service.names}
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
	)
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, h)
	return g, h
}
