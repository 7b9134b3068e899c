package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// another is a davit-monitor that is not the one of n, though just like it.
func (n *node) another(name string) string {
	n.t.Helper()
	data, err := os.ReadFile(n.binary)
	must(n.t, err)
	path := filepath.Join(n.dir, name)
	must(n.t, os.WriteFile(path, data, 0o755))
	return path
}

// replace puts binary in the place of what runs.
func (n *node) replace(binary string) {
	n.t.Helper()
	replaced, err := monitor.Replace(n.ctx(), binary, n.state)
	must(n.t, err)
	if !replaced {
		n.t.Errorf("%s did not replace what ran", filepath.Base(binary))
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.process("keep")))
	must(n.t, err)
	if link != binary {
		n.t.Errorf("%s runs, want %s", link, binary)
	}
}

func descriptors(pid int) int {
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(fds)
}

// Keeper and monitor are replaced by another program and back, again and again,
// while containers write, end, wait at terminals and have one-time inputs.
func TestReplace(t *testing.T) {
	n := newNode(t)
	other := n.another("other")
	keeper := n.process("keep")
	const script = `(i=0; while [ ! -e /tmp/stop ]; do echo e$i >&2; i=$((i+1)); done) &
i=0; while [ ! -e /tmp/stop ]; do echo "line $i"; printf "part $i "; echo end; i=$((i+1)); done; wait; printf tail; exit 5`
	writer := n.container("crun", "sh", "-c", script)
	pid := n.run(writer)
	terminal := n.echo("runc", true, false)
	once := n.echo("crun", false, true)
	a := n.attach(t, terminal.ID)
	a.type_("0\n")
	await(t, "answer", a.out.has("got 0"))
	count := descriptors(keeper)

	replacements := rounds(16)
	lives := make(chan int)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // those that end meanwhile
		i := 0
		for ; ctx.Err() == nil; i++ {
			if err := n.brief(i); err != nil {
				t.Errorf("life %d: %v", i, err)
			}
		}
		lives <- i
	}()
	for i := range replacements {
		n.replace([]string{other, n.binary}[i%2])
		time.Sleep(time.Duration(rand.IntN(20000)) * time.Microsecond)
	}
	cancel()
	t.Logf("%d replacements, %d lives meanwhile", replacements, <-lives)
	if now := n.process("keep"); now != keeper {
		t.Errorf("the keeper was process %d and is %d", keeper, now)
	}
	wantKind(t, <-a.done, fault.Unavailable) // an attachment ends with its monitor, what it was attached to does not
	for _, c := range []monitor.Container{terminal, once} {
		a := n.attach(t, c.ID)
		a.type_("1\n")
		await(t, "answer", a.out.has("got 1"))
		a.leave()
		<-a.done
	}
	if exit := n.exit(once.ID); exit.Code != 9 {
		t.Errorf("exit after the end of a one-time input: %+v", exit)
	}
	n.remove(once.ID)
	if now := descriptors(keeper); now > count {
		t.Errorf("the keeper has %d descriptors, had %d", now, count)
	}
	must(t, unix.Kill(pid, 0))
	must(t, os.WriteFile(filepath.Join(n.rootfs, "tmp/stop"), nil, 0o600))
	if exit := n.exit(writer.ID); exit.Code != 5 {
		t.Errorf("exit %+v", exit)
	}
	n.compareLog(t, writer)
}

// brief is the life of a container that may be disturbed by a replacement at
// any moment: only what has not begun to run may have to be made again.
func (n *node) brief(i int) error {
	c := n.container("crun", "sh", "-c", "echo hello; exit "+strconv.Itoa(i%100))
	_, err := n.Create(n.ctx(), c)
	for ; fault.Is(err, fault.Unavailable); _, err = n.Create(n.ctx(), c) {
		_ = n.Remove(n.ctx(), c.ID)
	}
	if err != nil {
		return err
	}
	if err := n.Start(n.ctx(), c.ID); err != nil {
		return err
	}
	if exit := n.exit(c.ID); exit.Code != i%100 {
		return fmt.Errorf("exit %+v", exit)
	}
	if got := lines(n.t, c.LogPath)["stdout"]; strings.Join(got, "|") != "hello" {
		return fmt.Errorf("log %q", got)
	}
	return n.Remove(n.ctx(), c.ID)
}

