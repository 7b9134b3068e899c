package cri

import (
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/stats"
)

// Stats reads figures. *stats.Reader implements it.
type Stats interface {
	Container(c *pod.ContainerSnapshot) (*stats.Container, error)
	Containers(list []*pod.ContainerSnapshot) []*stats.Container
	Pods(list []*pod.Snapshot) ([]*stats.Pod, error)
	Layers() image.Usage            // all writable ones together
	Details() ([]*stats.Pod, error) // for metrics
}

func (s *service) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	var c validate.Check
	if c.Set("container_id", r.GetContainerId()); c.Err != nil {
		return nil, c.Err
	}
	ctr, err := s.Views.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	got, err := s.Stats.Container(ctr)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: containerStats(got)}, nil
}

func (s *service) ListContainerStats(_ context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	all, err := inOne(slices.Values(s.containersStats(r.GetFilter())), "StreamContainerStats")
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: all}, nil
}

func (s *service) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, to runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	return inBatches(slices.Values(s.containersStats(r.GetFilter())), func(some []*runtimeapi.ContainerStats) error {
		return to.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: some})
	})
}

// containersStats returns those of containers that run, or are about to.
func (s *service) containersStats(f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	var want []*pod.ContainerSnapshot
	for _, c := range s.Views.Live() {
		if strings.HasPrefix(c.ID, f.GetId()) && strings.HasPrefix(c.PodID, f.GetPodSandboxId()) &&
			hasLabels(c.Config.GetLabels(), f.GetLabelSelector()) {
			want = append(want, c)
		}
	}
	got := s.Stats.Containers(want)
	all := make([]*runtimeapi.ContainerStats, 0, len(got))
	for _, c := range got {
		all = append(all, containerStats(c))
	}
	return all
}

// PodSandboxStats answers InvalidArgument to an empty ID: with that the
// kubelet asks whether the call is there at all.
func (s *service) PodSandboxStats(_ context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	var c validate.Check
	if c.Set("pod_sandbox_id", r.GetPodSandboxId()); c.Err != nil {
		return nil, c.Err
	}
	p, err := s.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	got, err := s.Stats.Pods([]*pod.Snapshot{p})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: podStats(got[0])}, nil
}

func (s *service) ListPodSandboxStats(_ context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	got, err := s.podsStats(r.GetFilter())
	if err != nil {
		return nil, err
	}
	all, err := inOne(slices.Values(got), "StreamPodSandboxStats")
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: all}, nil
}

func (s *service) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, to runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	got, err := s.podsStats(r.GetFilter())
	if err != nil {
		return err
	}
	return inBatches(slices.Values(got), func(some []*runtimeapi.PodSandboxStats) error {
		return to.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: some})
	})
}

// podsStats returns those of pods that are ready.
func (s *service) podsStats(f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var want []*pod.Snapshot
	for _, p := range s.Pods.List() {
		if p.State == pod.Ready && strings.HasPrefix(p.ID, f.GetId()) && hasLabels(p.Config.GetLabels(), f.GetLabelSelector()) {
			want = append(want, p)
		}
	}
	got, err := s.Stats.Pods(want)
	if err != nil {
		return nil, err
	}
	all := make([]*runtimeapi.PodSandboxStats, 0, len(got))
	for _, p := range got {
		all = append(all, podStats(p))
	}
	return all, nil
}

func (s *service) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: s.config.Metrics.Descriptors()}, nil
}

func (s *service) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	pods, err := s.Stats.Details()
	if err != nil {
		return nil, err
	}
	all, err := inOne(s.metrics(pods), "StreamPodSandboxMetrics")
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: all}, nil
}

func (s *service) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, to runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	pods, err := s.Stats.Details()
	if err != nil {
		return err
	}
	return inBatches(s.metrics(pods), func(some []*runtimeapi.PodSandboxMetrics) error {
		return to.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: some})
	})
}

// metrics makes one pod's at a time.
func (s *service) metrics(pods []*stats.Pod) iter.Seq[*runtimeapi.PodSandboxMetrics] {
	return func(yield func(*runtimeapi.PodSandboxMetrics) bool) {
		for _, p := range pods {
			if !yield(s.config.Metrics.Of(p)) {
				return
			}
		}
	}
}

