package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// A buffer takes output and can be watched meanwhile.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

func (b *buffer) has(text string) func() bool {
	return func() bool { return strings.Contains(b.String(), text) }
}

func (n *node) stream(id string, s monitor.Stream, args ...string) (int, error) {
	return n.ExecStream(n.ctx(), monitor.Exec{ContainerID: id, Args: args}, s)
}

func TestExecStream(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.container(runtime, "sleep", "1000")
		_, err := n.Create(n.ctx(), c)
		must(t, err)
		_, err = n.stream(c.ID, monitor.Stream{}, "true")
		wantKind(t, err, fault.Precondition)
		_, err = n.stream(newID(), monitor.Stream{}, "true")
		wantKind(t, err, fault.NotFound)
		must(t, n.Start(n.ctx(), c.ID))
		for _, test := range []struct {
			name, script, stdin string
			code                int
			stdout, stderr      string
		}{
			{"output and code", "echo out; echo err >&2; exit 3", "", 3, "out\n", "err\n"},
			{"half-close", "cat; echo end", "in\n", 0, "in\nend\n", ""},
			{"a signal", "kill -15 $$", "", 143, "", ""},
			{"does not read", "exit 4", strings.Repeat("x", 1<<20), 4, "", ""},
			{"a child holds the output", "sleep " + nap + " & echo started", "", 0, "started\n", ""},
			{"a child never is silent", "(while :; do usleep 20000; echo; done >&2) & echo started", "", 0, "started\n", "*"},
			{"big", "seq 1 200000; seq 1 200000 >&2; exit 5", "", 5, "*1288895", "*1288895"},
		} {
			var out, errs buffer
			s := monitor.Stream{Stdout: &out, Stderr: &errs}
			if test.stdin != "" {
				s.Stdin = strings.NewReader(test.stdin)
			}
			code, err := n.stream(c.ID, s, "sh", "-c", test.script)
			must(t, err)
			ok := func(got, want string) bool {
				if size, some := strings.CutPrefix(want, "*"); some {
					return size == "" || size == strconv.Itoa(len(got))
				}
				return got == want
			}
			if code != test.code || !ok(out.String(), test.stdout) || !ok(errs.String(), test.stderr) {
				t.Errorf("%s: code %d, %d bytes %.100q, %d bytes %.100q", test.name, code, len(out.String()), out.String(), len(errs.String()), errs.String())
			}
		}
		for _, args := range [][]string{{"nosuchprogram"}, {"/proc"}, {}} {
			_, err = n.stream(c.ID, monitor.Stream{Stdout: io.Discard}, args...)
			wantKind(t, err, fault.Invalid)
			t.Log(err)
		}
		// Nothing is connected.
		if code, err := n.stream(c.ID, monitor.Stream{}, "sh", "-c", "echo; cat; exit 6"); code != 6 || err != nil {
			t.Error(code, err)
		}
		n.killOnce(c.ID, "sleep\x00"+nap+"0")
		_, err = n.stream(c.ID, monitor.Stream{Stdout: io.Discard}, "sleep", nap+"0")
		wantKind(t, err, fault.Unavailable)
		n.exit(c.ID)
		n.remove(c.ID)
	})
}

func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.container(runtime, "sleep", "1000")
		n.run(c)
		in, typed := io.Pipe()
		var out buffer
		sizes := make(chan monitor.Size, 3)
		sizes <- monitor.Size{Width: 91, Height: 17}
		type result struct {
			code int
			err  error
		}
		done := make(chan result)
		go func() {
			code, err := n.stream(c.ID, monitor.Stream{Stdin: in, Stdout: &out, TTY: true, Resize: sizes},
				// crun 1.8 may release the command a moment before its terminal has its size.
				"sh", "-c", "test -t 0 && test -t 2 && echo terminal $TERM; until stty size 2>/dev/null; do :; done; while read a; do echo got $a; stty size; done; exit 7")
			done <- result{code, err}
		}()
		await(t, "first size", out.has("terminal xterm\r\n17 91\r\n"))
		sizes <- monitor.Size{Width: 0, Height: 5} // is none
		sizes <- monitor.Size{Width: 120, Height: 40}
		go func() {
			for out.String() != "" && !out.has("40 120\r\n")() {
				_, _ = typed.Write([]byte("word\n"))
				time.Sleep(20 * time.Millisecond)
			}
			_ = typed.Close()
		}()
		if r := <-done; r.code != 7 || r.err != nil {
			t.Errorf("%d, %v", r.code, r.err)
		}
		if got := out.String(); !strings.Contains(got, "got word\r\n") || !strings.Contains(got, "40 120\r\n") {
			t.Errorf("%q", got)
		}
		// All that is written last arrives; a child that keeps the terminal does not hold the result.
		var last buffer
		code, err := n.stream(c.ID, monitor.Stream{Stdout: &last, TTY: true}, "sh", "-c", "trap '' HUP; sleep "+nap+" & seq 1 100000; exit 8")
		if code != 8 || err != nil || !strings.HasSuffix(last.String(), "\r\n100000\r\n") {
			t.Errorf("%d, %v, %d bytes", code, err, len(last.String()))
		}
		_, err = n.stream(c.ID, monitor.Stream{Stdout: io.Discard, TTY: true}, "nosuchprogram")
		wantKind(t, err, fault.Invalid)
		n.remove(c.ID)
	})
}

