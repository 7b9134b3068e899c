package server_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// An attached client.
type client struct {
	t        *testing.T
	out, err buffer
	in       *io.PipeWriter
	sizes    chan monitor.Size
	leave    context.CancelFunc
	done     chan error
	gone     chan struct{} // closed once result is set
	result   error
}

// attach connects a client, soon.
func (n *node) attach(t *testing.T, id string) *client {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, typed := io.Pipe()
	c := &client{t: t, in: typed, sizes: make(chan monitor.Size), leave: cancel, done: make(chan error, 1), gone: make(chan struct{})}
	go func() {
		c.result = n.Attach(ctx, id, monitor.Stream{Stdin: in, Stdout: &c.out, Stderr: &c.err, Resize: c.sizes})
		close(c.gone)
		_ = in.Close()
		c.done <- c.result
	}()
	t.Cleanup(cancel)
	return c
}

// type_ ends the test if the session has ended, or does not take it.
func (c *client) type_(text string) {
	c.t.Helper()
	typed := make(chan error, 1)
	go func() { _, err := io.WriteString(c.in, text); typed <- err }()
	select {
	case err := <-typed:
		if err != nil {
			<-c.gone
			c.t.Fatalf("typed %q, but the session has ended: %v", text, c.result)
		}
	case <-time.After(patience):
		c.t.Fatalf("typed %q, which the session does not read", text)
	}
}

// resize does as type_ does.
func (c *client) resize(size monitor.Size) {
	c.t.Helper()
	select {
	case c.sizes <- size:
	case <-c.gone:
		c.t.Fatalf("resized, but the session has ended: %v", c.result)
	case <-time.After(patience):
		c.t.Fatal("the session takes no size")
	}
}

// echo runs a container that answers each line it reads on both outputs.
func (n *node) echo(runtime string, tty, once bool) monitor.Container {
	n.t.Helper()
	const script = "echo begin; while read a; do echo got $a; echo $a >&2; done; echo end; exit 9"
	c := n.container(runtime, "sh", "-c", script)
	c.Stdin, c.StdinOnce, c.TTY = true, once, tty
	if tty {
		s := spec(n.rootfs, c.ID, []string{"sh", "-c", strings.ReplaceAll(script, "read a; do", "read a; do stty size;")})
		s.Process.Terminal = true
		n.writeSpec(c, s)
	}
	n.run(c)
	return c
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.echo(runtime, false, false)
		one, two := n.attach(t, c.ID), n.attach(t, c.ID)
		one.type_("1\n")
		await(t, "answer", one.out.has("got 1\n"))
		two.type_("2\n") // both are attached by now
		for _, a := range []*client{one, two} {
			await(t, "answer", a.out.has("got 2\n"))
			await(t, "answer", a.err.has("2\n"))
		}
		one.leave()
		wantKind(t, <-one.done, fault.Canceled)
		_ = two.in.Close() // is not the end of the container's input
		three := n.attach(t, c.ID)
		three.type_("3\n")
		await(t, "answer", two.out.has("got 3\n"))
		must(t, n.Attach(n.ctx(), c.ID, monitor.Stream{Stdin: strings.NewReader("only input\n")}))
		await(t, "answer", two.out.has("got only input\n"))
		n.killMonitor()
		wantKind(t, <-two.done, fault.Unavailable)
		wantKind(t, <-three.done, fault.Unavailable)
		four := n.attach(t, c.ID)
		four.type_("4\n")
		await(t, "answer", four.out.has("got 4\n"))
		must(t, n.Signal(n.ctx(), c.ID, 9))
		must(t, <-four.done)
		wantKind(t, n.Attach(n.ctx(), c.ID, monitor.Stream{Stdout: io.Discard}), fault.Precondition)
		wantKind(t, n.Attach(n.ctx(), newID(), monitor.Stream{Stdout: io.Discard}), fault.NotFound)
		if got := lines(t, c.LogPath); strings.Join(got["stdout"], "|") != "begin|got 1|got 2|got 3|got only input|got 4" || strings.Join(got["stderr"], "|") != "1|2|3|only input|4" {
			t.Errorf("log %q", got)
		}
		n.remove(c.ID)
	})
}

func TestAttachOnce(t *testing.T) {
	n := newNode(t)
	for _, end := range []string{"input", "client", "input of a terminal", "monitor, then input"} {
		c := n.echo("crun", strings.Contains(end, "terminal"), true)
		if end == "monitor, then input" {
			a := n.attach(t, c.ID)
			a.type_("0\n")
			await(t, "answer", a.out.has("got 0"))
			n.killMonitor()
			wantKind(t, <-a.done, fault.Unavailable)
		}
		a := n.attach(t, c.ID)
		a.type_("1\n")
		await(t, "answer", a.out.has("got 1"))
		if end == "client" {
			a.leave()
		} else {
			_ = a.in.Close()
			must(t, <-a.done)
			if !a.out.has("end")() {
				t.Errorf("%s: %q", end, a.out.String())
			}
		}
		if exit := n.exit(c.ID); exit.Code != 9 {
			t.Errorf("%s: exit %+v", end, exit)
		}
		n.remove(c.ID)
	}
	// Its input stays closed, also for the next monitor.
	c := n.container("crun", "sh", "-c", "cat; echo end; sleep 1000")
	c.Stdin, c.StdinOnce = true, true
	n.run(c)
	for range 2 {
		var out buffer
		ctx, cancel := context.WithCancel(n.ctx())
		done := make(chan error)
		go func() {
			done <- n.Attach(ctx, c.ID, monitor.Stream{Stdin: strings.NewReader("in\n"), Stdout: &out})
		}()
		await(t, "end of the input", func() bool {
			data, _ := os.ReadFile(c.LogPath)
			return strings.HasSuffix(string(data), "F end\n")
		})
		cancel()
		wantKind(t, <-done, fault.Canceled)
		n.killMonitor()
	}
	if got := lines(t, c.LogPath)["stdout"]; strings.Join(got, "|") != "in|end" {
		t.Errorf("log %q", got)
	}
	n.remove(c.ID)
}

