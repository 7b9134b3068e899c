package contract

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bySystemd reports whether systemd makes and removes the control groups.
func (w *world) bySystemd() bool {
	c, err := w.c.RuntimeConfig(w.ctx, &runtimeapi.RuntimeConfigRequest{})
	return err == nil && c.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD
}

// onV2 reports whether limits are those of cgroup v2.
func onV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// limits returns the limits of a container as its cgroup has them.
func (w *world) limits(id string) string {
	w.t.Helper()
	files := "cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us memory/memory.limit_in_bytes cpuset/cpuset.cpus"
	if onV2() {
		files = "cpu.weight cpu.max memory.max cpuset.cpus"
	}
	r, err := w.exec(id, 20, "sh", "-c", "cd /sys/fs/cgroup && cat "+files+" /proc/1/oom_score_adj")
	if err != nil || r.ExitCode != 0 {
		w.t.Fatal(r, err)
	}
	return strings.Join(strings.Fields(string(r.Stdout)), " ")
}

// shown returns what limits should return for a container of these resources.
func shown(r *runtimeapi.LinuxContainerResources) string {
	rest := fmt.Sprintf("%d %d %d %s %d", r.CpuQuota, r.CpuPeriod, r.MemoryLimitInBytes, r.CpusetCpus, r.OomScoreAdj)
	if onV2() {
		weight := map[int64]int64{400: 49, 700: 75}[r.CpuShares]
		return fmt.Sprintf("%d %s", weight, rest)
	}
	return fmt.Sprintf("%d %s", r.CpuShares, rest)
}

var (
	small = &runtimeapi.LinuxContainerResources{
		CpuShares: 400, CpuQuota: 40000, CpuPeriod: 50000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", OomScoreAdj: 900,
	}
	large = &runtimeapi.LinuxContainerResources{
		CpuShares: 700, CpuQuota: 70000, CpuPeriod: 100000, MemoryLimitInBytes: 128 << 20, CpusetCpus: "0-1", OomScoreAdj: 950,
	}
)

func (w *world) update(id string, r *runtimeapi.LinuxContainerResources) error {
	_, err := w.c.UpdateContainerResources(w.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

// inForce requires that a container's status tells what its cgroup has, and that it is r.
func (w *world) inForce(id string, r *runtimeapi.LinuxContainerResources) {
	w.t.Helper()
	if said, is := w.status(id).Resources.Linux, w.limits(id); !proto.Equal(said, r) || is != shown(r) {
		w.t.Errorf("want %s\n%v: said\n%s: in force", shown(r), said, is)
	}
}

// TestUpdate: all limits of an update are applied, or none; what the status
// says is what is in force, also after davitd was killed.
func TestUpdate(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("limits")
	c := w.config("c", "sleep", "1000")
	c.Linux.Resources = proto.CloneOf(small)
	ctr, err := w.create(podID, pod, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.update(ctr, large); err != nil { // created, not started
		t.Fatal(err)
	}
	if err := w.start(ctr); err != nil {
		t.Fatal(err)
	}
	w.inForce(ctr, large)
	if err := w.update(ctr, small); err != nil {
		t.Fatal(err)
	}
	w.inForce(ctr, small)
	if err := w.update(ctr, &runtimeapi.LinuxContainerResources{}); err != nil {
		t.Errorf("nothing to change: %v", err)
	}
	if err := w.update(ctr, &runtimeapi.LinuxContainerResources{CpuShares: 700}); err != nil {
		t.Fatal(err)
	}
	shares := proto.CloneOf(small)
	shares.CpuShares = 700
	w.inForce(ctr, shares)
	if err := w.update(ctr, small); err != nil {
		t.Fatal(err)
	}
	want(t, w.update(ctr, nil), codes.InvalidArgument, "linux: ")
	t.Run("refused", func(t *testing.T) { w.within(t).refuseUpdates(ctr) })
	t.Run("killed", func(t *testing.T) { w.within(t).killUpdates(ctr) })
	if err := w.update(ctr, &runtimeapi.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: -1}); err != nil {
		t.Fatal(err)
	}
	if is := w.limits(ctr); !strings.Contains(is, " -1 ") && !strings.Contains(is, " max ") {
		t.Errorf("in force: %s", is)
	}
	if err := w.stop(ctr, 0); err != nil {
		t.Fatal(err)
	}
	want(t, w.update(ctr, large), codes.FailedPrecondition, "exited")
	want(t, w.update("0123", large), codes.NotFound, "0123")
}

// refuseUpdates updates with one field that is refused, after others were applied.
func (w *world) refuseUpdates(ctr string) {
	for _, c := range []struct {
		change func(*runtimeapi.LinuxContainerResources)
		code   codes.Code
		field  string
	}{
		{func(r *runtimeapi.LinuxContainerResources) { r.CpusetMems = "4000" }, codes.InvalidArgument, "linux.cpuset_mems: "},
		{func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "999" }, codes.InvalidArgument, "linux.cpuset_cpus: "},
		{func(r *runtimeapi.LinuxContainerResources) { r.CpuPeriod = 5 }, codes.InvalidArgument, "linux.cpu_period: "},
		{func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 4096 }, codes.FailedPrecondition, "linux.memory_limit_in_bytes: "},
		{func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 1}}
		}, codes.FailedPrecondition, `linux.hugepage_limits["3MB"]: `},
		{func(r *runtimeapi.LinuxContainerResources) {
			r.Unified = map[string]string{"memory.high": "max", "memory.nope": "1"}
		}, map[bool]codes.Code{true: codes.FailedPrecondition, false: codes.InvalidArgument}[onV2()], "linux.unified"},
	} {
		r := proto.CloneOf(large)
		c.change(r)
		want(w.t, w.update(ctr, r), c.code, "desc = "+c.field)
		w.inForce(ctr, small)
	}
}

// killUpdates kills davitd in the middle of updates.
func (w *world) killUpdates(ctr string) {
	c := w.d.Client(w.t) // the other one's connection is to be fit when davitd is back
	for n := range 5 {
		ctx, cancel := context.WithCancel(w.ctx)
		var updates sync.WaitGroup
		updates.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				r := []*runtimeapi.LinuxContainerResources{small, large}[i%2]
				_, _ = c.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: r})
			}
		})
		time.Sleep(time.Duration(5000+n*1700) * time.Microsecond)
		w.d.Kill()
		cancel()
		updates.Wait()
		if err := w.d.Start(); err != nil {
			w.t.Fatal(err)
		}
		said := w.status(ctr).Resources.Linux
		if !proto.Equal(said, small) && !proto.Equal(said, large) {
			w.t.Errorf("half an update: %v", said)
		}
		w.inForce(ctr, said)
	}
}

// TestUpdatePod: a pod's own resources are kept and told.
func TestUpdatePod(t *testing.T) {
	w := newWorld(t, "")
	podID, _ := w.pod("pod")
	r := &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: podID, Overhead: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 123456789}, Resources: proto.CloneOf(large),
	}
	if _, err := w.c.UpdatePodSandboxResources(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	w.d.Kill()
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`"overhead":{"memory_limit_in_bytes":123456789`, `"resources":{`, fmt.Sprintf(`"cpu_quota":%d`, large.CpuQuota)} {
		if !strings.Contains(s.Info["info"], text) {
			t.Errorf("no %s in %s", text, s.Info["info"])
		}
	}
	r.PodSandboxId = "0123"
	_, err = w.c.UpdatePodSandboxResources(w.ctx, r)
	want(t, err, codes.NotFound, "0123")
}
