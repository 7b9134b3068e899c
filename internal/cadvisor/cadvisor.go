// Package cadvisor tells cAdvisor, which every kubelet contains, whose the
// control groups are that it finds: the names in a kubelet's /metrics/cadvisor.
//
// cAdvisor knows no runtime by the CRI. It asks containerd, by the name of a
// control group, at /run/containerd/containerd.sock or, with kubelets that have
// it yet, where their flag --containerd says; and it makes three calls only.
// Those are answered here, of davit's containers, so that dashboards and alerts
// find the labels that they had.
//
// Nothing is kept but which container stands for its pod's network. cmd/davitd
// puts the service on its sockets.
//
// cAdvisor: lib/container/containerd/{client,factory,handler}.go, v0.60.5; the
// same calls since v0.30 of 2018.
package cadvisor

import (
	"context"
	"maps"
	"sync"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	versions "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/pod"
)

// Pods knows pods and containers; it never blocks. *pod.Pods implements it.
type Pods interface {
	Pod(id string) (*pod.Snapshot, error)
	// Emerging returns a container, also one that is being made: cAdvisor asks
	// as soon as it sees a control group, and once only.
	Emerging(id string) (*pod.ContainerSnapshot, error)
	Live() []*pod.ContainerSnapshot // the oldest first
}

// A Service is to be put on servers.
type Service struct {
	book    book
	version string
}

// New returns the service. version is davit's.
func New(pods Pods, version string) *Service {
	s := &Service{book: book{pods: pods, faces: map[string]string{}}, version: version}
	for _, c := range pods.Live() {
		s.book.isFace(c)
	}
	return s
}

// Register puts the service on a server.
func (s *Service) Register(to grpc.ServiceRegistrar) {
	containers.RegisterContainersServer(to, &containerService{book: &s.book})
	tasks.RegisterTasksServer(to, &taskService{book: &s.book})
	versions.RegisterVersionServer(to, &versionService{version: s.version})
}

// kind is the label by which cAdvisor decides to count network interfaces: it
// does so for one process of a pod, which with containerd is the pause
// container's.
const kind = "io.cri-containerd.kind"

// spec is all of an OCI runtime spec that cAdvisor reads: it expects a process,
// of whose environment a kubelet wants nothing.
const spec = `{"ociVersion":"1.0.2","process":{"cwd":"/","env":[]}}`

// A book knows the containers, and which stands for its pod's network.
type book struct {
	pods Pods

	mu    sync.Mutex
	faces map[string]string // by pod ID, the container's
}

// A subject is what a control group is of.
type subject struct {
	id      string
	labels  map[string]string // may be nil
	network bool
	image   string
	created *timestamppb.Timestamp
	pid     int // 0: not yet
	status  task.Status
	code    int
}

// find returns the container whose ID it is, or the pod, where that has a
// process of its own. NotFound if there is neither.
func (b *book) find(id string) (*subject, error) {
	if c, err := b.pods.Emerging(id); err == nil {
		return &subject{
			id: c.ID, labels: c.Config.GetLabels(), network: b.isFace(c), image: nameOf(c.Config.GetImage()),
			created: timestamppb.New(c.CreatedAt), pid: c.Pid, status: statusOf(c.State), code: c.ExitCode,
		}, nil
	}
	p, err := b.pods.Pod(id)
	if err != nil {
		return nil, fault.New(fault.NotFound, "", "no container or pod %q", id)
	}
	if p.HolderPid == 0 {
		return nil, fault.New(fault.NotFound, "", "pod %s has no process of its own", id)
	}
	return &subject{
		id: p.ID, labels: p.Config.GetLabels(), network: !onHost(p), created: timestamppb.New(p.CreatedAt),
		pid: p.HolderPid, status: task.Status_RUNNING,
	}, nil
}

// isFace reports whether a container stands for its pod's network: the first
// that asks while no other one does. A pod has no process that lives as long as
// itself, unless it shares a PID namespace; then that one does. The host's
// network is no pod's.
func (b *book) isFace(c *pod.ContainerSnapshot) bool {
	p, err := b.pods.Pod(c.PodID)
	if err != nil || onHost(p) || p.HolderPid != 0 || !mayRun(c) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now, ok := b.faces[c.PodID]; ok {
		if now == c.ID {
			return true
		}
		if other, err := b.pods.Emerging(now); err == nil && mayRun(other) {
			return false
		}
	}
	maps.DeleteFunc(b.faces, func(id, _ string) bool {
		_, err := b.pods.Pod(id)
		return err != nil
	})
	b.faces[c.PodID] = c.ID
	return true
}

func mayRun(c *pod.ContainerSnapshot) bool {
	return c.State == pod.Preparing || c.State == pod.Created || c.State == pod.Running
}

func onHost(p *pod.Snapshot) bool {
	return p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// nameOf is what the user called an image.
func nameOf(i *runtimeapi.ImageSpec) string {
	if name := i.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return i.GetImage()
}

func statusOf(s pod.State) task.Status {
	switch s {
	case pod.Created:
		return task.Status_CREATED
	case pod.Running:
		return task.Status_RUNNING
	case pod.Exited:
		return task.Status_STOPPED
	}
	return task.Status_UNKNOWN // cAdvisor asks again, some times
}

type containerService struct {
	containers.UnimplementedContainersServer
	book *book
}

// Get tells the labels, among them those of the kubelet's: pod, namespace and
// container.
func (s *containerService) Get(_ context.Context, r *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	c, err := s.book.find(r.GetID())
	if err != nil {
		return nil, err
	}
	labels := make(map[string]string, len(c.labels)+1)
	maps.Copy(labels, c.labels)
	labels[kind] = "container"
	if c.network {
		labels[kind] = "sandbox"
	}
	return &containers.GetContainerResponse{Container: &containers.Container{
		ID: c.id, Labels: labels, Image: c.image, CreatedAt: c.created, UpdatedAt: c.created,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(spec)},
	}}, nil
}

type taskService struct {
	tasks.UnimplementedTasksServer
	book *book
}

// Get tells the process, by which cAdvisor finds network interfaces, and how it
// ended. NotFound before there is one: cAdvisor then asks again for 3 s.
func (s *taskService) Get(_ context.Context, r *tasks.GetRequest) (*tasks.GetResponse, error) {
	c, err := s.book.find(r.GetContainerID())
	if err != nil {
		return nil, err
	}
	if c.pid == 0 && c.status != task.Status_STOPPED {
		return nil, fault.New(fault.NotFound, "", "container %s has no process yet", c.id)
	}
	return &tasks.GetResponse{Process: &task.Process{
		ContainerID: c.id, ID: c.id, Pid: uint32(c.pid), Status: c.status, ExitStatus: uint32(c.code),
	}}, nil
}

type versionService struct {
	versions.UnimplementedVersionServer
	version string
}

// Version is asked for once, when a kubelet starts: if it fails, the kubelet
// asks for nothing else until it is started again.
func (s *versionService) Version(context.Context, *emptypb.Empty) (*versions.VersionResponse, error) {
	return &versions.VersionResponse{Version: s.version}, nil
}
