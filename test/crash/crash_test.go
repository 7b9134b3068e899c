// Package crash kills davitd and davit-monitor with -9, at random moments,
// while pods come and go, and shows that nothing is lost and nothing leaks.
//
// DAVIT_CRASH_PODS says how many pod life cycles (default 24), DAVIT_CRASH_SEED
// repeats the random choices of an earlier run.
package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// setting reads a number from the environment.
func setting(t *testing.T, name string, standard int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return standard
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// A world is one davitd under attack.
type world struct {
	t     *testing.T
	d     *testkit.Daemon
	c     *testkit.Client
	image string
}

func newWorld(t *testing.T) *world {
	testkit.Root(t)
	dir := t.TempDir()
	testkit.Leftovers(t, dir)
	registry := testkit.NewRegistry(t)
	image := registry.PushBusybox(t, "crash/busybox:1")
	d := testkit.NewDaemon(t, "")
	w := &world{t: t, d: d, c: d.Client(t), image: image}
	if _, err := w.c.Pull(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestKillAnyMoment: no container dies, no exit code is lost or wrong, no log
// line is lost or written twice, nothing leaks.
func TestKillAnyMoment(t *testing.T) {
	w := newWorld(t)
	pods := setting(t, "DAVIT_CRASH_PODS", 24)
	if testing.Short() {
		pods = min(pods, 8)
	}
	seed := uint64(setting(t, "DAVIT_CRASH_SEED", int(time.Now().UnixNano()%1e9)))
	t.Logf("DAVIT_CRASH_SEED=%d DAVIT_CRASH_PODS=%d", seed, pods)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()

	witness := w.startWitness(ctx)
	attack := w.attack(ctx, seed)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for n := range pods {
		group.Go(func() error { return w.life(groupCtx, n) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("figure: in %d pod life cycles killed %s (seed %d)", pods, attack.stop(), seed)
	witness.check(ctx, w)
	if err := w.c.RemoveAll(ctx); err != nil {
		t.Error(err)
	}
}

// An attacker kills davitd and davit-monitor by turns, at random moments.
type attacker struct {
	cancel         context.CancelFunc
	done           sync.WaitGroup
	davitd, server int
}

func (w *world) attack(ctx context.Context, seed uint64) *attacker {
	ctx, cancel := context.WithCancel(ctx)
	a := &attacker{cancel: cancel}
	random := rand.New(rand.NewPCG(seed, 0))
	a.done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(20+random.IntN(400)) * time.Millisecond):
			}
			if random.IntN(2) == 0 {
				w.d.Kill()
				a.davitd++
				if err := w.d.Start(); err != nil {
					w.t.Errorf("start davitd again: %v", err)
					return
				}
				continue
			}
			for _, pid := range w.d.Pids()["serve"] {
				_ = unix.Kill(pid, unix.SIGKILL)
				a.server++
			}
		}
	})
	return a
}

func (a *attacker) stop() string {
	a.cancel()
	a.done.Wait()
	return fmt.Sprintf("davitd %d times, davit-monitor %d times", a.davitd, a.server)
}

// life is one pod from its start to its end, as the kubelet would lead it:
// what fails because nobody answers is tried again.
func (w *world) life(ctx context.Context, n int) error {
	pod := testkit.PodConfig(fmt.Sprintf("crash-%d", n), w.d.Logs)
	var podID string
	err := w.retry(ctx, func() (err error) {
		podID, err = w.c.RunPod(ctx, pod)
		return err
	})
	if err != nil {
		return fmt.Errorf("pod %d: run: %w", n, err)
	}
	lines, code := 200+n, n%200
	container, logFile, err := w.run(ctx, podID, pod, counter(lines, 2000, code))
	if err != nil {
		return fmt.Errorf("pod %d: %w", n, err)
	}
	var exit *runtimeapi.ContainerStatus
	err = w.retry(ctx, func() (err error) {
		exit, err = w.c.AwaitExit(ctx, container)
		return err
	})
	if err != nil {
		return fmt.Errorf("pod %d: %w", n, err)
	}
	if int(exit.ExitCode) != code {
		w.t.Errorf("pod %d: exit code %d (%s), want %d", n, exit.ExitCode, exit.Reason, code)
	}
	if got, err := readLog(logFile); err != nil || got != lines {
		w.t.Errorf("pod %d: its log has %d lines, want %d; %v", n, got, lines, err)
	}
	err = w.retry(ctx, func() error { return w.c.RemovePod(ctx, podID) })
	if err != nil {
		return fmt.Errorf("pod %d: remove: %w", n, err)
	}
	return nil
}

// counter is a command that writes numbered lines and exits with code.
func counter(lines, pauseMicros, code int) []string {
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); usleep %d; done; exit %d", lines, pauseMicros, code)
	return []string{"sh", "-c", script}
}

// run creates and starts a container. Each further try is a new attempt with
// a log of its own, as the kubelet's are. If a start was cut short it looks
// whether the container runs, for then there must be no second one.
func (w *world) run(ctx context.Context, podID string, pod *runtimeapi.PodSandboxConfig, command []string) (id, logFile string, err error) {
	attempt := uint32(0)
	err = w.retry(ctx, func() error {
		config := testkit.ContainerConfig("main", w.image, command...)
		config.Metadata.Attempt = attempt
		config.LogPath = fmt.Sprintf("main/%d.log", attempt)
		logFile = filepath.Join(pod.LogDirectory, config.LogPath)
		attempt++
		created, err := w.c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		id = created.ContainerId
		return nil
	})
	if err != nil {
		return "", "", err
	}
	err = w.retry(ctx, func() error {
		_, startErr := w.c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if startErr == nil || unanswered(startErr) {
			return startErr
		}
		now, err := w.c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return err
		}
		if now.Status.StartedAt == 0 {
			return fmt.Errorf("start: %w", startErr)
		}
		return nil // the first try did start it
	})
	return id, logFile, err
}

// retry repeats f while nobody answers it.
func (w *world) retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || !unanswered(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unanswered reports whether a call met a davitd that was not there, or one
// that found davit-monitor gone.
func unanswered(err error) bool { return status.Code(err) == codes.Unavailable }

// readLog reads a CRI log that must hold "line 0", "line 1" and so on once
// each, in order, all of them whole, and returns how many there are.
func readLog(file string) (lines int, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || fields[1] != "stdout" || fields[2] != "F" {
			return lines, fmt.Errorf("%s: %q is not a whole line of standard output", file, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			return lines, fmt.Errorf("%s: %w", file, err)
		}
		if fields[3] != fmt.Sprintf("line %d", lines) {
			return lines, fmt.Errorf("%s: %q where line %d is due", file, fields[3], lines)
		}
		lines++
	}
	return lines, nil
}
