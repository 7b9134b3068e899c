package cri

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/stats"
)

// statsWorld has the same figures for each; a container called "gone" has gone.
type statsWorld struct{}

var measured = cgroup.Reading{
	At:     time.Unix(9, 0),
	CPU:    cgroup.CPU{UsageNanos: 10, Known: true},
	Memory: cgroup.Memory{Usage: 100, InactiveFile: 30, Limit: 200, Anon: 5, Faults: 6, MajorFaults: 7, Known: true},
	Swap:   cgroup.Swap{Usage: 8, Limit: cgroup.Unlimited, Known: true},
	Pressure: cgroup.Pressures{
		CPU: &cgroup.Pressure{Some: cgroup.Stall{Avg10: 1.5, TotalMicros: 3}, Full: cgroup.Stall{Avg300: 2.5, TotalMicros: 2}},
	},
}

func (statsWorld) Layers() image.Usage {
	return image.Usage{Mountpoint: "/images", Bytes: 8, Inodes: 9, At: time.Unix(6, 0)}
}

func (statsWorld) Container(c *pod.ContainerSnapshot) (*stats.Container, error) {
	if c.ID == "gone" {
		return nil, fault.New(fault.NotFound, "", "container %s is gone", c.ID)
	}
	s := &stats.Container{ContainerSnapshot: c, Layer: image.Usage{Mountpoint: "/images", Bytes: 3, Inodes: 4, At: time.Unix(5, 0)}}
	if live(c) {
		s.Reading, s.NanoCores = measured, 11
	}
	return s, nil
}

func (w statsWorld) Containers(list []*pod.ContainerSnapshot) []*stats.Container {
	var all []*stats.Container
	for _, c := range list {
		if s, err := w.Container(c); err == nil {
			all = append(all, s)
		}
	}
	return all
}

func (statsWorld) Pods(list []*pod.Snapshot) ([]*stats.Pod, error) {
	var all []*stats.Pod
	for _, p := range list {
		all = append(all, &stats.Pod{Snapshot: p, Reading: measured, NanoCores: 12, Processes: 2, Interfaces: []namespace.Interface{
			{Name: "eth0", Rx: namespace.Traffic{Bytes: 1, Errors: 2}, Tx: namespace.Traffic{Bytes: 3, Errors: 4}}, {Name: "net1"},
		}})
	}
	return all, nil
}

func (w statsWorld) Details() ([]*stats.Pod, error) { return w.Pods([]*pod.Snapshot{{ID: "p"}}) }

func statsOf(id, podID string, state pod.State, labels map[string]string) *pod.ContainerSnapshot {
	return &pod.ContainerSnapshot{ID: id, PodID: podID, State: state, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: id}, Labels: labels,
	}}
}

