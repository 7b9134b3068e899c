package crifake

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventsKept is how many events a subscriber may be behind; it loses others.
const eventsKept = 1000

// tell sends an event to all subscribers; id is a container's or p's. r.mu
// must be held.
func (r *Runtime) tell(kind runtimeapi.ContainerEventType, id string, p *pod) {
	e := &runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(), PodSandboxStatus: r.status(p),
	}
	for _, c := range r.cons {
		if c.pod == p {
			e.ContainersStatuses = append(e.ContainersStatuses, c.ContainerStatus)
		}
	}
	e = proto.CloneOf(e)
	for w := range r.watchers {
		select {
		case w <- e:
		default:
		}
	}
}

// Subscribers returns how many streams of events are open.
func (r *Runtime) Subscribers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.watchers)
}

func (r runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	events := make(chan *runtimeapi.ContainerEventResponse, eventsKept)
	r.mu.Lock()
	r.watchers[events] = true
	confirm := !r.silent
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, events)
	}()
	if confirm {
		if err := s.SendHeader(nil); err != nil {
			return err
		}
	}
	for {
		select {
		case e := <-events:
			if err := s.Send(e); err != nil {
				return err
			}
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// statsLike returns statistics of the running containers that fit f.
func (r *Runtime) statsLike(f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	var out []*runtimeapi.ContainerStats
	for _, c := range r.containersLike(&runtimeapi.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}) {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out = append(out, containerStats(c))
		}
	}
	return out
}

func containerStats(c *runtimeapi.Container) *runtimeapi.ContainerStats {
	now := time.Now().UnixNano()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.Id, Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: 1e9}},
		Memory:     &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: &runtimeapi.UInt64Value{Value: 1 << 20}},
	}
}

func (r runtimeService) ContainerStats(_ context.Context, q *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	found := r.containersLike(&runtimeapi.ContainerFilter{Id: q.ContainerId})
	if q.ContainerId == "" || len(found) == 0 {
		return nil, noContainer(q.ContainerId)
	}
	return &runtimeapi.ContainerStatsResponse{Stats: containerStats(found[0])}, nil
}

func (r runtimeService) ListContainerStats(_ context.Context, q *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: r.statsLike(q.Filter)}, nil
}

func (r runtimeService) StreamContainerStats(q *runtimeapi.StreamContainerStatsRequest, s grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return send(r.Runtime, r.statsLike(q.Filter), func(part []*runtimeapi.ContainerStats) error {
		return s.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: part})
	})
}

func (r *Runtime) podStats(p *runtimeapi.PodSandbox) *runtimeapi.PodSandboxStats {
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: p.Id, Metadata: p.Metadata, Labels: p.Labels, Annotations: p.Annotations},
		Linux:      &runtimeapi.LinuxPodSandboxStats{Containers: r.statsLike(&runtimeapi.ContainerStatsFilter{PodSandboxId: p.Id})},
	}
}

func (r *Runtime) podStatsLike(f *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	var out []*runtimeapi.PodSandboxStats
	for _, p := range r.matching(&runtimeapi.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()}) {
		out = append(out, r.podStats(p))
	}
	return out
}

func (r runtimeService) PodSandboxStats(_ context.Context, q *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	found := r.matching(&runtimeapi.PodSandboxFilter{Id: q.PodSandboxId})
	if q.PodSandboxId == "" || len(found) == 0 {
		return nil, noPod(q.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: r.podStats(found[0])}, nil
}

func (r runtimeService) ListPodSandboxStats(_ context.Context, q *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: r.podStatsLike(q.Filter)}, nil
}

func (r runtimeService) StreamPodSandboxStats(q *runtimeapi.StreamPodSandboxStatsRequest, s grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return send(r.Runtime, r.podStatsLike(q.Filter), func(part []*runtimeapi.PodSandboxStats) error {
		return s.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

// metric is the one that the fake has.
const metric = "container_last_seen"

func (r runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{{
		Name: metric, Help: "Last time a container was seen by the exporter", LabelKeys: []string{"id"},
	}}}, nil
}

func (r *Runtime) metrics() []*runtimeapi.PodSandboxMetrics {
	var out []*runtimeapi.PodSandboxMetrics
	for _, p := range r.Pods() {
		now := time.Now()
		out = append(out, &runtimeapi.PodSandboxMetrics{PodSandboxId: p.Id, Metrics: []*runtimeapi.Metric{{
			Name: metric, Timestamp: now.UnixNano(), MetricType: runtimeapi.MetricType_GAUGE, LabelValues: []string{p.Id},
			Value: &runtimeapi.UInt64Value{Value: uint64(now.Unix())},
		}}})
	}
	return out
}

func (r runtimeService) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: r.metrics()}, nil
}

func (r runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, s grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return send(r.Runtime, r.metrics(), func(part []*runtimeapi.PodSandboxMetrics) error {
		return s.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}
