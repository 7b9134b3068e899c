package contract

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStats: everything that a kubelet dereferences is there, and figures are
// of the right size.
func TestStats(t *testing.T) {
	w := shared(t)
	w.need("ContainerStats")
	podID, pod := w.pod("stats")
	config := w.config("main", "sleep", "1000")
	config.Labels = map[string]string{"a": "b"}
	ctr := w.run(podID, pod, config)
	// All is written before anybody asks: a runtime may count layers at long intervals.
	r, err := w.exec(ctr, 60, "sh", "-c", "dd if=/dev/zero of=/written bs=1M count=3; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
	if err != nil || r.ExitCode != 0 {
		t.Fatal(r, err)
	}
	var s *runtimeapi.ContainerStats
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		r, err := w.c.ContainerStats(w.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: ctr})
		if err != nil {
			t.Fatal(err)
		}
		s = r.Stats
		if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 20e6 && s.GetWritableLayer().GetUsedBytes().GetValue() >= 3<<20 || time.Now().After(deadline) {
			break
		}
	}
	w.soundContainer(s)
	a := &runtimeapi.ContainerAttributes{Id: ctr, Metadata: config.Metadata, Labels: config.Labels, Annotations: config.Annotations}
	if !proto.Equal(s.Attributes, a) {
		t.Errorf("%v, want %v", s.Attributes, a)
	}
	if n := s.GetCpu().GetUsageCoreNanoSeconds().GetValue(); n < 20e6 || n > 60e9 {
		t.Errorf("CPU time %d ns", n)
	}
	if n := s.GetMemory().GetWorkingSetBytes().GetValue(); n == 0 || n > 256<<20 {
		t.Errorf("working set %d bytes", n)
	}
	if n := s.GetWritableLayer().GetUsedBytes().GetValue(); n < 3<<20 || n > 16<<20 {
		t.Errorf("writable layer of 3 MiB: %d bytes", n)
	}
	list, err := w.c.ListContainerStats(w.ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: podID}})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].GetAttributes().GetId() != ctr {
		t.Errorf("%v, %v", list, err)
	}
	for _, f := range []*runtimeapi.ContainerStatsFilter{{Id: "zz"}, {PodSandboxId: "zz"}, {Id: ctr, LabelSelector: map[string]string{"a": "c"}}} {
		if list, err := w.c.ListContainerStats(w.ctx, &runtimeapi.ListContainerStatsRequest{Filter: f}); err != nil || len(list.Stats) > 0 {
			t.Errorf("%v: %v, %v", f, list, err)
		}
	}
	for _, f := range []*runtimeapi.ContainerStatsFilter{{Id: ctr}, {Id: ctr[:16]}, {Id: ctr, PodSandboxId: podID, LabelSelector: config.Labels}} {
		if list, err := w.c.ListContainerStats(w.ctx, &runtimeapi.ListContainerStatsRequest{Filter: f}); err != nil || len(list.Stats) != 1 {
			t.Errorf("%v: %v, %v", f, list, err)
		}
	}
	must(t, w.stop(ctr, 0), codes.OK)
	if _, err := w.c.ContainerStats(w.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: ctr}); err != nil {
		prefer(t, err, codes.OK)
	}
}

// layerCounted returns once the writable layer was counted, or after 20 s: a
// runtime may count layers at long intervals.
func (w *world) layerCounted(ctr string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		r, err := w.c.ContainerStats(w.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: ctr})
		if err != nil || r.GetStats().GetWritableLayer().GetTimestamp() != 0 {
			return
		}
	}
}

