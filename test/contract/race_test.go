package contract

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// many runs f n times at once and returns what each returned.
func many[R any](n int, f func(i int) R) []R {
	results := make([]R, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { results[i] = f(i) })
	}
	wg.Wait()
	return results
}

// limit is for calls that may be duplicates: some let them wait for as long as the caller does.
const limit = 15 * time.Second

type answer struct {
	id  string
	err error
}

// TestDuplicates: calls for the same pod or container, all at once or one
// after the other, make one; davit's all return its ID.
func TestDuplicates(t *testing.T) {
	w := shared(t)
	config := w.podConfig("twice")
	same := func(what string, answers []answer) (id string) {
		t.Helper()
		for _, a := range answers {
			switch {
			case a.err != nil:
				differs(t, "%s: %v", what, a.err)
			case id != "" && id != a.id:
				t.Fatalf("%s: %s and %s", what, id, a.id)
			default:
				id = a.id
			}
		}
		if id == "" {
			t.Fatalf("%s: %v", what, answers[0].err)
		}
		return id
	}
	run := func(int) answer {
		ctx, cancel := context.WithTimeout(w.ctx, limit)
		defer cancel()
		id, err := w.c.RunPod(ctx, config)
		return answer{id, err}
	}
	pod := same("RunPodSandbox at once", many(20, run))
	same("RunPodSandbox again", []answer{{id: pod}, run(0)})
	creates := func(name string, command ...string) answer {
		brief := *w
		var cancel context.CancelFunc
		brief.ctx, cancel = context.WithTimeout(w.ctx, limit)
		defer cancel()
		id, err := brief.create(pod, config, w.config(name, command...))
		return answer{id, err}
	}
	create := func(int) answer { return creates("main", "sleep", "100") }
	ctr := same("CreateContainer at once", many(20, create))
	same("CreateContainer again", []answer{{id: ctr}, create(0)})
	have := slices.DeleteFunc(w.residue(), filepath.IsAbs)
	if len(have) != 2 {
		t.Errorf("%v: want a pod and a container", have)
	}
	if err := w.start(ctr); err != nil {
		t.Fatal(err)
	}
	want(t, w.start(ctr), codes.FailedPrecondition, ctr)
	prefer(t, creates("main", "true").err, codes.AlreadyExists, ctr)
	for range 2 {
		if err := w.remove(ctr); err != nil {
			t.Fatal(err)
		}
	}
	if next := create(0); next.err != nil || next.id == ctr {
		t.Errorf("the name after a removal: %v", next)
	}
	for range 2 {
		if err := w.stopPod(w.ctx, pod); err != nil {
			t.Fatal(err)
		}
	}
	prefer(t, run(0).err, codes.AlreadyExists, pod)
	want(t, creates("late", "true").err, codes.FailedPrecondition, pod)
	for _, err := range many(10, func(int) error { return w.removePod(w.ctx, pod) }) {
		prefer(t, err, codes.OK)
	}
	must(t, w.removePod(w.ctx, pod), codes.OK)
	next := run(0)
	if next.err != nil || next.id == pod {
		t.Errorf("the pod's name after a removal: %v", next)
	}
}

// deaf runs a container that does not hear SIGTERM any more.
func (w *world) deaf(podID string, pod *runtimeapi.PodSandboxConfig) string {
	w.t.Helper()
	config := w.config("deaf", "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done")
	id := w.run(podID, pod, config)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		log, _ := os.ReadFile(filepath.Join(pod.LogDirectory, config.LogPath))
		if strings.Contains(string(log), " deaf\n") {
			return id
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("log %q", log)
		}
	}
}

