package metrics

import (
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/stats"
)

// expected are the names that the conformance suite looks for, without "container_".
// kubernetes-sigs/cri-tools: pkg/validate/pod.go
const expected = `blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes
last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss
memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total pressure_cpu_stalled_seconds_total
pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota
spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads
threads_max ulimits_soft`

// busy is a pod whose container has all there is.
func busy() *stats.Pod {
	known := func(n uint64) cgroup.Count { return cgroup.Count{N: n, Known: true} }
	stall := &cgroup.Pressure{Some: cgroup.Stall{TotalMicros: 2_999_999}, Full: cgroup.Stall{TotalMicros: 1_000_000}}
	detail := &stats.Detail{
		Detail: cgroup.Detail{
			CPU: cgroup.CPUDetail{UserNanos: known(2e9), SystemNanos: known(1e9), Periods: known(1), Throttled: known(2),
				ThrottledNanos: known(3e9), Shares: known(1024), PeriodMicros: known(100000), QuotaMicros: known(50000)},
			Memory: cgroup.MemoryDetail{Peak: known(1), Kernel: known(2), LimitHit: known(3), OOMKills: known(4), High: known(5),
				Reservation: known(cgroup.Unlimited), SwapLimit: known(6), OwnFaults: known(7), OwnMajorFaults: known(8)},
			Tasks:     cgroup.Tasks{Current: known(5), Max: known(cgroup.Unlimited)},
			Devices:   []cgroup.Device{{Major: 8, Name: "/dev/sda", ReadBytes: 1024, Scheduled: &cgroup.Scheduled{ReadNanos: 3e9}}},
			HugePages: []cgroup.HugePages{{Size: "2MB", Usage: known(1), Max: known(2)}},
			Failed:    3,
		},
		Processes: stats.Processes{Count: 2, Descriptors: 9, Sockets: 1, Looked: true,
			States: map[string]uint64{stats.Sleeping: 5}, OpenFiles: known(1024)},
		Disk: stats.Disk{Device: "/dev/sdb", Major: 8, Minor: 16, Bytes: 1e9, Inodes: 100, InodesFree: 50, InodesKnown: true},
	}
	c := &stats.Container{
		ContainerSnapshot: &pod.ContainerSnapshot{ID: "c0ffee", StartedAt: time.Unix(1000, 0), Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Image: &runtimeapi.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "nginx:1"},
		}},
		Reading: cgroup.Reading{
			At: time.Unix(2000, 0), CPU: cgroup.CPU{UsageNanos: 3_999_999_999, Known: true},
			Memory:   cgroup.Memory{Usage: 100, InactiveFile: 40, Limit: cgroup.Unlimited, Known: true},
			Swap:     cgroup.Swap{Usage: 1, Known: true},
			Pressure: cgroup.Pressures{CPU: stall, Memory: stall, IO: stall},
		},
		Layer: image.Usage{Mountpoint: "/", Bytes: 77, At: time.Unix(1500, 0)}, Cgroup: "/pods/p/c0ffee", Detail: detail,
	}
	return &stats.Pod{
		Snapshot: &pod.Snapshot{ID: "p0d", Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "shop", Namespace: "prod"},
		}},
		Interfaces: []namespace.Interface{{Name: "eth0", Rx: namespace.Traffic{Bytes: 5, Packets: 6, Errors: 7, Dropped: 8}}, {Name: "net1"}},
		Containers: []*stats.Container{c, {ContainerSnapshot: &pod.ContainerSnapshot{ID: "late"}}}, Cgroup: "/pods/p",
	}
}

