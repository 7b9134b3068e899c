package cri

import (
	"context"
	"iter"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/pod"
)

func (s *service) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	var c validate.Check
	c.Pod(r.GetConfig(), s.config.AppArmor)
	c.Handler("runtime_handler", r.GetRuntimeHandler(), &s.config.Node)
	c.Users(r.GetConfig(), func() validate.Handler { return s.handlerNamed(r.GetRuntimeHandler()) })
	if c.Err != nil {
		return nil, c.Err
	}
	id, err := s.Pods.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *service) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	var c validate.Check
	if c.Set("pod_sandbox_id", r.GetPodSandboxId()); c.Err != nil {
		return nil, c.Err
	}
	if err := s.Pods.Stop(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *service) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	var c validate.Check
	if c.Set("pod_sandbox_id", r.GetPodSandboxId()); c.Err != nil {
		return nil, c.Err
	}
	if err := s.Pods.Remove(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *service) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	all, err := s.listedPods(r.GetFilter())
	if err != nil {
		return nil, err
	}
	items, err := inOne(all, "StreamPodSandboxes")
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxResponse{Items: items}, nil
}

func (s *service) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	all, err := s.listedPods(r.GetFilter())
	if err != nil {
		return err
	}
	return inBatches(all, func(batch []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: batch})
	})
}

// listedPods are the pods that pass f, the oldest first.
func (s *service) listedPods(f *runtimeapi.PodSandboxFilter) (iter.Seq[*runtimeapi.PodSandbox], error) {
	var c validate.Check
	c.Enum("filter.state.state", int32(f.GetState().GetState()), runtimeapi.PodSandboxState_name)
	if c.Err != nil {
		return nil, c.Err
	}
	return func(yield func(*runtimeapi.PodSandbox) bool) {
		for _, p := range s.Pods.List() {
			if item := listedPod(p); wantPod(f, item) && !yield(item) {
				return
			}
		}
	}, nil
}

// PodSandboxStatus leaves the time out. It is read by kubelets with EventedPLEG
// alone: without one they ask for each container's status; with one they take
// the statuses from here, but (1.32 to 1.37 at least) hold none of them for
// active, and run a pod's first init container again and again.
//
// Kubernetes: issue 133371; pkg/kubelet/kuberuntime, GetPodStatus.
func (s *service) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	var c validate.Check
	if c.Set("pod_sandbox_id", r.GetPodSandboxId()); c.Err != nil {
		return nil, c.Err
	}
	p, err := s.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: podStatus(p)}
	if r.GetVerbose() {
		resp.Info = podInfo(p)
	}
	size := proto.Size(resp)
	for _, ctr := range s.Views.ContainersOf(p.ID) {
		status := containerStatus(ctr)
		if size += sizeIn(status); size > maxMessageBytes {
			resp.ContainersStatuses = nil
			break
		}
		resp.ContainersStatuses = append(resp.ContainersStatuses, status)
	}
	return resp, nil
}

// UpdatePodSandboxResources keeps what the kubelet has made of the pod's own
// resources. The kubelet takes an error for a veto.
//
// Kubernetes: pkg/kubelet/kuberuntime, updatePodSandboxResources.
func (s *service) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	var c validate.Check
	c.Set("pod_sandbox_id", r.GetPodSandboxId())
	c.Resources("overhead", r.GetOverhead())
	c.Resources("resources", r.GetResources())
	if c.Err != nil {
		return nil, c.Err
	}
	if err := s.Resources.UpdatePod(ctx, r.GetPodSandboxId(), r.GetOverhead(), r.GetResources()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

func podState(p *pod.Snapshot) runtimeapi.PodSandboxState {
	if p.State == pod.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func listedPod(p *pod.Snapshot) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id:             p.ID,
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p),
		CreatedAt:      p.CreatedAt.UnixNano(),
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
}

func podStatus(p *pod.Snapshot) *runtimeapi.PodSandboxStatus {
	options := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, a := range p.Network.Addrs {
		if i == 0 {
			network.Ip = a.String()
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: a.String()})
	}
	return &runtimeapi.PodSandboxStatus{
		Id:             p.ID,
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p),
		CreatedAt:      p.CreatedAt.UnixNano(),
		Network:        network,
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: options}},
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
}

// wantPod reports whether a pod passes every part of a filter. An ID may be
// abbreviated.
func wantPod(f *runtimeapi.PodSandboxFilter, p *runtimeapi.PodSandbox) bool {
	return strings.HasPrefix(p.GetId(), f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == p.GetState()) &&
		hasLabels(p.GetLabels(), f.GetLabelSelector())
}

func hasLabels(labels, selector map[string]string) bool {
	for key, value := range selector {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}