// TestStopsAtOnce: of many stops the shortest patience decides, all return.
func TestStopsAtOnce(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("stops")
	ctr := w.deaf(podID, pod)
	begun := time.Now()
	for _, err := range many(30, func(i int) error { return w.stop(ctr, int64(30-i)) }) {
		if err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(begun); took < 900*time.Millisecond || took > 8*time.Second {
		t.Errorf("thirty stops, the shortest of 1 s, took %v", took)
	}
	if s := w.status(ctr); s.ExitCode != 137 || s.FinishedAt == 0 {
		t.Errorf("status after a kill: %v", s)
	} else if s.Reason != "Error" {
		differs(t, "reason after a kill: %s", s.Reason)
	}
	if err := w.stop(ctr, 5); err != nil {
		t.Error(err)
	}
	want(t, w.start(ctr), codes.FailedPrecondition)
}

// TestStopWaits: while a stop waits, others work; a caller that leaves kills nothing.
func TestStopWaits(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("waits")
	ctr := w.deaf(podID, pod)
	ctx, cancel := context.WithTimeout(w.ctx, 500*time.Millisecond)
	defer cancel()
	_, err := w.c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: ctr, Timeout: 60})
	want(t, err, codes.DeadlineExceeded)
	if r, err := w.exec(ctr, 5, "echo", "alive"); err != nil || string(r.Stdout) != "alive\n" {
		t.Errorf("exec after a stop was abandoned: %v, %v", r, err)
	}
	if _, err := w.c.ReopenContainerLog(w.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: ctr}); err != nil {
		t.Error(err)
	}
	begun := time.Now()
	if err := w.stop(ctr, 0); err != nil || time.Since(begun) > 10*time.Second {
		t.Errorf("kill: %v after %v", err, time.Since(begun))
	}
}

// TestOpposites: start, stop and remove of the same container at once all
// return, none with a fault of davit's own, and nothing is left.
func TestOpposites(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("opposites")
	for i := range 12 {
		config := w.config(fmt.Sprintf("c%d", i), "sleep", "100")
		ctr, err := w.create(podID, pod, config)
		if err != nil {
			t.Fatal(err)
		}
		errs := many(12, func(n int) error {
			time.Sleep(time.Duration(n*i) * 300 * time.Microsecond)
			switch n % 4 {
			case 0:
				return w.start(ctr)
			case 1:
				return w.stop(ctr, 1)
			case 2:
				_, err := w.exec(ctr, 2, "true")
				return err
			}
			return w.remove(ctr)
		})
		for n, err := range errs {
			switch code := codeOf(err); {
			case code == codes.OK:
			case (n%4 == 0 || n%4 == 2) && (code == codes.NotFound || code == codes.FailedPrecondition):
			case n%4 == 0 && code == codes.Canceled, n%4 == 2 && code == codes.Unavailable: // ended under way
			default:
				differs(t, "round %d, call %d: %v", i, n, err)
			}
		}
		if err := w.remove(ctr); err != nil {
			t.Error(err)
		}
		_, err = w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr})
		want(t, err, codes.NotFound)
	}
}

// TestRemovalForced: what runs, or ends just now, is removed without a stop.
func TestRemovalForced(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("forced")
	for i := range 40 {
		if err := w.remove(w.run(podID, pod, w.config(fmt.Sprintf("ends-%d", i), "true"))); err != nil {
			t.Errorf("a container that ends: %v", err)
		}
	}
	begun := time.Now()
	if err := w.remove(w.run(podID, pod, w.config("runs", "sleep", "1000"))); err != nil {
		t.Errorf("a container that runs: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		differs(t, "it took %v to remove a container that runs", took)
	}
}

// TestPodsEndWhileMade: a pod whose making is stopped, or removed, at any
// moment is gone after its removal.
func TestPodsEndWhileMade(t *testing.T) {
	w := shared(t)
	for i := range 15 {
		config := w.podConfig(fmt.Sprintf("brief-%d", i))
		ctx, cancel := context.WithTimeout(w.ctx, time.Duration(i)*time.Millisecond)
		_, err := w.c.RunPod(ctx, config)
		cancel()
		if code := codeOf(err); code != codes.OK && code != codes.DeadlineExceeded && code != codes.Unavailable {
			t.Errorf("RunPodSandbox cut short: %v", err)
		}
		if i%2 == 0 {
			ctx, cancel := context.WithTimeout(w.ctx, limit)
			id, err := w.c.RunPod(ctx, config) // joins, or makes it
			cancel()
			if prefer(t, err, codes.OK); err != nil {
				continue
			}
			if _, err := w.create(id, config, w.config("c", "true")); err != nil {
				t.Error(err)
			}
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := w.clear(w.ctx); err != nil {
			t.Error(err)
		}
		left := w.residue()
		if len(left) == 0 {
			return
		}
		if !foreign || time.Now().After(deadline) { // others may go on making, for a while, what nobody waits for
			t.Errorf("left behind: %v", left)
			return
		}
	}
}