func TestStatsTranslated(t *testing.T) {
	ctx := context.Background()
	w := fullWorld(t)
	w.containers = []*pod.ContainerSnapshot{statsOf("runs", "aa11", pod.Running, nil), statsOf("exited", "aa11", pod.Exited, nil), statsOf("gone", "aa11", pod.Running, nil)}
	rt, _, _, _ := server(t, w)
	const figures = `
		cpu { timestamp: 9000000000 usage_core_nano_seconds { value: 10 } usage_nano_cores { value: %N }
			psi { Full { Total: 2000 Avg300: 2.5 } Some { Total: 3000 Avg10: 1.5 } } }
		memory { timestamp: 9000000000 working_set_bytes { value: 70 } available_bytes { value: 130 } usage_bytes { value: 100 }
			rss_bytes { value: 5 } page_faults { value: 6 } major_page_faults { value: 7 } }
		io { timestamp: 9000000000 }`
	const layer = ` writable_layer { timestamp: 5000000000 fs_id { mountpoint: "/images" } used_bytes { value: 3 } inodes_used { value: 4 } } `
	got := must[*runtimeapi.ContainerStatsResponse](t)(rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "runs"}))
	equal(t, got, parse(t, &runtimeapi.ContainerStatsResponse{}, `stats { attributes { id: "runs" metadata { name: "runs" } }`+
		strings.Replace(figures, "%N", "11", 1)+layer+` swap { timestamp: 9000000000 swap_usage_bytes { value: 8 } } }`))
	got = must[*runtimeapi.ContainerStatsResponse](t)(rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "exited"}))
	equal(t, got, parse(t, &runtimeapi.ContainerStatsResponse{}, `stats { attributes { id: "exited" metadata { name: "exited" } }`+layer+`}`))
	p := must[*runtimeapi.PodSandboxStatsResponse](t)(rt.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "aa11"}))
	if p.Stats.Attributes.GetMetadata().GetName() == "" || p.Stats.Attributes.Id != "aa11" {
		t.Errorf("attributes %v", p.Stats.Attributes)
	}
	equal(t, p.Stats.Linux, parse(t, &runtimeapi.LinuxPodSandboxStats{}, strings.Replace(figures, "%N", "12", 1)+`
		process { timestamp: 9000000000 process_count { value: 2 } }
		network { timestamp: 9000000000
			default_interface { name: "eth0" rx_bytes { value: 1 } rx_errors { value: 2 } tx_bytes { value: 3 } tx_errors { value: 4 } }
			interfaces { name: "net1" rx_bytes {} rx_errors {} tx_bytes {} tx_errors {} } }`))
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{second(rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{})), codes.InvalidArgument},
		{second(rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "never"})), codes.NotFound},
		{second(rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "gone"})), codes.NotFound},
		{second(rt.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{})), codes.InvalidArgument}, // the kubelet's probe
		{second(rt.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "never"})), codes.NotFound},
	} {
		if status.Code(c.err) != c.want {
			t.Errorf("%v, want %v", c.err, c.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Unary and streamed lists have the same in them, by the same filters.
func TestStatsListed(t *testing.T) {
	ctx := context.Background()
	w := fullWorld(t)
	w.containers = []*pod.ContainerSnapshot{
		statsOf("c1", "p1", pod.Running, map[string]string{"app": "a", "tier": "x"}),
		statsOf("c2", "p2", pod.Created, map[string]string{"app": "a"}),
		statsOf("d3", "p2", pod.Running, nil),
		statsOf("c4", "p2", pod.Exited, map[string]string{"app": "a"}),
		statsOf("gone", "p2", pod.Running, map[string]string{"app": "a"}),
	}
	rt, _, _, _ := server(t, w)
	for _, tt := range []struct {
		filter string
		want   []string
	}{
		{"", []string{"c1", "c2", "d3"}},
		{`id: "c"`, []string{"c1", "c2"}},
		{`pod_sandbox_id: "p2"`, []string{"c2", "d3"}},
		{`label_selector { key: "app" value: "a" }`, []string{"c1", "c2"}},
		{`label_selector { key: "app" value: "a" } label_selector { key: "tier" value: "x" }`, []string{"c1"}},
		{`id: "c" pod_sandbox_id: "p1" label_selector { key: "app" value: "b" }`, nil},
	} {
		f := parse(t, &runtimeapi.ContainerStatsFilter{}, tt.filter)
		list := must[*runtimeapi.ListContainerStatsResponse](t)(rt.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: f}))
		stream, err := rt.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		streamed := received(t, func() ([]*runtimeapi.ContainerStats, error) {
			r, err := stream.Recv()
			return r.GetContainerStats(), err
		})
		for _, all := range [][]*runtimeapi.ContainerStats{list.Stats, streamed} {
			var ids []string
			for _, s := range all {
				ids = append(ids, s.Attributes.Id)
			}
			if !slices.Equal(ids, tt.want) {
				t.Errorf("%s: %v, want %v", tt.filter, ids, tt.want)
			}
		}
	}
	ready := 0
	for _, p := range w.pods {
		if p.State == pod.Ready {
			ready++
		}
	}
	pods := must[*runtimeapi.ListPodSandboxStatsResponse](t)(rt.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{}))
	stream, err := rt.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	streamed := received(t, func() ([]*runtimeapi.PodSandboxStats, error) {
		r, err := stream.Recv()
		return r.GetPodSandboxStats(), err
	})
	if len(pods.Stats) != ready || len(streamed) != ready || ready == 0 {
		t.Errorf("%d and %d pods, %d are ready", len(pods.Stats), len(streamed), ready)
	}
	for _, p := range pods.Stats {
		if p.Linux.GetNetwork().GetDefaultInterface().GetName() != "eth0" {
			t.Errorf("network %v", p.Linux.GetNetwork())
		}
	}
	none := must[*runtimeapi.ListPodSandboxStatsResponse](t)(rt.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{
		Filter: &runtimeapi.PodSandboxStatsFilter{Id: "nothing begins so"},
	}))
	if len(none.Stats) != 0 {
		t.Errorf("%v", none.Stats)
	}
}

func TestMetricsListed(t *testing.T) {
	ctx := context.Background()
	rt, _, _, _ := server(t, fullWorld(t))
	d := must[*runtimeapi.ListMetricDescriptorsResponse](t)(rt.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{}))
	if len(d.Descriptors) < 56 {
		t.Errorf("%d descriptors", len(d.Descriptors))
	}
	list := must[*runtimeapi.ListPodSandboxMetricsResponse](t)(rt.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}))
	stream, err := rt.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	streamed := received(t, func() ([]*runtimeapi.PodSandboxMetrics, error) {
		r, err := stream.Recv()
		return r.GetPodSandboxMetrics(), err
	})
	for _, all := range [][]*runtimeapi.PodSandboxMetrics{list.PodMetrics, streamed} {
		if len(all) != 1 || all[0].PodSandboxId != "p" || len(all[0].Metrics) != 16 { // 8 for each interface
			t.Errorf("%v", all)
		}
	}
}

// received receives until the end.
func received[T any](t *testing.T, recv func() ([]T, error)) (all []T) {
	t.Helper()
	for {
		some, err := recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil || len(some) == 0 {
			t.Fatalf("%v, %v", some, err)
		}
		all = append(all, some...)
	}
}
