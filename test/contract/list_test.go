package contract

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A crowd is three pods, the first of them stopped, with two containers each,
// the second of them started.
type crowd struct {
	pods, containers []string
	label            map[string]string // of all
}

func (w *world) crowd() crowd {
	w.t.Helper()
	c := crowd{label: map[string]string{"suite": w.own}}
	for i := range 3 {
		id, pod := w.pod(fmt.Sprintf("p%d", i), func(p *runtimeapi.PodSandboxConfig) {
			p.Labels = map[string]string{"suite": w.own, "n": fmt.Sprint(i)}
		})
		c.pods = append(c.pods, id)
		for j, command := range []string{"true", "sleep"} {
			config := w.config(fmt.Sprintf("c%d", j), command, "1000")
			config.Labels = map[string]string{"suite": w.own, "n": fmt.Sprint(i), "j": fmt.Sprint(j)}
			ctr, err := w.create(id, pod, config)
			if err != nil {
				w.t.Fatal(err)
			}
			c.containers = append(c.containers, ctr)
			if j == 1 {
				if err := w.start(ctr); err != nil {
					w.t.Fatal(err)
				}
			}
		}
	}
	if err := w.stopPod(w.ctx, c.pods[0]); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// TestPodLists: filters by ID, prefix, state and labels, all at once.
func TestPodLists(t *testing.T) {
	w := shared(t)
	c := w.crowd()
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	type filter = runtimeapi.PodSandboxFilter
	for name, test := range map[string]struct {
		filter *filter
		want   []string
	}{
		"nil": {nil, c.pods}, "empty": {&filter{}, c.pods}, "label": {&filter{LabelSelector: c.label}, c.pods},
		"ID": {&filter{Id: c.pods[1]}, c.pods[1:2]}, "prefix": {&filter{Id: c.pods[1][:16]}, c.pods[1:2]},
		"ready": {&filter{State: ready}, c.pods[1:]}, "not ready": {&filter{State: notReady}, c.pods[:1]},
		"labels":        {&filter{LabelSelector: map[string]string{"suite": w.own, "n": "0"}}, c.pods[:1]},
		"all":           {&filter{Id: c.pods[2], State: ready, LabelSelector: map[string]string{"suite": w.own, "n": "2"}}, c.pods[2:]},
		"contradiction": {&filter{Id: c.pods[0], State: ready}, nil},
		"no label":      {&filter{LabelSelector: map[string]string{"suite": ""}}, nil},
		"no ID":         {&filter{Id: "zz"}, nil},
		"too long":      {&filter{Id: c.pods[0] + "0"}, nil},
	} {
		r, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{Filter: test.filter})
		var got []string
		for _, p := range r.GetItems() {
			if p.Metadata.GetNamespace() == w.own {
				got = append(got, p.Id)
			}
			if p.Metadata == nil || p.CreatedAt == 0 {
				t.Errorf("%s: %v", name, p)
			}
		}
		same(t, name, err, got, test.want)
	}
}

func same(t *testing.T, name string, err error, got, want []string) {
	t.Helper()
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: %v, %v; want %v", name, got, err, want)
	}
}

// TestContainerLists: filters by ID, prefix, pod, state and labels, all at once.
func TestContainerLists(t *testing.T) {
	w := shared(t)
	c := w.crowd()
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	type filter = runtimeapi.ContainerFilter
	odd := []string{c.containers[3], c.containers[5]}
	for name, test := range map[string]struct {
		filter *filter
		want   []string
	}{
		"nil": {nil, c.containers}, "empty": {&filter{}, c.containers}, "label": {&filter{LabelSelector: c.label}, c.containers},
		"ID": {&filter{Id: c.containers[1]}, c.containers[1:2]}, "prefix": {&filter{Id: c.containers[1][:16]}, c.containers[1:2]},
		"pod": {&filter{PodSandboxId: c.pods[1]}, c.containers[2:4]}, "pod's prefix": {&filter{PodSandboxId: c.pods[1][:16]}, c.containers[2:4]},
		"running":   {&filter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, odd},
		"exited":    {&filter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED), LabelSelector: map[string]string{"j": "1", "suite": w.own}}, c.containers[1:2]},
		"all":       {&filter{Id: c.containers[5], PodSandboxId: c.pods[2], State: state(0), LabelSelector: c.label}, nil},
		"other pod": {&filter{Id: c.containers[5], PodSandboxId: c.pods[1]}, nil},
		"no ID":     {&filter{Id: "zz"}, nil}, "no pod": {&filter{PodSandboxId: "zz"}, nil},
	} {
		r, err := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{Filter: test.filter})
		var got []string
		for _, ctr := range r.GetContainers() {
			if slices.Contains(c.pods, ctr.PodSandboxId) {
				got = append(got, ctr.Id)
			}
			if ctr.Metadata == nil || ctr.CreatedAt == 0 || ctr.ImageRef == "" || ctr.ImageId == "" && !foreign {
				t.Errorf("%s: %v", name, ctr)
			}
		}
		same(t, name, err, got, test.want)
	}
}

