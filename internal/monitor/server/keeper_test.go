package server_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// The keeper is killed; the next one follows what lives by pidfd.
func TestKeeperIsKilled(t *testing.T) {
	n := newNode(t)
	killKeeper := func() {
		must(t, unix.Kill(n.process("keep"), unix.SIGKILL))
		await(t, "end of the monitor", func() bool { return n.process("serve") == 0 })
	}
	// Two that end when they are told to, and one that has ended before.
	const untilTold = "while :; do sleep 0.05; done"
	c := n.container("crun", "sh", "-c", "trap 'exit 9' USR1; i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done; "+untilTold)
	brief := n.container("crun", "sh", "-c", "trap 'exit 4' USR1; echo ready; "+untilTold)
	before := n.container("crun", "sh", "-c", "exit 2")
	pid := n.run(c)
	n.run(brief)
	n.run(before)
	n.exit(before.ID)
	for range 5 {
		time.Sleep(10 * time.Millisecond)
		killKeeper()
		must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
	}
	list, err := n.List(n.ctx())
	must(t, err)
	for _, s := range list {
		if s.ID == c.ID && (s.Pid != pid || s.Exit != nil) {
			t.Errorf("status %+v, want pid %d", s, pid)
		}
	}
	if exit := n.exit(before.ID); exit.Code != 2 {
		t.Errorf("exit from before: %+v", exit)
	}
	await(t, "ready", func() bool { return len(lines(t, brief.LogPath)["stdout"]) == 1 })
	must(t, n.Signal(n.ctx(), brief.ID, int(unix.SIGUSR1)))
	if exit := n.exit(brief.ID); exit.Code != 4 {
		t.Errorf("exit %+v", exit)
	}
	await(t, "last line", func() bool {
		data, _ := os.ReadFile(c.LogPath)
		return strings.HasSuffix(string(data), " 99999\n")
	})
	killKeeper() // while nobody looks, the other one ends
	must(t, unix.Kill(pid, unix.SIGUSR1))
	await(t, "end of the container", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
	// 255 if its process was reaped before the new keeper could look.
	if exit := n.exit(c.ID); exit.Code != 9 && exit.Code != 255 {
		t.Errorf("exit %+v", exit)
	}
	got := lines(t, c.LogPath)["stdout"]
	want := make([]string, 100000)
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	compare(t, "stdout", got, want)
}

// A keeper that is started to stand by tells its service manager that it is
// ready at once, and takes the place of the other one when that has gone. An
// upgrade meanwhile is its upgrade, too.
func TestStandby(t *testing.T) {
	n := newNode(t)
	first, serve := n.process("keep"), n.process("serve")
	c := n.container("crun", "sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done")
	pid := n.run(c)
	await(t, "ready", func() bool { data, _ := os.ReadFile(c.LogPath); return strings.Contains(string(data), "ready") })
	manager := filepath.Join(n.dir, "notify")
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: manager})
	must(t, err)
	defer told.Close()
	hears := func(text string) {
		t.Helper()
		buf := make([]byte, 1000)
		must(t, told.SetReadDeadline(time.Now().Add(patience)))
		got, err := told.Read(buf)
		must(t, err)
		if s := string(buf[:got]); !strings.HasPrefix(s, "READY=1\nSTATUS=") || !strings.Contains(s, text) {
			t.Errorf("told %q, want %q", s, text)
		}
	}
	log, err := os.OpenFile(filepath.Join(n.state, "monitor.log"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer log.Close()
	program := n.another("installed")
	second := exec.Command(program, "keep", "--state", n.state, "--wait")
	second.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager)
	second.Stderr = log
	must(t, second.Start())
	ended := make(chan error, 1)
	go func() { ended <- second.Wait() }()
	hears("stands by")
	must(t, os.Rename(n.another("newer"), program)) // as packages are unpacked
	hears("stands by")
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", second.Process.Pid))
	must(t, err)
	if link != program { // not "… (deleted)"
		t.Errorf("%s stands by, want %s", link, program)
	}
	must(t, unix.Kill(first, unix.SIGKILL))
	hears("keeps " + n.state)
	await(t, "next monitor", func() bool { now := n.process("serve"); return now != 0 && now != serve })
	n.replace(n.another("other"))
	hears("keeps " + n.state) // of the program that it is by now
	await(t, "next monitor", func() bool { return n.process("serve") != 0 })
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", n.process("serve")))
	must(t, err)
	if strings.Contains(string(environment), "NOTIFY_SOCKET") {
		t.Error("the monitor, and so containers, would speak to the service manager")
	}
	must(t, unix.Kill(pid, unix.SIGUSR1))
	if exit := n.exit(c.ID); exit.Code != 9 && exit.Code != 255 {
		t.Errorf("exit %+v", exit)
	}
	must(t, second.Process.Signal(unix.SIGTERM))
	must(t, <-ended)
	must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
}

// The keeper is killed while a log is opened anew, which waits for it: the
// monitor ends all the same, and the next one goes on with the new log.
func TestKeeperIsKilledDuringReopen(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", "trap 'echo told' USR1; echo ready; while :; do sleep 0.05; done")
	pid := n.run(c)
	await(t, "ready", func() bool { return len(lines(t, c.LogPath)["stdout"]) == 1 })
	must(t, os.Rename(c.LogPath, c.LogPath+".1"))
	keeper := n.process("keep")
	must(t, unix.Kill(keeper, unix.SIGSTOP))
	reopened := make(chan error, 1)
	go func() { reopened <- n.ReopenLog(n.ctx(), c.ID) }()
	await(t, "the new log", func() bool { _, err := os.Stat(c.LogPath); return err == nil })
	must(t, unix.Kill(keeper, unix.SIGKILL))
	await(t, "end of the monitor", func() bool { return n.process("serve") == 0 })
	must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
	must(t, <-reopened)
	must(t, unix.Kill(pid, unix.SIGUSR1))
	await(t, "a line in the new log", func() bool { return len(lines(t, c.LogPath)["stdout"]) == 1 })
}

// A second Ensure changes nothing, many at once start one keeper.
func TestEnsure(t *testing.T) {
	n := newNode(t)
	keeper, serve := n.process("keep"), n.process("serve")
	must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
	if n.process("keep") != keeper || n.process("serve") != serve {
		t.Error("Ensure started another")
	}
	must(t, unix.Kill(keeper, unix.SIGKILL))
	done := make(chan error)
	for range 8 {
		go func() { done <- monitor.Ensure(n.ctx(), n.binary, n.state) }()
	}
	for range 8 {
		must(t, <-done)
	}
	must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
}
