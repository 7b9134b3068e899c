// Package scale runs many pods at once and looks at what they cost.
//
// DAVIT_SCALE_PODS says how many (default 200).
package scale

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// memoryBound is for all processes of davit together at 100 pods. The aim is
// 100 MB; what is allowed here leaves room for a machine under load.
const memoryBound = 120_000_000

// TestManyPods: pods start, run and go, 8 at a time; afterwards nothing is
// left; memory at 100 pods is bounded.
func TestManyPods(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	testkit.Leftovers(t, dir)
	pods := 200
	if text := os.Getenv("DAVIT_SCALE_PODS"); text != "" {
		pods, _ = strconv.Atoi(text)
	} else if testing.Short() {
		pods = 40
	}
	registry := testkit.NewRegistry(t)
	image := registry.PushBusybox(t, "scale/busybox:1")
	d := testkit.NewDaemon(t, "")
	c := d.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	if _, err := c.Pull(ctx, image); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	ids, took := startPods(ctx, t, d, c, image, pods)
	t.Logf("figure: %d pods started in %s, 8 at a time; each %s at the median, %s at most",
		pods, time.Since(start).Round(time.Millisecond), took[len(took)/2], took[len(took)-1])
	checkAllRun(ctx, t, c, pods)
	checkStats(ctx, t, c, pods)

	start = time.Now()
	removePods(ctx, t, c, ids)
	t.Logf("figure: %d pods removed in %s", pods, time.Since(start).Round(time.Millisecond))
	list, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("after removing all: %v, %v", list, err)
	}
}

func startPods(ctx context.Context, t *testing.T, d *testkit.Daemon, c *testkit.Client, image string, pods int) (ids []string, took []time.Duration) {
	t.Helper()
	ids, took = make([]string, pods), make([]time.Duration, pods)
	for _, batch := range [][2]int{{0, min(100, pods)}, {min(100, pods), pods}} {
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(8)
		for n := batch[0]; n < batch[1]; n++ {
			group.Go(func() (err error) {
				start := time.Now()
				pod := testkit.PodConfig(fmt.Sprintf("scale-%d", n), d.Logs)
				if ids[n], err = c.RunPod(groupCtx, pod); err != nil {
					return fmt.Errorf("pod %d: %w", n, err)
				}
				_, err = c.RunContainer(groupCtx, ids[n], pod, testkit.ContainerConfig("main", image, "sleep", "3600"))
				took[n] = time.Since(start).Round(time.Millisecond)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		if batch[1] == 100 {
			checkMemory(t, d)
		}
	}
	slices.Sort(took)
	return ids, took
}

func checkMemory(t *testing.T, d *testkit.Daemon) {
	t.Helper()
	bytes, err := d.MemoryBytes()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("figure: memory of all davit processes with 100 pods: %.1f MB PSS (aim: at most 100)", float64(bytes)/1e6)
	if bytes > memoryBound {
		for mode, pids := range d.Pids() {
			for _, pid := range pids {
				pss, _ := testkit.PSS(pid)
				t.Logf("  %s %d: %.1f MB", mode, pid, float64(pss)/1e6)
			}
		}
		t.Errorf("%d bytes with 100 pods, at most %d are allowed", bytes, memoryBound)
	}
}

func checkAllRun(ctx context.Context, t *testing.T, c *testkit.Client, pods int) {
	t.Helper()
	list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, item := range list.Containers {
		if item.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running++
		}
	}
	if running != pods {
		t.Errorf("%d containers run, want %d", running, pods)
	}
}

func removePods(ctx context.Context, t *testing.T, c *testkit.Client, ids []string) {
	t.Helper()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, id := range ids {
		group.Go(func() error { return c.RemovePod(groupCtx, id) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}