// TestPrefixes: every call takes an ID by any prefix that only one has.
func TestPrefixes(t *testing.T) {
	w := shared(t)
	c := w.crowd()
	pod, ctr := c.pods[1][:12], c.containers[3][:12]
	for _, request := range []proto.Message{
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod}, &runtimeapi.ContainerStatusRequest{ContainerId: ctr},
		&runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod}, &runtimeapi.ContainerStatsRequest{ContainerId: ctr},
		&runtimeapi.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}, Timeout: 10}, &runtimeapi.ReopenContainerLogRequest{ContainerId: ctr},
		&runtimeapi.ExecRequest{ContainerId: ctr, Cmd: []string{"true"}, Stdout: true}, &runtimeapi.AttachRequest{ContainerId: ctr, Stdout: true},
		&runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}},
		&runtimeapi.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 500}},
		&runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 500}},
		&runtimeapi.StopContainerRequest{ContainerId: ctr}, &runtimeapi.RemoveContainerRequest{ContainerId: ctr},
		&runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod},
	} {
		_, err := w.call(request, false)
		prefer(t, err, codes.OK)
	}
	pods, err := w.pods(w.ctx)
	if err != nil || len(pods) != 2 && !foreign {
		t.Errorf("%v, %v: want two pods left", pods, err)
	}
	if _, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: ""}); err == nil {
		t.Error("an empty ID is taken for a prefix")
	}
}

// all reads a stream to its end.
func all[R, E any](s grpc.ServerStreamingClient[R], err error, items func(*R) []E) ([]E, error) {
	if err != nil {
		return nil, err
	}
	var got []E
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if len(items(r)) == 0 {
			return got, errors.New("a message without an item")
		}
		got = append(got, items(r)...)
	}
}

// equal requires a stream to deliver what the unary list does.
func equal[E proto.Message](t *testing.T, id func(E) string, unary []E, unaryErr error, streamed []E, streamErr error) {
	t.Helper()
	if unaryErr != nil || streamErr != nil {
		t.Fatalf("unary: %v; stream: %v", unaryErr, streamErr)
	}
	byID := func(a, b E) int { return cmp.Compare(id(a), id(b)) }
	slices.SortFunc(unary, byID)
	slices.SortFunc(streamed, byID)
	if !slices.EqualFunc(unary, streamed, func(a, b E) bool { return proto.Equal(a, b) }) {
		t.Errorf("unary: %v\nstreamed: %v", unary, streamed)
	}
}

