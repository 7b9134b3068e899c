package keeper

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

func TestPacer(t *testing.T) {
	var p pacer
	now := time.Unix(1000, 0)
	for i := range restartBurst {
		if d := p.next(now); d != 0 {
			t.Fatalf("restart %d waits %s", i, d)
		}
	}
	if d := p.next(now); d != time.Second/restartRate {
		t.Errorf("beyond the burst: %s", d)
	}
	if d := p.next(now.Add(time.Hour)); d != 0 {
		t.Errorf("after an hour: %s", d)
	}
}

func idle(t *testing.T) *Keeper {
	t.Helper()
	k := newKeeper(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	for _, sub := range []string{"exits", "claims"} {
		if err := os.Mkdir(filepath.Join(k.dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func (k *Keeper) do(t *testing.T, r monitor.KeeperRequest) {
	t.Helper()
	if err := k.handle(r, nil); err != nil {
		t.Errorf("%+v: %v", r, err)
	}
}

func start(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	c := exec.Command("/bin/sh", "-c", script)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() })
	return c
}

func (k *Keeper) reapUntil(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		k.reapOne()
		if time.Now().After(end) {
			t.Fatal("not reaped")
		}
	}
}

// A process that dies before it is claimed keeps its status, while it is expected.
func TestDeadBeforeClaim(t *testing.T) {
	k := idle(t)
	k.do(t, monitor.KeeperRequest{Op: "expect", ID: "a"})
	k.do(t, monitor.KeeperRequest{Op: "expect", ID: "b"})
	pid := start(t, "exit 7").Process.Pid
	k.reapUntil(t, func() bool { return len(k.dead) == 1 })
	k.do(t, monitor.KeeperRequest{Op: "cancel", ID: "b"})
	k.do(t, monitor.KeeperRequest{Op: "claim", ID: "a", Pid: pid, Record: true})
	var ended monitor.Ended
	if err := load(k.exitPath("a"), &ended); err != nil || ended.Code != 7 || ended.Pid != pid {
		t.Errorf("%+v %v", ended, err)
	}
	if len(k.dead) != 0 || len(k.expected) != 0 {
		t.Errorf("kept: %v %v", k.dead, k.expected)
	}
	k.do(t, monitor.KeeperRequest{Op: "forget", ID: "a"})
	if _, err := os.Stat(k.exitPath("a")); err == nil {
		t.Error("exit record is left")
	}
}

// Without an expectation nothing is kept: containers' orphans are many.
func TestUnexpected(t *testing.T) {
	k := idle(t)
	pid := start(t, "exit 7").Process.Pid
	k.reapUntil(t, func() bool { _, err := readProcess(pid); return err != nil })
	if len(k.dead) != 0 {
		t.Errorf("kept: %v", k.dead)
	}
	if err := k.handle(monitor.KeeperRequest{Op: "claim", ID: "a", Pid: pid}, nil); err == nil {
		t.Error("claimed a process that is not there")
	}
	if err := k.handle(monitor.KeeperRequest{Op: "claim", ID: "a", Pid: os.Getppid()}, nil); err == nil {
		t.Error("claimed a process that is nobody's child here")
	}
}

func TestKill(t *testing.T) {
	k := idle(t)
	pid := start(t, "exec sleep 100").Process.Pid
	k.do(t, monitor.KeeperRequest{Op: "claim", ID: "a", Pid: pid, Record: true})
	if _, err := os.Stat(k.claimPath("a")); err != nil {
		t.Error(err)
	}
	k.do(t, monitor.KeeperRequest{Op: "kill", ID: "a", Signal: 15})
	k.reapUntil(t, func() bool { return k.claims["a"].ended != nil })
	if e := k.claims["a"].ended; e.Code != 143 || e.Signal != 15 {
		t.Errorf("%+v", e)
	}
	if err := k.handle(monitor.KeeperRequest{Op: "kill", ID: "a", Signal: 15}, nil); err == nil || err.Error() != monitor.Gone {
		t.Error(err)
	}
	if _, err := os.Stat(k.claimPath("a")); err == nil {
		t.Error("claim file is left")
	}
	for _, id := range []string{"..", "a/b"} {
		if err := k.handle(monitor.KeeperRequest{Op: "expect", ID: id}, nil); err == nil {
			t.Errorf("took id %q", id)
		}
	}
}

func TestHoldAndDrop(t *testing.T) {
	k := idle(t)
	for range 2 { // the second in place of the first
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.handle(monitor.KeeperRequest{Op: "hold", Names: []string{"a/log"}}, []int{fd}); err != nil {
			t.Fatal(err)
		}
	}
	fd := k.held["a/log"].fd
	k.do(t, monitor.KeeperRequest{Op: "forget", ID: "a"})
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil || len(k.held) != 0 {
		t.Error("still held")
	}
}

// What a keeper before left: a process that lives, one that is gone, and a pid
// that is another's by now.
func TestRecoverClaims(t *testing.T) {
	k := idle(t)
	c := start(t, "exec sleep 100")
	p, err := readProcess(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for id, f := range map[string]claimFile{
		"lives": {c.Process.Pid, p.start, true}, "reused": {c.Process.Pid, p.start + 1, true}, "gone": {1 << 22, 1, true},
	} {
		if err := writeJSON(k.claimPath(id), f); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeJSON(k.exitPath("ended"), monitor.Ended{Pid: 5, Code: 3}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "exits", ".torn"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.recoverClaims(); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	for id, code := range map[string]int{"ended": 3, "reused": 255, "gone": 255} {
		if c := k.claims[id]; c == nil || c.ended == nil || c.ended.Code != code {
			t.Errorf("%s: %+v", id, c)
		}
	}
	if c := k.claims["lives"]; c == nil || c.ended != nil || !c.followed {
		t.Errorf("lives: %+v", c)
	}
	if len(k.claims) != 4 {
		t.Errorf("%d claims", len(k.claims))
	}
	k.mu.Unlock()
	_ = c.Process.Kill()
	_ = c.Wait()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		k.mu.Lock()
		ended := k.claims["lives"].ended
		k.mu.Unlock()
		if ended == nil {
			continue
		}
		if ended.Code != 137 && !ended.Unknown { // unknown before Linux 6.15
			t.Errorf("%+v", ended)
		}
		return
	}
	t.Error("its end was not seen")
}

// Names of programs may look like anything.
func TestReadProcess(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, ") S 1 (x")
	if err := os.Symlink("/bin/sleep", odd); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(odd, "100")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	p, err := readProcess(c.Process.Pid)
	if err != nil || p.parent != os.Getpid() || p.start == 0 {
		t.Errorf("%+v %v", p, err)
	}
}