func TestAttachTerminal(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.echo(runtime, true, false)
		for i := range 2 { // the second time with another monitor
			one, two := n.attach(t, c.ID), n.attach(t, c.ID)
			one.type_(fmt.Sprintf("1-%d\n", i))
			await(t, "answer", one.out.has(fmt.Sprintf("got 1-%d\r\n", i)))
			two.type_(fmt.Sprintf("2-%d\n", i))
			await(t, "answer", two.out.has(fmt.Sprintf("got 2-%d\r\n", i)))
			one.resize(monitor.Size{})
			one.resize(monitor.Size{Width: uint16(100 + i), Height: 40})
			await(t, "new size", func() bool {
				one.type_("x\n")
				time.Sleep(10 * time.Millisecond)
				return two.out.has(fmt.Sprintf("40 %d\r\n", 100+i))()
			})
			n.killMonitor()
			wantKind(t, <-one.done, fault.Unavailable)
			wantKind(t, <-two.done, fault.Unavailable)
		}
		a := n.attach(t, c.ID)
		a.type_("last\n\x04")
		must(t, <-a.done)
		if got := a.out.String(); !strings.HasSuffix(got, "end\r\n") {
			t.Errorf("%q", got)
		}
		if exit := n.exit(c.ID); exit.Code != 9 {
			t.Errorf("exit %+v", exit)
		}
		n.remove(c.ID)
	})
}

// Clients that do not read hold up neither the container nor its log nor other
// clients, whatever happens to the monitor; and they are told.
func TestAttachSlow(t *testing.T) {
	n := newNode(t)
	const count = 1300000 // more than any pipe takes
	for _, kill := range []bool{false, true} {
		ready := filepath.Join(n.rootfs, "tmp", fmt.Sprintf("ready-%t", kill))
		c := n.container("crun", "sh", "-c", fmt.Sprintf(
			"until [ -e /tmp/%s ]; do echo; usleep 5000; done; read a; seq 1 %d; exit 3", filepath.Base(ready), count))
		c.Stdin = true
		n.run(c)
		stuck := &stuckWriter{go_: make(chan struct{}), begun: make(chan struct{})}
		results := make(chan error, 2)
		var quick buffer
		go func() { results <- n.Attach(n.ctx(), c.ID, monitor.Stream{Stdout: stuck}) }()
		go func() { results <- n.Attach(n.ctx(), c.ID, monitor.Stream{Stdout: &quick}) }()
		<-stuck.begun
		await(t, "output", quick.has("\n"))
		must(t, os.WriteFile(ready, nil, 0o600))
		begin := time.Now()
		must(t, n.Attach(n.ctx(), c.ID, monitor.Stream{Stdin: strings.NewReader("go\n")}))
		if kill {
			await(t, "first lines", quick.has("\n1000\n"))
			n.killMonitor()
		}
		if exit := n.exit(c.ID); exit.Code != 3 {
			t.Errorf("exit %+v", exit)
		}
		t.Logf("%s for %d lines, with a client that does not read", time.Since(begin), count)
		got := slices.DeleteFunc(lines(t, c.LogPath)["stdout"], func(line string) bool { return line == "" })
		if len(got) != count || got[0] != "1" || got[count-1] != fmt.Sprint(count) {
			t.Errorf("log of %d lines", len(got))
		}
		close(stuck.go_)
		for range 2 {
			if err := <-results; kill {
				wantKind(t, err, fault.Unavailable)
			} else {
				must(t, err)
			}
		}
		if !kill && !strings.Contains(stuck.data.String(), "bytes of output are missing here") {
			t.Errorf("%d bytes, the last %.200q", stuck.data.data.Len(), stuck.data.String()[max(0, stuck.data.data.Len()-200):])
		}
		t.Logf("the quick one has %d bytes", len(quick.String()))
		n.remove(c.ID)
	}
}

// A stuckWriter takes nothing until go_ is closed.
type stuckWriter struct {
	go_, begun chan struct{} // begun is closed by the first Write
	once       sync.Once
	data       buffer
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.begun) })
	<-w.go_
	return w.data.Write(p)
}

// A container that is not to be read from or written to, and one without a log.
func TestAttachLess(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", "until [ -e /tmp/go ]; do echo; usleep 5000; done; seq 1 10; cat; exit 4")
	c.LogPath = ""
	n.run(c)
	var out buffer
	done := make(chan error)
	go func() { done <- n.Attach(n.ctx(), c.ID, monitor.Stream{Stdin: strings.NewReader("in"), Stdout: &out}) }()
	await(t, "output", out.has("\n"))
	must(t, os.WriteFile(filepath.Join(n.rootfs, "tmp/go"), nil, 0o600))
	must(t, <-done)
	if strings.TrimLeft(out.String(), "\n") != "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n" {
		t.Errorf("%q", out.String())
	}
	n.remove(c.ID)
}
