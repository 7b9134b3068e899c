package contract

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// TestNoGrowth: cycles of pods, also ones that fail, leave no descriptors,
// threads or much memory in davit's processes.
func TestNoGrowth(t *testing.T) {
	w := newWorld(t, "")
	const warm = 30
	most := 150
	if testing.Short() {
		most = 60
	}
	cycle := func(from, to int, end time.Time) (next int) {
		t.Helper()
		var group errgroup.Group
		group.SetLimit(4)
		for next = from; next < to && (next < from+warm || time.Now().Before(end)); next++ {
			i := next
			group.Go(func() error { return w.cycle(i) })
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		return next
	}
	cycle(0, warm, time.Now())
	before := w.sizes()
	cycles := cycle(warm, warm+most, time.Now().Add(time.Minute)) - warm
	var after map[string]size
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		after = w.sizes()
		if within(before, after) || time.Now().After(deadline) {
			break
		}
	}
	for mode := range before {
		t.Logf("figure: %s over %d cycles: %v, then %v", mode, cycles, before[mode], after[mode])
	}
	if !within(before, after) {
		t.Error("it grows")
	}
}

// cycle is one pod's life; every third one has a container that cannot start.
func (w *world) cycle(i int) error {
	config := testkit.PodConfig(fmt.Sprintf("cycle-%d", i), w.d.Logs)
	id, err := w.c.RunPod(w.ctx, config)
	if err != nil {
		return err
	}
	ctr := w.config("c", "sleep", "100")
	ctr.Stdin, ctr.Tty = i%4 == 1, i%4 == 2
	if i%3 == 0 {
		ctr.Command = []string{"nosuchprogram"}
	}
	ctrID, err := w.c.RunContainer(w.ctx, id, config, ctr)
	if (err != nil) != (i%3 == 0) {
		return fmt.Errorf("container of cycle %d: %w", i, err)
	}
	if err == nil {
		if _, err := w.exec(ctrID, 60, "true"); err != nil {
			return err
		}
		if _, err := w.c.ReopenContainerLog(w.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: ctrID}); err != nil {
			return err
		}
		if err := w.stop(ctrID, 0); err != nil {
			return err
		}
	}
	return w.c.RemovePod(w.ctx, id)
}

// A size is what a process must not gather.
type size struct {
	fds, threads int
	pss          int64
}

func (s size) String() string {
	return fmt.Sprintf("%d descriptors, %d threads, %.1f MB", s.fds, s.threads, float64(s.pss)/1e6)
}

func (w *world) sizes() map[string]size {
	w.t.Helper()
	all := map[string]size{}
	pids := w.d.Pids()
	for _, mode := range []string{"davitd", "keep", "serve"} {
		if len(pids[mode]) != 1 {
			w.t.Fatalf("processes: %v", pids)
		}
		dir := fmt.Sprintf("/proc/%d/", pids[mode][0])
		fds, err := os.ReadDir(dir + "fd")
		if err != nil {
			w.t.Fatal(err)
		}
		threads, err := os.ReadDir(dir + "task")
		if err != nil {
			w.t.Fatal(err)
		}
		pss, err := testkit.PSS(pids[mode][0])
		if err != nil {
			w.t.Fatal(err)
		}
		all[mode] = size{len(fds), len(threads), pss}
	}
	return all
}

func within(before, after map[string]size) bool {
	for mode, b := range before {
		a := after[mode]
		if a.fds > b.fds+4 || a.threads > b.threads+8 || a.pss > b.pss+20_000_000 {
			return false
		}
	}
	return true
}