// compareLog compares the log of TestReplace's writer, byte by byte.
func (n *node) compareLog(t *testing.T, c monitor.Container) {
	t.Helper()
	got := lines(t, c.LogPath)
	var want, wantErr []string
	for i := range (len(got["stdout"]) - 1) / 2 {
		want = append(want, "line "+strconv.Itoa(i), "part "+strconv.Itoa(i)+" end")
	}
	for i := range len(got["stderr"]) {
		wantErr = append(wantErr, "e"+strconv.Itoa(i))
	}
	t.Logf("%d lines on stdout, %d on stderr", len(got["stdout"]), len(got["stderr"]))
	compare(t, "stdout", got["stdout"], append(want, "tail<P>"))
	compare(t, "stderr", got["stderr"], wantErr)
}

// A program that cannot take over is refused, with its reason, and what runs
// runs on.
func TestReplaceRefused(t *testing.T) {
	n := newNode(t)
	keeper, serve := n.process("keep"), n.process("serve")
	script := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(n.dir, name)
		must(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	for path, reason := range map[string]string{
		script("too-new", "#!/bin/sh\necho 'knows 2 to 3' >&2; exit 1\n", 0o755): "knows 2 to 3",
		script("old", "#!/bin/sh\necho usage >&2; exit 2\n", 0o755):              "exit 2: usage",
		script("other-machine", "\x7fELF?", 0o755):                               "exec format error",
		script("not-executable", "#!/bin/sh\n", 0o644):                           "permission denied",
		script("dies", "#!/bin/sh\nkill -9 $$\n", 0o755):                         "killed",
	} {
		replaced, err := monitor.Replace(n.ctx(), path, n.state)
		wantKind(t, err, fault.Precondition)
		if replaced || err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: replaced %v, %v; want %q", filepath.Base(path), replaced, err, reason)
		}
	}
	if replaced, err := monitor.Replace(n.ctx(), n.binary, n.state); replaced || err != nil {
		t.Errorf("by itself: %v, %v", replaced, err)
	}
	if n.process("keep") != keeper || n.process("serve") != serve {
		t.Error("another keeper or monitor runs")
	}
	// One that vanishes in between: the monitor has ended, and another begins.
	vanishing := script("vanishing", "#!/bin/sh\nrm $0\n", 0o755)
	_, err := monitor.Replace(n.ctx(), vanishing, n.state)
	wantKind(t, err, fault.Precondition)
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("one that vanishes: %v", err)
	}
	_, err = n.List(n.ctx())
	must(t, err)
	if n.process("keep") != keeper {
		t.Error("another keeper runs")
	}
	must(t, os.Remove(monitor.KeeperPath(n.state))) // one of a version that had none
	_, err = monitor.Replace(n.ctx(), vanishing, n.state)
	wantKind(t, err, fault.Precondition)
	if replaced, err := monitor.Replace(n.ctx(), n.binary, filepath.Join(n.dir, "nothing")); replaced || err != nil {
		t.Errorf("where no keeper is: %v, %v", replaced, err)
	}
}