// Every sample is described, and has as many labels as its descriptor says.
// With all there is, every descriptor has a sample.
func TestSamplesMatchDescriptors(t *testing.T) {
	for _, h := range []Host{{}, {CgroupV2: true}, {Scheduled: true}} {
		table := New(h)
		labels, sampled := map[string]int{}, map[string]int{}
		for _, d := range table.Descriptors() {
			if labels[d.Name] != 0 || d.Help == "" || !strings.HasPrefix(d.Name, "container_") || !slices.Equal(d.LabelKeys[:len(base)], base) {
				t.Errorf("descriptor %v", d)
			}
			labels[d.Name] = len(d.LabelKeys)
		}
		for _, name := range strings.Fields(expected) {
			if labels["container_"+name] == 0 {
				t.Errorf("%+v: no %s", h, name)
			}
		}
		p := busy()
		got := table.Of(p)
		if len(got.ContainerMetrics) != 1 || got.ContainerMetrics[0].ContainerId != "c0ffee" || got.PodSandboxId != "p0d" {
			t.Fatalf("of %s, %v", got.PodSandboxId, got.ContainerMetrics)
		}
		seen := map[string]bool{}
		for _, m := range slices.Concat(got.Metrics, got.ContainerMetrics[0].Metrics) {
			sampled[m.Name]++
			key := m.Name + strings.Join(m.LabelValues, ",")
			if len(m.LabelValues) != labels[m.Name] || m.Value == nil || seen[key] {
				t.Errorf("sample %v, of %d labels", m, labels[m.Name])
			}
			seen[key] = true
			if live := m.Timestamp == 0; live == (m.Name == fsUsage) {
				t.Errorf("time of %v", m)
			}
		}
		for name := range labels {
			if sampled[name] == 0 {
				t.Errorf("%+v: %s has no sample", h, name)
			}
		}
	}
}

func TestValues(t *testing.T) {
	got := New(Host{Scheduled: true}).Of(busy())
	all := slices.Concat(got.Metrics, got.ContainerMetrics[0].Metrics)
	const c, p = "web /pods/p/c0ffee nginx:1 c0ffee prod shop", "POD /pods/p  p0d prod shop"
	for _, want := range []struct {
		name, labels string
		value        uint64
		kind         runtimeapi.MetricType
	}{
		{"network_receive_bytes_total", p + " eth0", 5, counter},
		{"network_receive_packets_dropped_total", p + " eth0", 8, counter},
		{"network_receive_bytes_total", p + " net1", 0, counter},
		{"cpu_usage_seconds_total", c + " total", 3, counter}, // whole seconds
		{"memory_working_set_bytes", c, 60, gauge},
		{"memory_failures_total", c + " pgfault container", 7, counter},
		{"spec_memory_limit_bytes", c, 0, gauge}, // none
		{"threads_max", c, 0, gauge},
		{"pressure_cpu_waiting_seconds_total", c, 2, counter},
		{"pressure_io_stalled_seconds_total", c, 1, counter},
		{"fs_usage_bytes", c + " /dev/sdb", 77, gauge},
		{"fs_reads_bytes_total", c + " /dev/sda", 1024, counter},
		{"fs_sector_reads_total", c + " /dev/sda", 2, counter},
		{"fs_reads_bytes_total", c + " /dev/sdb", 0, counter}, // nothing was read there
		{"fs_read_seconds_total", c + " /dev/sda", 3, counter},
		{"blkio_device_usage_total", c + " /dev/sda 8 0 Read", 1024, counter},
		{"tasks_state", c + " sleeping", 5, gauge},
		{"start_time_seconds", c, 1000, gauge},
		{"last_seen", c, 2000, gauge},
		{"scrape_error", c, 1, gauge},
	} {
		i := slices.IndexFunc(all, func(m *runtimeapi.Metric) bool {
			return m.Name == "container_"+want.name && strings.Join(m.LabelValues, " ") == want.labels
		})
		if i < 0 || all[i].Value.Value != want.value || all[i].MetricType != want.kind {
			t.Errorf("%+v: not so, at %d", want, i)
		}
	}
}

// What is not known has no sample.
func TestUnknownIsLeftOut(t *testing.T) {
	p := busy()
	p.Interfaces = nil
	c := p.Containers[0]
	c.Reading = cgroup.Reading{}
	c.Detail = &stats.Detail{}
	got := New(Host{CgroupV2: true, Scheduled: true}).Of(p)
	if len(got.Metrics) != 0 {
		t.Errorf("no network: %v", got.Metrics)
	}
	may := []string{"container_processes", "container_file_descriptors", "container_last_seen", "container_start_time_seconds", "container_scrape_error"}
	for _, m := range got.ContainerMetrics[0].Metrics {
		if !slices.Contains(may, m.Name) {
			t.Errorf("made up: %v", m)
		}
	}
}