// TestStreamLists: each of them delivers what the unary list does, with the
// same filter, and an end without a message where there is nothing.
func TestStreamLists(t *testing.T) {
	w := shared(t)
	w.need("StreamPodSandboxes")
	c := w.crowd()
	label := func(extra string) map[string]string { return map[string]string{"suite": w.own + extra} }
	for _, extra := range []string{"", "-none"} {
		t.Run("pods"+extra, func(t *testing.T) {
			w := w.within(t)
			filter := &runtimeapi.PodSandboxFilter{LabelSelector: label(extra)}
			r, unary := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
			s, err := w.c.StreamPodSandboxes(w.ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: filter})
			streamed, err := all(s, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)
			equal(t, (*runtimeapi.PodSandbox).GetId, r.GetItems(), unary, streamed, err)
			if want := len(c.pods); extra == "" && len(streamed) != want || extra != "" && len(streamed) > 0 {
				t.Errorf("%d pods streamed, want %d or none", len(streamed), want)
			}
		})
		t.Run("containers"+extra, func(t *testing.T) {
			w := w.within(t)
			filter := &runtimeapi.ContainerFilter{LabelSelector: label(extra)}
			r, unary := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{Filter: filter})
			s, err := w.c.StreamContainers(w.ctx, &runtimeapi.StreamContainersRequest{Filter: filter})
			streamed, err := all(s, err, (*runtimeapi.StreamContainersResponse).GetContainers)
			equal(t, (*runtimeapi.Container).GetId, r.GetContainers(), unary, streamed, err)
		})
		t.Run("images"+extra, func(t *testing.T) {
			w := w.within(t)
			filter := &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: w.image + extra}}
			r, unary := w.c.ListImages(w.ctx, &runtimeapi.ListImagesRequest{Filter: filter})
			s, err := w.c.StreamImages(w.ctx, &runtimeapi.StreamImagesRequest{Filter: filter})
			streamed, err := all(s, err, (*runtimeapi.StreamImagesResponse).GetImages)
			equal(t, (*runtimeapi.Image).GetId, r.GetImages(), unary, streamed, err)
			if n := len(streamed); extra == "" && n != 1 || extra != "" && n > 0 {
				t.Errorf("%d images streamed", n)
			}
		})
	}
}

// TestStreamedStats: the pods and containers of a stream of statistics are
// those of the unary list. The figures change.
func TestStreamedStats(t *testing.T) {
	w := shared(t)
	w.need("StreamContainerStats")
	w.need("StreamPodSandboxStats")
	w.need("StreamPodSandboxMetrics")
	c := w.crowd()
	r1, err := w.c.ListContainerStats(w.ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: c.label}})
	if err != nil {
		t.Fatal(err)
	}
	s1, err := w.c.StreamContainerStats(w.ctx, &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: c.label}})
	containers, err := all(s1, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats)
	id := func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() }
	same(t, "containers", err, ids(containers, id), ids(r1.Stats, id))
	r2, err := w.c.ListPodSandboxStats(w.ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: c.label}})
	if err != nil {
		t.Fatal(err)
	}
	s2, err := w.c.StreamPodSandboxStats(w.ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: c.label}})
	pods, err := all(s2, err, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats)
	podID := func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() }
	same(t, "pods", err, ids(pods, podID), ids(r2.Stats, podID))
	if len(r1.Stats) < 2 || len(r2.Stats) < 2 {
		t.Errorf("%d containers, %d pods: want those that run", len(r1.Stats), len(r2.Stats))
	}
	r3, err := w.c.ListPodSandboxMetrics(w.ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s3, err := w.c.StreamPodSandboxMetrics(w.ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	metrics, err := all(s3, err, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
	if w.d != nil { // else there may be pods that come and go
		same(t, "metrics", err, ids(metrics, (*runtimeapi.PodSandboxMetrics).GetPodSandboxId), ids(r3.PodMetrics, (*runtimeapi.PodSandboxMetrics).GetPodSandboxId))
	}
}

func ids[E any](items []E, id func(E) string) []string {
	var all []string
	for _, item := range items {
		all = append(all, id(item))
	}
	return all
}

// TestAbandonedStream: a client that leaves in the middle does no harm.
func TestAbandonedStream(t *testing.T) {
	w := shared(t)
	w.need("StreamPodSandboxes")
	for range 20 {
		ctx, cancel := context.WithCancel(w.ctx)
		s, err := w.c.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
		if err != nil {
			t.Error(err)
		}
		cancel()
		_, _ = s.Recv()
	}
	_, err := w.pods(w.ctx)
	must(t, err, codes.OK)
}

// TestBigMessages: what fits into a message fits into a pod; a list that does
// not is refused without harm.
func TestBigMessages(t *testing.T) {
	w := shared(t)
	for i := range 2 {
		w.pod(fmt.Sprintf("big%d", i), func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"big": strings.Repeat("x", 9<<20)}
		})
	}
	_, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
	want(t, err, codes.ResourceExhausted)
	config := w.podConfig("toobig")
	config.Annotations = map[string]string{"big": strings.Repeat("x", 17<<20)}
	id, err := w.c.RunPod(w.ctx, config)
	if prefer(t, err, codes.ResourceExhausted); err == nil {
		must(t, w.removePod(w.ctx, id), codes.OK)
	}
	r, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"none": w.own}}})
	if err != nil || len(r.Items) != 0 {
		t.Errorf("%v, %v", r, err)
	}
}