// SIGHUP, too, makes the keeper become what is now at its own path. It ends
// neither keeper nor monitor, also while a program begins.
func TestReplaceOnHangup(t *testing.T) {
	n := newNode(t)
	keeper := n.process("keep")
	other := n.another("other")
	must(t, os.Rename(other, n.binary))
	must(t, unix.Kill(keeper, unix.SIGHUP))
	await(t, "replacement", func() bool {
		running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", n.process("keep")))
		now, err2 := os.Stat(n.binary)
		return err == nil && err2 == nil && os.SameFile(running, now)
	})
	_, err := n.List(n.ctx())
	must(t, err)
	serve := n.process("serve")
	for range 20 {
		must(t, unix.Kill(serve, unix.SIGHUP)) // means nothing to the monitor
		_, err := n.List(n.ctx())
		must(t, err)
	}
	if n.process("keep") != keeper || n.process("serve") != serve {
		t.Error("another keeper or monitor runs")
	}
	// Nor do any in a row end the keeper, whatever it is at.
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		must(t, unix.Kill(keeper, unix.SIGHUP))
	}
	await(t, "an answer", func() bool { _, err := n.List(n.ctx()); return err == nil })
	if n.process("keep") != keeper {
		t.Error("the keeper is another process")
	}
}

// The keeper is killed at random moments around a replacement: containers run
// on, their logs are whole, and their ends are known.
func TestKillsAroundReplace(t *testing.T) {
	n := newNode(t)
	other := n.another("other")
	writer := n.container("crun", "sh", "-c", "i=0; while [ ! -e /tmp/stop ]; do echo \"line $i\"; printf \"part $i \"; echo end; echo e$i >&2; i=$((i+1)); done; printf tail; exit 5")
	pid := n.run(writer)
	begun := time.Now()
	n.replace(other)
	took := time.Since(begun)
	outcomes := map[string]int{}
	for range rounds(8) {
		brief := n.container("crun", "sh", "-c", "trap 'exit 4' USR1; echo ready; while :; do sleep 0.05; done")
		briefPid := n.run(brief)
		await(t, "ready", func() bool { data, _ := os.ReadFile(brief.LogPath); return strings.Contains(string(data), "ready") })
		keeper := n.process("keep")
		var both sync.WaitGroup
		both.Go(func() {
			replaced, err := monitor.Replace(n.ctx(), n.binary, n.state)
			outcomes[fmt.Sprintf("replaced %v, error %v", replaced, err)]++
		})
		both.Go(func() {
			time.Sleep(rand.N(took))
			_ = unix.Kill(keeper, unix.SIGKILL)
		})
		both.Go(func() { _ = unix.Kill(briefPid, unix.SIGUSR1) })
		both.Wait()
		await(t, "end of the monitor", func() bool { return n.process("serve") == 0 })
		must(t, monitor.Ensure(n.ctx(), other, n.state))
		// 255 if it was reaped by somebody else before a keeper could look.
		if exit := n.exit(brief.ID); exit.Code != 4 && exit.Code != 255 {
			t.Errorf("exit %+v", exit)
		}
		n.remove(brief.ID)
	}
	t.Logf("%v", outcomes)
	must(t, unix.Kill(pid, 0))
	must(t, os.WriteFile(filepath.Join(n.rootfs, "tmp/stop"), nil, 0o600))
	if exit := n.exit(writer.ID); exit.Code != 5 {
		t.Errorf("exit %+v", exit)
	}
	n.compareLog(t, writer)
}

// A davitd of another version gets a clear answer, at once.
func TestOtherProtocol(t *testing.T) {
	n := newNode(t)
	conn, err := net.Dial("unix", monitor.SocketPath(n.state))
	must(t, err)
	defer conn.Close()
	must(t, monitor.WriteFrame(conn, monitor.Request{Protocol: monitor.Protocol + 1, Method: monitor.MethodList}))
	var reply monitor.Reply
	must(t, monitor.ReadFrame(conn, &reply))
	if reply.Failure == nil || reply.Failure.Kind != fault.Unavailable || !strings.Contains(reply.Failure.Text, "version "+strconv.Itoa(monitor.Protocol+1)) {
		data, _ := json.Marshal(reply)
		t.Errorf("answer %s", data)
	}
}