// The end of the caller, or of what it reads and writes, ends the whole tree.
func TestExecStreamEnds(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sleep", "1000")
	n.run(c)
	for _, test := range []struct {
		name string
		tty  bool
		in   io.Reader
		out  io.Writer
	}{
		{name: "caller"},
		{name: "caller, terminal", tty: true},
		{name: "input", in: brokenEnd{}},
		{name: "output", out: brokenEnd{}},
		{name: "output, terminal", out: brokenEnd{}, tty: true},
	} {
		ctx, cancel := context.WithCancel(n.ctx())
		if test.in == nil && test.out == nil {
			go func() {
				await(t, "exec", func() bool { return running("sleep\x00" + nap) })
				cancel()
			}()
		}
		const script = "trap '' HUP; (sleep NAP & setsid sleep NAP & (setsid sleep NAP </dev/null >/dev/null 2>&1 &)) & sleep 0.05; while :; do echo x; sleep 0.01; done"
		_, err := n.ExecStream(ctx, monitor.Exec{ContainerID: c.ID, Args: []string{"sh", "-c", strings.ReplaceAll(script, "NAP", nap)}},
			monitor.Stream{Stdin: test.in, Stdout: test.out, TTY: test.tty})
		wantKind(t, err, fault.Canceled)
		await(t, "end of what was run: "+test.name, func() bool { return !running("sleep\x00" + nap) })
		cancel()
	}
	// Killed before it runs.
	for range 10 {
		ctx, cancel := context.WithTimeout(n.ctx(), 10*time.Millisecond)
		_, err := n.ExecStream(ctx, monitor.Exec{ContainerID: c.ID, Args: []string{"sleep", nap}}, monitor.Stream{})
		wantKind(t, err, fault.Deadline)
		cancel()
	}
	await(t, "end of what was run", func() bool { return !running("sleep\x00" + nap) })
	// With the monitor. Those of before may show up still.
	other := nap + "1"
	done := make(chan error)
	for _, tty := range []bool{false, true} {
		go func() {
			_, err := n.stream(c.ID, monitor.Stream{TTY: tty}, "sleep", other)
			done <- err
		}()
		await(t, "exec", func() bool { return running("sleep\x00" + other) })
		n.killMonitor()
		wantKind(t, <-done, fault.Unavailable)
		await(t, "end of what was run", func() bool { return !running("sleep\x00" + other) })
	}
	n.remove(c.ID)
}

type brokenEnd struct{}

var errBroken = errors.New("broken")

func (brokenEnd) Read([]byte) (int, error)  { return 0, errBroken }
func (brokenEnd) Write([]byte) (int, error) { return 0, errBroken }

// A caller that reads slowly gets everything, and holds up the command.
func TestExecBackPressure(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sleep", "1000")
	n.run(c)
	slow := &slowWriter{}
	code, err := n.stream(c.ID, monitor.Stream{Stdout: slow}, "sh", "-c", "seq 1 100000; echo end")
	if code != 0 || err != nil || !strings.HasSuffix(string(slow.data), "\n100000\nend\n") || len(slow.data) != 588895+4 {
		t.Errorf("%d, %v, %d bytes", code, err, len(slow.data))
	}
	n.remove(c.ID)
}

type slowWriter struct{ data []byte }

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	w.data = append(w.data, p...)
	return len(p), nil
}