func containerStats(c *stats.Container) *runtimeapi.ContainerStats {
	all := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          c.ID,
			Metadata:    c.Config.GetMetadata(),
			Labels:      c.Config.GetLabels(),
			Annotations: c.Config.GetAnnotations(),
		},
		WritableLayer: filesystemUsage(c.Layer),
	}
	if c.At.IsZero() { // it has exited: its files are all there is
		return all
	}
	at := c.At.UnixNano()
	all.Cpu = cpuUsage(&c.Reading, c.NanoCores)
	all.Memory = memoryUsage(&c.Reading)
	all.Io = &runtimeapi.IoUsage{Timestamp: at, Psi: psi(c.Pressure.IO)}
	all.Swap = &runtimeapi.SwapUsage{Timestamp: at}
	if c.Swap.Known {
		all.Swap.SwapUsageBytes = value(c.Swap.Usage)
		all.Swap.SwapAvailableBytes = available(c.Swap.Limit, c.Swap.Usage)
	}
	return all
}

func podStats(p *stats.Pod) *runtimeapi.PodSandboxStats {
	at := p.At.UnixNano()
	linux := &runtimeapi.LinuxPodSandboxStats{
		Cpu:     cpuUsage(&p.Reading, p.NanoCores),
		Memory:  memoryUsage(&p.Reading),
		Io:      &runtimeapi.IoUsage{Timestamp: at, Psi: psi(p.Pressure.IO)},
		Process: &runtimeapi.ProcessUsage{Timestamp: at, ProcessCount: value(p.Processes)},
	}
	for i, in := range p.Interfaces {
		u := interfaceUsage(in)
		if i == 0 {
			linux.Network = &runtimeapi.NetworkUsage{Timestamp: at, DefaultInterface: u}
			continue
		}
		linux.Network.Interfaces = append(linux.Network.Interfaces, u)
	}
	for _, c := range p.Containers {
		linux.Containers = append(linux.Containers, containerStats(c))
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          p.ID,
			Metadata:    p.Config.GetMetadata(),
			Labels:      p.Config.GetLabels(),
			Annotations: p.Config.GetAnnotations(),
		},
		Linux: linux,
	}
}

func cpuUsage(r *cgroup.Reading, nanoCores uint64) *runtimeapi.CpuUsage {
	u := &runtimeapi.CpuUsage{Timestamp: r.At.UnixNano(), Psi: psi(r.Pressure.CPU)}
	if r.CPU.Known {
		u.UsageCoreNanoSeconds, u.UsageNanoCores = value(r.CPU.UsageNanos), value(nanoCores)
	}
	return u
}

func memoryUsage(r *cgroup.Reading) *runtimeapi.MemoryUsage {
	u := &runtimeapi.MemoryUsage{Timestamp: r.At.UnixNano(), Psi: psi(r.Pressure.Memory)}
	if m := &r.Memory; m.Known {
		u.UsageBytes, u.WorkingSetBytes, u.RssBytes = value(m.Usage), value(m.WorkingSet()), value(m.Anon)
		u.PageFaults, u.MajorPageFaults = value(m.Faults), value(m.MajorFaults)
		u.AvailableBytes = available(m.Limit, m.WorkingSet())
	}
	return u
}

func interfaceUsage(i namespace.Interface) *runtimeapi.NetworkInterfaceUsage {
	return &runtimeapi.NetworkInterfaceUsage{
		Name:    i.Name,
		RxBytes: value(i.Rx.Bytes), RxErrors: value(i.Rx.Errors),
		TxBytes: value(i.Tx.Bytes), TxErrors: value(i.Tx.Errors),
	}
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiStats{Full: psiData(p.Full), Some: psiData(p.Some)}
}

func psiData(s cgroup.Stall) *runtimeapi.PsiData {
	return &runtimeapi.PsiData{
		Total: s.TotalMicros * uint64(time.Microsecond/time.Nanosecond),
		Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300,
	}
}

func value(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// available is nil without a limit.
func available(limit, used uint64) *runtimeapi.UInt64Value {
	if limit == cgroup.Unlimited {
		return nil
	}
	return value(limit - min(limit, used))
}
