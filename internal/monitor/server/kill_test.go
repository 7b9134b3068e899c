package server_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// rounds is how often chance gets a try: less where the tests run a second
// time, under the race detector.
func rounds(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

// A numbered stream on stdout and another on stderr, while the monitor is
// killed at random moments: each line once and in order.
func TestKillsLoseNothing(t *testing.T) {
	n := newNode(t)
	const script = `(i=0; while [ ! -e /tmp/stop ]; do echo e$i >&2; i=$((i+1)); done) &
i=0; while [ ! -e /tmp/stop ]; do echo "line $i"; printf "part $i "; echo end; i=$((i+1)); done; wait
seq 1 300000; printf tail; exit 5`
	c := n.container("crun", "sh", "-c", script)
	n.run(c)
	kill := func() {
		time.Sleep(time.Duration(rand.IntN(30000)) * time.Microsecond)
		pid := n.killMonitor()
		await(t, "next monitor", func() bool { next := n.process("serve"); return next != 0 && next != pid })
	}
	kills := rounds(110)
	for range kills {
		kill()
	}
	must(t, os.WriteFile(filepath.Join(n.rootfs, "tmp/stop"), nil, 0o600))
	for range 10 {
		kill()
	}
	if exit := n.exit(c.ID); exit.Code != 5 {
		t.Errorf("exit %+v", exit)
	}
	got := lines(t, c.LogPath)
	t.Logf("%d kills, %d lines on stdout, %d on stderr", kills+10, len(got["stdout"]), len(got["stderr"]))
	var want []string
	for i := range (len(got["stdout"]) - 300001) / 2 {
		want = append(want, "line "+strconv.Itoa(i), "part "+strconv.Itoa(i)+" end")
	}
	for i := range 300000 {
		want = append(want, strconv.Itoa(i+1))
	}
	compare(t, "stdout", got["stdout"], append(want, "tail<P>"))
	want = want[:0]
	for i := range len(got["stderr"]) {
		want = append(want, "e"+strconv.Itoa(i))
	}
	compare(t, "stderr", got["stderr"], want)
}

func compare(t *testing.T, name string, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	t.Errorf("%s: %d lines, want %d", name, len(got), len(want))
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("line %d: %.100q, want %.100q", i, got[i], want[i])
			return
		}
	}
}

// Whole lives with the monitor killed at random moments: all calls are
// answered, exit codes are right, nothing is left.
func TestKillsDuringLife(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		ctx, cancel := context.WithCancel(context.Background())
		gone := make(chan int)
		go func() {
			kills := 0
			for ctx.Err() == nil {
				time.Sleep(time.Duration(20+rand.IntN(120)) * time.Millisecond)
				if n.killMonitor() != 0 {
					kills++
				}
			}
			gone <- kills
		}()
		for i := range rounds(40) {
			code := i % 50
			c := n.container(runtime, "sh", "-c", "echo hello; exit "+strconv.Itoa(code))
			n.run(c)
			if exit := n.exit(c.ID); exit.Code != code {
				t.Errorf("exit %+v, want %d", exit, code)
			}
			if got := lines(t, c.LogPath)["stdout"]; strings.Join(got, "|") != "hello" {
				t.Errorf("log %q", got)
			}
			n.remove(c.ID)
		}
		cancel()
		t.Logf("%d kills", <-gone)
		await(t, "monitor", func() bool { _, err := n.List(n.ctx()); return err == nil })
		if left := n.left(); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

func TestKillDuringExec(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sleep", "1000")
	n.run(c)
	result := make(chan error, 1)
	go func() {
		_, err := n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"sleep", nap}})
		result <- err
	}()
	await(t, "exec", func() bool { return running("sleep\x00" + nap) })
	n.killMonitor()
	wantKind(t, <-result, fault.Unavailable)
	await(t, "end of the exec", func() bool { return !running("sleep\x00" + nap) })
	n.remove(c.ID)
}

// running looks for a process by its arguments.
func running(args string) bool {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		data, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.Contains(string(data), args) {
			return true
		}
	}
	return false
}

// A kill at each stage of a create: the call is answered all the same, by the
// next monitor, and the half-made container of the first is gone.
func TestKillDuringCreate(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		for i := range rounds(40) {
			c := n.container(runtime, "sh", "-c", "echo hello; exit 6")
			timer := time.AfterFunc(time.Duration(rand.IntN(40000))*time.Microsecond, func() { n.killMonitor() })
			n.run(c)
			if exit := n.exit(c.ID); exit.Code != 6 {
				t.Errorf("%d: exit %+v", i, exit)
			}
			timer.Stop()
			n.remove(c.ID)
			if left := n.left(); len(left) > 0 {
				t.Fatalf("%d: left behind: %q", i, left)
			}
		}
	})
}

// A create whose caller has gone, too: Remove leaves nothing of it.
func TestKillDuringAbandonedCreate(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		for i := range rounds(20) {
			c := n.container(runtime, "sleep", "1000")
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(40000))*time.Microsecond)
			_, _ = n.Create(ctx, c)
			cancel()
			n.killMonitor()
			n.remove(c.ID)
			if left := n.left(); len(left) > 0 {
				t.Fatalf("%d: left behind: %q", i, left)
			}
		}
	})
}

