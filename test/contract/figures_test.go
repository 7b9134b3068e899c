package contract

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStatsAreRight: figures are what the kernel's files say, and what the
// container did; they are the same after a restart of davitd.
func TestStatsAreRight(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("figures")
	const memory, file = 20_000_000, 3_000_000
	id := w.run(podID, pod, w.config("busy", "sh", "-c", fmt.Sprintf(
		`head -c %d /dev/zero >/file; mkfifo /full; exec dd if=/dev/zero bs=%d count=1 1<>/full`, // which takes 64 kB
		file, memory)))
	const slack = 2 << 20
	w.await("the memory is in use", func() bool { return w.stats(id).Memory.RssBytes.Value+slack >= memory })

	before := w.cpuOf(id)
	s := w.stats(id)
	after := w.cpuOf(id)
	if cpu := s.Cpu.UsageCoreNanoSeconds.Value; cpu < before || cpu > after || cpu < 1e6 {
		t.Errorf("CPU time %d, the kernel says %d before and %d after", cpu, before, after)
	}
	m := s.Memory
	if rss := m.RssBytes.Value; rss+slack < memory || rss > memory*3 || m.UsageBytes.Value+slack < rss || m.WorkingSetBytes.Value > m.UsageBytes.Value {
		t.Errorf("a process with %d bytes: %v", memory, m)
	}
	if m.AvailableBytes != nil {
		t.Errorf("%v available, without a limit", m.AvailableBytes)
	}
	w.await("the layer is counted", func() bool { return w.stats(id).WritableLayer.UsedBytes.Value >= file })
	l := w.stats(id).WritableLayer
	if l.UsedBytes.Value > file+1<<20 || l.InodesUsed.Value < 3 || l.Timestamp > time.Now().UnixNano() {
		t.Errorf("a layer with a file of %d bytes: %v", file, l)
	}
	if _, err := os.Stat(l.FsId.Mountpoint); err != nil {
		t.Error(err)
	}
	fs, err := w.c.ImageFsInfo(w.ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || fs.ContainerFilesystems[0].UsedBytes.Value < file || fs.ImageFilesystems[0].UsedBytes.Value == 0 {
		t.Errorf("%v, %v", fs, err)
	}

	status, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}
	quiet := w.podStats(podID)
	const packets, size = 100, 1000
	conn, err := net.Dial("udp", net.JoinHostPort(status.Status.Network.Ip, "9"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range packets {
		if _, err := conn.Write(make([]byte, size)); err != nil && !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
	}
	p := w.podStats(podID)
	in := p.Linux.Network.GetDefaultInterface()
	if got := in.GetRxBytes().GetValue() - quiet.Linux.Network.DefaultInterface.RxBytes.Value; in.GetName() != "eth0" || got < packets*size/2 || got > 4*packets*size {
		t.Errorf("%s received %d bytes, of %d sent", in.GetName(), got, packets*size)
	}
	if p.Linux.Process.ProcessCount.Value < 1 || len(p.Linux.Containers) != 1 || p.Linux.Cpu.UsageCoreNanoSeconds.Value < before {
		t.Errorf("pod %v", p.Linux)
	}

	w.d.Kill()
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
	again := w.podStats(podID)
	if again.Linux.Cpu.UsageCoreNanoSeconds.Value < before || again.Linux.Network.DefaultInterface.RxBytes.Value < in.RxBytes.Value {
		t.Errorf("after a restart %v", again.Linux)
	}
	w.await("the layer is counted again", func() bool { return w.stats(id).WritableLayer.UsedBytes.Value >= file })
}

// TestStatsOfWhatGoes: containers that end while they are listed are not in the
// list, and no error. One that has ended has its files left.
func TestStatsOfWhatGoes(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("going")
	var ids []string
	for i := range 8 {
		ids = append(ids, w.run(podID, pod, w.config(fmt.Sprint("c", i), "sleep", fmt.Sprint(0.1*float64(i)))))
	}
	w.await("all have ended", func() bool {
		list, err := w.c.ListContainerStats(w.ctx, &runtimeapi.ListContainerStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		pods, err := w.c.ListPodSandboxStats(w.ctx, &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(pods.Stats) != 1 {
			t.Fatalf("%v, %v", pods, err)
		}
		if _, err := w.c.ListPodSandboxMetrics(w.ctx, &runtimeapi.ListPodSandboxMetricsRequest{}); err != nil {
			t.Fatal(err)
		}
		return len(list.Stats) == 0
	})
	s := w.stats(ids[0])
	if s.Cpu != nil || s.WritableLayer.GetUsedBytes() == nil || s.Attributes.Metadata.GetName() != "c0" {
		t.Errorf("of one that has ended: %v", s)
	}
	if err := w.remove(ids[0]); err != nil {
		t.Fatal(err)
	}
	_, err := w.c.ContainerStats(w.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: ids[0]})
	want(t, err, codes.NotFound, ids[0])
	if _, err := w.c.StopPodSandbox(w.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	if p := w.podStats(podID); p.Linux == nil || p.Attributes.Metadata == nil {
		t.Errorf("of a pod that is stopped: %v", p)
	}
}

// await waits until f is true.
func (w *world) await(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not so: %s", what)
		}
	}
}

func (w *world) stats(id string) *runtimeapi.ContainerStats {
	w.t.Helper()
	r, err := w.c.ContainerStats(w.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Stats
}

func (w *world) podStats(id string) *runtimeapi.PodSandboxStats {
	w.t.Helper()
	r, err := w.c.PodSandboxStats(w.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Stats
}

// cpuOf reads the container's CPU time where the kernel has it.
func (w *world) cpuOf(id string) uint64 {
	w.t.Helper()
	r, err := w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil {
		w.t.Fatal(err)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", info.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case strings.Contains(","+f[1]+",", ",cpuacct,"):
			text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", f[1], f[2], "cpuacct.usage"))
			if err != nil {
				w.t.Fatal(err)
			}
			n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
			return n
		case f[1] == "" && !strings.Contains(string(groups), "cpuacct"):
			text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", f[2], "cpu.stat"))
			if err != nil {
				w.t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), "usage_usec ")
			n, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return n * 1000
		}
	}
	w.t.Fatalf("no CPU time in %s", groups)
	return 0
}
