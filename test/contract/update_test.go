package contract

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUpdates: limits change, or nothing does; status shows them, also after a restart.
func TestUpdates(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("updates")
	config := w.config("main", "sleep", "1000")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500,
	}
	ctr := w.run(podID, pod, config)
	update := func(r *runtimeapi.LinuxContainerResources) error {
		_, err := w.c.UpdateContainerResources(w.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: r})
		return err
	}
	wanted := proto.CloneOf(config.Linux.Resources)
	check := func(what string) {
		t.Helper()
		got := w.status(ctr).Resources.GetLinux()
		if got.GetCpuQuota() != wanted.CpuQuota || got.GetCpuPeriod() != wanted.CpuPeriod || got.GetCpuShares() != wanted.CpuShares ||
			got.GetMemoryLimitInBytes() != wanted.MemoryLimitInBytes {
			t.Errorf("%s: %v, want %v", what, got, wanted)
		} else if !proto.Equal(got, wanted) {
			differs(t, "%s: %v, want %v", what, got, wanted)
		}
	}
	check("at first")
	if err := update(&runtimeapi.LinuxContainerResources{CpuQuota: 20000}); err != nil {
		t.Fatal(err)
	}
	wanted.CpuQuota = 20000
	check("quota")
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 100}); err != nil {
		t.Fatal(err)
	}
	wanted.MemoryLimitInBytes, wanted.CpuShares = 128<<20, 100
	check("memory")
	if err := update(&runtimeapi.LinuxContainerResources{}); err != nil {
		t.Errorf("nothing to change: %v", err)
	}
	prefer(t, update(nil), codes.InvalidArgument, "linux")
	want(t, update(&runtimeapi.LinuxContainerResources{CpuShares: 300, CpusetCpus: "999"}), codes.InvalidArgument, "cpuset")
	want(t, update(&runtimeapi.LinuxContainerResources{CpuShares: 300, CpuPeriod: 1}), codes.InvalidArgument, "cpu_period")
	want(t, update(&runtimeapi.LinuxContainerResources{CpuShares: 300, MemoryLimitInBytes: 4096}), codes.FailedPrecondition, "memory")
	check("after refusals")
	r, err := w.exec(ctr, 5, "sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", r.Stdout)
	if s := string(r.Stdout); s != "100\n20000\n134217728\n" && s != "17\n20000 100000\n134217728\n" {
		t.Errorf("in the container:\n%s", s)
	}
	w.restart()
	check("after a restart")
	if err := w.stop(ctr, 0); err != nil {
		t.Fatal(err)
	}
	prefer(t, update(&runtimeapi.LinuxContainerResources{CpuShares: 300}), codes.FailedPrecondition, ctr)
}
