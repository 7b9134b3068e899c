package server_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

func TestExitCodes(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		for _, test := range []struct {
			script       string
			kill         int
			code, signal int
		}{
			{"exit 0", 0, 0, 0},
			{"exit 3", 0, 3, 0},
			{"kill -9 $$", 0, 0, 0}, // pid 1 is immune to itself
			{"exec sleep 100", 9, 137, 9},
			{"trap 'exit 7' TERM; echo ready; while :; do usleep 1000; done", 15, 7, 0},
		} {
			c := n.container(runtime, "sh", "-c", test.script)
			pid := n.run(c)
			if test.kill != 0 {
				if strings.Contains(test.script, "ready") {
					await(t, "trap", func() bool {
						data, _ := os.ReadFile(c.LogPath)
						return strings.Contains(string(data), "ready")
					})
				}
				must(t, n.Signal(n.ctx(), c.ID, test.kill))
			}
			exit := n.exit(c.ID)
			if exit.Code != test.code || exit.Signal != test.signal || exit.OOMKilled || pid <= 1 {
				t.Errorf("%s: pid %d, exit %+v, want code %d signal %d", test.script, pid, exit, test.code, test.signal)
			}
			wantKind(t, n.Signal(n.ctx(), c.ID, 15), fault.NotFound)
			wantKind(t, n.ReopenLog(n.ctx(), c.ID), fault.Precondition)
			n.remove(c.ID)
			n.remove(c.ID) // idempotent
		}
	})
}

// 100 containers that die at once: each exit is seen, none is another's.
func TestDiesAtOnce(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(context.Background())
	exits := make(chan monitor.Exit, 1000)
	done := make(chan error, 1)
	go func() { done <- n.Watch(ctx, func(e monitor.Exit) { exits <- e }) }()
	want := map[string]int{}
	for i := range 40 {
		code := strings.Repeat("x", i)
		c := n.container("crun", "sh", "-c", "exit $(( "+string(rune('0'+len(code)%10))+" + 40 ))")
		want[c.ID] = 40 + i%10
		n.run(c)
	}
	got := map[string]int{}
	for len(got) < len(want) {
		select {
		case e := <-exits:
			got[e.ID] = e.Code
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d exits", len(got), len(want))
		}
	}
	for id, code := range want {
		if got[id] != code {
			t.Errorf("%s: code %d, want %d", id[:8], got[id], code)
		}
		n.remove(id)
	}
	cancel()
	<-done
}

func TestErrors(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.container(runtime, "nosuchprogram")
		_, err := n.Create(n.ctx(), c)
		wantKind(t, err, fault.Invalid)
		t.Log(err)
		if data, _ := os.ReadFile(c.LogPath); len(data) > 0 {
			t.Errorf("the runtime's error is in the container's log: %s", data)
		}
		c = n.container(runtime, "true")
		c.Runtime.Path = "/nonexistent/crun"
		_, err = n.Create(n.ctx(), c)
		wantKind(t, err, fault.Unavailable)
		t.Log(err)
		c = n.container(runtime, "true")
		must(t, os.WriteFile(filepath.Join(c.Bundle, "config.json"), []byte("{"), 0o600))
		_, err = n.Create(n.ctx(), c)
		wantKind(t, err, fault.Internal)
		t.Log(err)
		wantKind(t, n.Start(n.ctx(), c.ID), fault.NotFound)
		_, err = n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"true"}})
		wantKind(t, err, fault.NotFound)
		must(t, n.Remove(n.ctx(), c.ID))
		if left := n.left(); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

func TestOutput(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", `echo out; echo err >&2; printf 'slow '; usleep 30000; echo line; printf tail`)
	n.run(c)
	n.exit(c.ID)
	got := lines(t, c.LogPath)
	if strings.Join(got["stdout"], "|") != "out|slow line|tail<P>" || strings.Join(got["stderr"], "|") != "err" {
		t.Errorf("log %q", got)
	}
	if info, err := os.Stat(c.LogPath); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.container(runtime, "sh", "-c", "test -t 0 && test -t 1 && echo terminal; echo err >&2; sleep 100")
		c.TTY = true
		s := spec(n.rootfs, c.ID, []string{"sh", "-c", "test -t 0 && test -t 1 && echo terminal; echo err >&2; usleep 300000; seq 1 2000; exit 4"})
		s.Process.Terminal = true
		n.writeSpec(c, s)
		n.run(c)
		await(t, "terminal's output", func() bool {
			data, _ := os.ReadFile(c.LogPath)
			return strings.Contains(string(data), "err")
		})
		n.killMonitor()
		if exit := n.exit(c.ID); exit.Code != 4 {
			t.Errorf("exit %+v", exit)
		}
		got := lines(t, c.LogPath)
		if len(got["stdout"]) != 2002 || got["stdout"][0] != "terminal" || got["stdout"][2001] != "2000" {
			t.Errorf("%d lines: %.300q", len(got["stdout"]), got["stdout"])
		}
	})
}