// A create that its caller gave up before a monitor took it up makes nothing:
// the caller's remove may have come first.
func TestCreateOfGoneCaller(t *testing.T) {
	n := newNode(t)
	serve := n.process("serve")
	must(t, unix.Kill(serve, unix.SIGSTOP))
	await(t, "stop", func() bool { // of each of its threads
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", serve))
		return !slices.ContainsFunc(threads, func(path string) bool {
			stat, _ := os.ReadFile(path)
			return !strings.Contains(string(stat), ") T ")
		})
	})
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		_, err := n.Create(ctx, n.container("crun", "sleep", "1000"))
		cancel()
		wantKind(t, err, fault.Deadline)
		ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
		_, err = n.Hold(ctx, monitor.Holder{ID: newID()})
		cancel()
		wantKind(t, err, fault.Deadline)
	}
	must(t, unix.Kill(serve, unix.SIGCONT))
	time.Sleep(200 * time.Millisecond)
	if left := n.left(); len(left) > 0 {
		t.Errorf("made: %q", left)
	}
}

// The keeper is told to end while creates, execs and the throwaway of seccomp
// are under way, and the monitor killed now and then: nothing half made
// outlives it, and containers do.
func TestEndUnderWay(t *testing.T) {
	n := newNode(t)
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for i := range rounds(12) {
		lives := n.container("crun", "sleep", "1000")
		pid := n.run(lives)
		keeper := n.process("keep")
		ctx, cancel := context.WithCancel(n.ctx())
		var calls sync.WaitGroup
		live := map[string]bool{}
		for _, runtime := range []string{"crun", "runc"} {
			c := n.container(runtime, "sleep", "1000")
			live[c.ID] = true
			calls.Go(func() { _, _ = n.Create(ctx, c) })
		}
		calls.Go(func() { _, _ = n.Seccomp(ctx, lives.Runtime, profile) })
		calls.Go(func() { _, _ = n.Exec(ctx, monitor.Exec{ContainerID: lives.ID, Args: []string{"sleep", nap}}) })
		time.Sleep(time.Duration(rand.IntN(40000)) * time.Microsecond)
		if i%3 == 2 {
			n.killMonitor()
		}
		must(t, unix.Kill(keeper, unix.SIGTERM))
		await(t, "end of the keeper", func() bool { return unix.Kill(keeper, 0) != nil || n.process("keep") == 0 })
		cancel()
		calls.Wait()
		for _, args := range []string{"create\x00--bundle\x00" + n.state /* the throwaway */, "sleep\x00" + nap} {
			if running(args) {
				t.Errorf("%d: %q lives on", i, args)
			}
		}
		for id := range live {
			procs, _ := os.ReadFile("/sys/fs/cgroup/pids/" + cgroups + "/" + id + "/cgroup.procs")
			live[id] = len(procs) > 0
		}
		if unix.Kill(pid, 0) != nil {
			t.Error("a container that ran has ended")
		}
		must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
		list, err := n.List(n.ctx())
		must(t, err)
		for _, s := range list {
			delete(live, s.ID)
			n.remove(s.ID)
		}
		for id, lives := range live {
			if lives { // and is in no list
				t.Errorf("%d: %s was half made and lived on", i, id)
			}
		}
		if left := n.left(); len(left) > 0 {
			t.Fatalf("%d: left behind: %q", i, left)
		}
	}
}

// Eight lives at a time, with execs, while the monitor is killed.
func TestKillsUnderLoad(t *testing.T) {
	n := newNode(t)
	life := func(i int) error {
		c := n.container([]string{"crun", "runc"}[i%2], "sh", "-c", "seq 1 5000; sleep 0.1; seq 5001 10000; exit "+strconv.Itoa(i))
		ctx := n.ctx()
		if _, err := n.Create(ctx, c); err != nil {
			return err
		}
		if err := n.Start(ctx, c.ID); err != nil {
			return err
		}
		_, err := n.Exec(ctx, monitor.Exec{ContainerID: c.ID, Args: []string{"true"}})
		if err != nil && !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Precondition) && i%2 == 0 {
			return err // it may end meanwhile; what runc says then is not classified
		}
		for {
			list, err := n.List(ctx)
			if err != nil {
				return err
			}
			at := slices.IndexFunc(list, func(s monitor.Status) bool { return s.ID == c.ID })
			if at < 0 {
				return fmt.Errorf("%d is not listed", i)
			}
			if exit := list[at].Exit; exit != nil {
				if exit.Code != i {
					return fmt.Errorf("%d: exit %+v", i, exit)
				}
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		data, err := os.ReadFile(c.LogPath)
		if count := strings.Count(string(data), "\n"); err != nil || count != 10000 {
			return fmt.Errorf("%d: %d lines, %w", i, count, err)
		}
		return n.Remove(ctx, c.ID)
	}
	done := make(chan error)
	for worker := range 8 {
		go func() {
			for i := range 5 {
				done <- life(worker*5 + i)
			}
		}()
	}
	for left := 40; left > 0; {
		select {
		case err := <-done:
			left--
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Duration(50+rand.IntN(100)) * time.Millisecond):
			n.killMonitor()
		}
	}
}