func (w *world) soundContainer(s *runtimeapi.ContainerStats) {
	w.t.Helper()
	switch {
	case s.GetAttributes().GetMetadata() == nil, s.Cpu == nil || s.Cpu.Timestamp == 0 || s.Cpu.UsageCoreNanoSeconds == nil,
		s.Memory == nil || s.Memory.Timestamp == 0 || s.Memory.WorkingSetBytes == nil,
		s.WritableLayer == nil || s.WritableLayer.Timestamp == 0 || s.WritableLayer.UsedBytes == nil,
		!strings.HasPrefix(s.WritableLayer.GetFsId().GetMountpoint(), "/"):
		w.t.Errorf("a kubelet would stumble over %v", s)
	}
	if s.Memory.GetUsageBytes() == nil || s.Memory.GetRssBytes() == nil || s.WritableLayer.GetInodesUsed() == nil || s.Cpu.GetUsageNanoCores() == nil {
		differs(w.t, "figures are missing in %v", s)
	}
}

// TestPodStats: as TestStats, for the pod as a whole.
func TestPodStats(t *testing.T) {
	w := shared(t)
	w.need("PodSandboxStats")
	podID, pod := w.pod("podstats")
	ctr := w.run(podID, pod, w.config("main", "sleep", "1000"))
	w.layerCounted(ctr)
	r, err := w.c.PodSandboxStats(w.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}
	l := r.Stats.GetLinux()
	a := &runtimeapi.PodSandboxAttributes{Id: podID, Metadata: pod.Metadata, Labels: pod.Labels, Annotations: pod.Annotations}
	if got := r.Stats.GetAttributes(); got.GetId() != podID || !proto.Equal(got.GetMetadata(), pod.Metadata) || l == nil {
		t.Fatalf("%v, want %v", r.Stats, a)
	} else if !proto.Equal(got, a) {
		differs(t, "%v, want %v", got, a)
	}
	if len(l.Containers) != 1 {
		t.Fatalf("containers %v", l.Containers)
	}
	w.soundContainer(l.Containers[0])
	if l.Cpu.GetTimestamp() == 0 || l.Memory.GetTimestamp() == 0 {
		t.Errorf("%v", l)
	}
	if l.Process.GetProcessCount().GetValue() == 0 {
		differs(t, "processes: %v", l.Process)
	}
	switch n := l.Network; {
	case n == nil, n.DefaultInterface == nil, n.DefaultInterface.Name == "", n.DefaultInterface.Name == "lo", n.DefaultInterface.RxBytes == nil:
		t.Errorf("network %v", n)
	}
	list, err := w.c.ListPodSandboxStats(w.ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: podID}})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].GetLinux() == nil {
		t.Errorf("%v, %v", list, err)
	}
	onHost, _ := w.pod("hoststats", func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname, c.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	})
	r, err = w.c.PodSandboxStats(w.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: onHost})
	if err != nil || r.Stats.GetLinux() == nil {
		t.Fatal(r, err)
	}
	if n := r.Stats.Linux.Network; n != nil && n.DefaultInterface == nil {
		t.Errorf("network without its interface: %v", n)
	}
}

