package crifake

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

type runtimeService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	*Runtime
}

type pod struct {
	*runtimeapi.PodSandbox
	config  *runtimeapi.PodSandboxConfig
	address string
}

// Pods returns all pods, oldest first.
func (r *Runtime) Pods() []*runtimeapi.PodSandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.PodSandbox
	for _, p := range r.pods {
		out = append(out, proto.CloneOf(p.PodSandbox))
	}
	return out
}

// id makes an ID of 64 digits that tells what it is of. r.mu must be held.
func (r *Runtime) id(kind string) string {
	n := r.counters[kind]
	r.counters[kind]++
	return fmt.Sprintf("%s%010x%052x", kind, n, 0)
}

// pod finds by ID or the beginning of one. r.mu must be held.
func (r *Runtime) pod(id string) *pod {
	for _, p := range r.pods {
		if id != "" && strings.HasPrefix(p.Id, id) {
			return p
		}
	}
	return nil
}

func noPod(id string) error { return status.Errorf(codes.NotFound, "no pod %q", id) }

func (r runtimeService) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1.2.3", RuntimeApiVersion: string(spoken(ctx))}, nil
}

// spoken is the version in which a call came.
func spoken(ctx context.Context) criclient.Version {
	if path, _ := grpc.Method(ctx); strings.HasPrefix(path, "/runtime.v1alpha2.") {
		return criclient.V1alpha2
	}
	return criclient.V1
}

func (r runtimeService) Status(ctx context.Context, _ *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{}}
	kinds := []string{runtimeapi.RuntimeReady, runtimeapi.NetworkReady}
	for _, kind := range slices.Sorted(maps.Keys(r.conditions)) {
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	for _, kind := range kinds {
		out.Status.Conditions = append(out.Status.Conditions, proto.CloneOf(r.conditions[kind]))
	}
	if spoken(ctx) == criclient.V1 {
		out.RuntimeHandlers = []*runtimeapi.RuntimeHandler{
			{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}, {Name: "runc"},
		}
	}
	return out, nil
}

func (r runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_SYSTEMD}}, nil
}

func (r runtimeService) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

func (r runtimeService) RunPodSandbox(_ context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if q.GetConfig().GetMetadata() == nil {
		return nil, status.Error(codes.InvalidArgument, "config.metadata: is required")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		if proto.Equal(p.Metadata, q.Config.Metadata) {
			return &runtimeapi.RunPodSandboxResponse{PodSandboxId: p.Id}, nil
		}
	}
	p := &pod{
		PodSandbox: &runtimeapi.PodSandbox{
			Id: r.id("aa"), Metadata: q.Config.Metadata, Labels: q.Config.Labels, Annotations: q.Config.Annotations,
			CreatedAt: time.Now().UnixNano(), RuntimeHandler: q.RuntimeHandler,
		},
		config: q.Config,
	}
	p.address = fmt.Sprintf("10.1.2.%d", len(r.pods)%200+3)
	r.pods = append(r.pods, p)
	r.tell(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, p.Id, p)
	r.tell(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, p.Id, p)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: p.Id}, nil
}

func (r runtimeService) StopPodSandbox(_ context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pod(q.PodSandboxId); p != nil && p.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		for _, c := range r.cons {
			if c.pod == p {
				r.end(c, 137)
			}
		}
		p.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		r.tell(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, p.Id, p)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r runtimeService) RemovePodSandbox(_ context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pod(q.PodSandboxId); p != nil {
		r.cons = slices.DeleteFunc(r.cons, func(c *container) bool { return c.pod == p })
		r.pods = slices.DeleteFunc(r.pods, func(o *pod) bool { return o == p })
		r.tell(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, p.Id, p)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// status is p's. r.mu must be held.
func (r *Runtime) status(p *pod) *runtimeapi.PodSandboxStatus {
	return &runtimeapi.PodSandboxStatus{
		Id: p.Id, Metadata: p.Metadata, State: p.State, CreatedAt: p.CreatedAt, Labels: p.Labels, Annotations: p.Annotations,
		RuntimeHandler: p.RuntimeHandler, Network: &runtimeapi.PodSandboxNetworkStatus{Ip: p.address},
	}
}

func (r runtimeService) PodSandboxStatus(_ context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pod(q.PodSandboxId)
	if p == nil {
		return nil, noPod(q.PodSandboxId)
	}
	out := &runtimeapi.PodSandboxStatusResponse{Status: proto.CloneOf(r.status(p))}
	if q.Verbose {
		out.Info = r.info
	}
	return out, nil
}

// matching returns the pods that fit f.
func (r *Runtime) matching(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, p := range r.Pods() {
		if strings.HasPrefix(p.Id, f.GetId()) && (f.GetState() == nil || f.GetState().State == p.State) && fits(p.Labels, f.GetLabelSelector()) {
			out = append(out, p)
		}
	}
	return out
}

func fits(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (r runtimeService) ListPodSandbox(_ context.Context, q *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: r.matching(q.Filter)}, nil
}

func (r runtimeService) StreamPodSandboxes(q *runtimeapi.StreamPodSandboxesRequest, s grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return send(r.Runtime, r.matching(q.Filter), func(part []*runtimeapi.PodSandbox) error {
		return s.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

// send sends all in parts.
func send[Item any](r *Runtime, all []Item, one func([]Item) error) error {
	r.mu.Lock()
	n := r.chunk
	r.mu.Unlock()
	for part := range slices.Chunk(all, n) {
		if err := one(part); err != nil {
			return err
		}
	}
	return nil
}

func (r runtimeService) UpdatePodSandboxResources(_ context.Context, q *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pod(q.PodSandboxId) == nil {
		return nil, noPod(q.PodSandboxId)
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// logPath is where a container's log is, or nothing.
func (p *pod) logPath(name string) string {
	if p.config.GetLogDirectory() == "" || name == "" {
		return ""
	}
	return filepath.Join(p.config.LogDirectory, name)
}
