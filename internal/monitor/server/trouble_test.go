package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A full disk stops neither the container nor the monitor, and leaves whole
// lines; once there is room, lines are written again.
func TestLogDiskFull(t *testing.T) {
	n := newNode(t)
	logs := filepath.Join(n.dir, "full")
	must(t, os.Mkdir(logs, 0o755))
	must(t, unix.Mount("tmpfs", logs, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(logs, 0)) })
	c := n.container("crun", "sh", "-c", "seq 1 100000; : >/tmp/reached; while [ ! -e /tmp/go ]; do usleep 1000; done; echo room; exit 3")
	c.LogPath = filepath.Join(logs, "0.log")
	n.run(c)
	monitor := n.process("serve")
	await(t, "full disk", func() bool {
		log, _ := os.ReadFile(filepath.Join(n.state, "monitor.log"))
		return strings.Contains(string(log), "no space left")
	})
	await(t, "end of the lines", func() bool { _, err := os.Stat(filepath.Join(n.rootfs, "tmp/reached")); return err == nil })
	time.Sleep(500 * time.Millisecond)            // for what the pipe holds still
	must(t, os.Rename(c.LogPath, c.LogPath+".1")) // as the kubelet rotates
	must(t, n.ReopenLog(n.ctx(), c.ID))
	lines(t, c.LogPath+".1")
	must(t, os.Remove(c.LogPath+".1"))
	must(t, os.WriteFile(filepath.Join(n.rootfs, "tmp/go"), nil, 0o600))
	if exit := n.exit(c.ID); exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	if got := lines(t, c.LogPath)["stdout"]; len(got) == 0 || got[len(got)-1] != "room" {
		t.Errorf("%d lines", len(got))
	}
	if n.process("serve") != monitor {
		t.Error("the monitor died")
	}
	n.remove(c.ID)
}

// The same with the state directory: an unfinished line that cannot be kept
// becomes a piece.
func TestStateFull(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", "while [ ! -e /tmp/go ]; do usleep 1000; done; printf begin; usleep 100000; echo end; exit 3")
	n.run(c)
	monitor := n.process("serve")
	must(t, unix.Mount("", n.state, "", unix.MS_REMOUNT, "size=4m"))
	filler := filepath.Join(n.state, "filler")
	if err := os.WriteFile(filler, make([]byte, 5<<20), 0o600); err == nil {
		t.Fatal("not full")
	}
	must(t, os.WriteFile(filepath.Join(n.rootfs, "tmp/go"), nil, 0o600))
	if exit := n.exit(c.ID); exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	if n.process("serve") != monitor {
		t.Error("the monitor died")
	}
	if got := lines(t, c.LogPath)["stdout"]; strings.Join(got, "|") != "beginend" {
		t.Errorf("%q", got)
	}
	must(t, os.Remove(filler))
	n.remove(c.ID)
}

// A container without a log file is read and dropped.
func TestNoLog(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", "seq 1 100000; exit 3")
	c.LogPath = ""
	n.run(c)
	n.killMonitor()
	if exit := n.exit(c.ID); exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	n.remove(c.ID)
}

// Standard input that is kept open sees no end; it can be written to by path.
func TestStdin(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", "read a; read b; echo $a $b; exit 3")
	c.Stdin = true
	n.run(c)
	for _, word := range []string{"one\n", "two\n"} {
		f, err := os.OpenFile(filepath.Join(n.state, "monitor", c.ID, "stdin"), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(word)
		must(t, err)
		must(t, f.Close())
		n.killMonitor()
	}
	if exit := n.exit(c.ID); exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	if got := lines(t, c.LogPath)["stdout"]; strings.Join(got, "|") != "one two" {
		t.Errorf("%q", got)
	}
	n.remove(c.ID)
}

// Containers may have their log in a directory that cannot be made.
func TestBadLogPath(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "true")
	c.LogPath = "/proc/nowhere/0.log"
	_, err := n.Create(n.ctx(), c)
	if err == nil || !strings.Contains(err.Error(), "/proc/nowhere") {
		t.Errorf("error %v", err)
	}
	if left := n.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A container that is killed while the OCI runtime starts it ends the start: its
// process never opens the pipe that crun's start waits at, for ever.
func TestKilledWhileStarted(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "true")
	wrapper := filepath.Join(n.dir, "slow-start")
	must(t, os.WriteFile(wrapper, []byte("#!/bin/sh\ncase \" $* \" in *' start '*) exec sleep 3600;; esac\nexec "+c.Runtime.Path+" \"$@\"\n"), 0o755))
	c.Runtime.Path = wrapper
	_, err := n.Create(n.ctx(), c)
	must(t, err)
	started := make(chan error, 1)
	go func() { started <- n.Start(n.ctx(), c.ID) }()
	time.Sleep(100 * time.Millisecond)
	must(t, n.Signal(n.ctx(), c.ID, int(unix.SIGKILL)))
	select {
	case err := <-started:
		wantKind(t, err, fault.Precondition)
	case <-time.After(15 * time.Second):
		t.Error("start waits for a dead container")
	}
	n.remove(c.ID)
}