// TestMetrics: descriptors stay the same; each metric has one, and as many
// labels as it names.
func TestMetrics(t *testing.T) {
	w := shared(t)
	w.need("ListMetricDescriptors")
	podID, pod := w.pod("metrics")
	ctr := w.run(podID, pod, w.config("main", "sleep", "1000"))
	d, err := w.c.ListMetricDescriptors(w.ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, m := range d.Descriptors {
		if _, twice := labels[m.Name]; twice || m.Help == "" || m.Name == "" {
			t.Errorf("descriptor %v", m)
		}
		labels[m.Name] = len(m.LabelKeys)
	}
	if len(labels) < 56 {
		differs(t, "%d metrics are described, the conformance suite expects 56", len(labels))
	}
	again, err := w.c.ListMetricDescriptors(w.ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil || len(again.Descriptors) != len(d.Descriptors) {
		t.Errorf("descriptors change: %v", err)
	} else if !proto.Equal(d, again) {
		differs(t, "descriptors change their order")
	}
	r, err := w.c.ListPodSandboxMetrics(w.ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.PodMetrics, func(m *runtimeapi.PodSandboxMetrics) bool { return m.PodSandboxId == podID })
	if i < 0 || !slices.ContainsFunc(r.PodMetrics[i].ContainerMetrics, func(m *runtimeapi.ContainerMetrics) bool { return m.ContainerId == ctr && len(m.Metrics) > 0 }) {
		t.Fatalf("the pod, or its container, has no metrics: %v", r)
	}
	check := func(metrics []*runtimeapi.Metric) {
		seen := map[string]bool{}
		for _, m := range metrics {
			n, known := labels[m.Name]
			if key := m.Name + strings.Join(m.LabelValues, "\x00"); seen[key] {
				t.Errorf("twice: %v", m)
			} else {
				seen[key] = true
			}
			if !known || n != len(m.LabelValues) || m.Value == nil {
				t.Errorf("%v: known %t, want %d labels", m, known, n)
			}
		}
	}
	for _, p := range r.PodMetrics {
		check(p.Metrics)
		for _, c := range p.ContainerMetrics {
			check(c.Metrics)
		}
	}
}

// TestEvents: each step of a container's life is told once, by davit in order,
// with what the kubelet wants to know then.
func TestEvents(t *testing.T) {
	w := shared(t)
	w.need("GetContainerEvents")
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	stream, err := w.c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() { defer close(answered); _, _ = stream.Header() }()
	select {
	case <-answered:
	case <-time.After(time.Second): // some say nothing before the first event
	}
	time.Sleep(200 * time.Millisecond) // a runtime may subscribe after it has answered
	type received struct {
		e   *runtimeapi.ContainerEventResponse
		err error
	}
	events := make(chan received, 10_000)
	go func() {
		for {
			e, err := stream.Recv()
			if events <- (received{e, err}); err != nil {
				return
			}
		}
	}()
	podID, pod := w.pod("events")
	s := w.exit(podID, pod, w.config("main", "sh", "-c", "exit 3"))
	must(t, w.remove(s.Id), codes.OK)
	var types []runtimeapi.ContainerEventType
	for len(types) < 4 {
		select {
		case r := <-events:
			if r.err != nil {
				t.Fatal(r.err)
			}
			if r.e.ContainerId != s.Id {
				continue // the pod's own, or somebody else's
			}
			types = append(types, r.e.ContainerEventType)
			if r.e.CreatedAt == 0 || r.e.PodSandboxStatus.GetMetadata() == nil || r.e.PodSandboxStatus.Id != podID {
				t.Errorf("%v", r.e)
			}
			if r.e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT &&
				(len(r.e.ContainersStatuses) != 1 || r.e.ContainersStatuses[0].ExitCode != 3) {
				differs(t, "statuses in the event of an exit: %v", r.e.ContainersStatuses)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("events so far: %v", types)
		}
	}
	wanted := []runtimeapi.ContainerEventType{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
	}
	if slices.Equal(types, wanted) {
		return
	}
	differs(t, "events %v", types)
	if slices.Sort(types); !slices.Equal(types, wanted) {
		t.Errorf("events, in the order of their numbers: %v", types)
	}
}

// TestEventsUnread: those who subscribe and never read hold up nobody.
func TestEventsUnread(t *testing.T) {
	w := shared(t)
	w.need("GetContainerEvents")
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	for range 4 {
		if _, err := w.c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // see above
	for i := range 3 {
		config := w.podConfig(fmt.Sprintf("unread-%d", i))
		config.Annotations = map[string]string{"large": strings.Repeat("x", 200_000)} // soon more than a socket holds
		brief, done := context.WithTimeout(w.ctx, 20*time.Second)
		id, err := w.c.RunPod(brief, config)
		done()
		if err != nil {
			differs(t, "with four who do not read events: %v", err)
			cancel() // else the pod could not be removed either
			return
		}
		must(t, w.removePod(w.ctx, id), codes.OK)
	}
}
