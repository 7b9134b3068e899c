package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// each runs a test with each protocol.
func each(t *testing.T, test func(t *testing.T, open func(s *Server, c Command) *client)) {
	t.Run("SPDY", func(t *testing.T) {
		test(t, func(s *Server, c Command) *client { return newSPDY(t, mustExec(t, s, c), c) })
	})
	t.Run("WebSocket", func(t *testing.T) {
		test(t, func(s *Server, c Command) *client { return newWebSocket(t, mustExec(t, s, c), "v4.channel.k8s.io") })
	})
	t.Run("WebSocket 5", func(t *testing.T) {
		test(t, func(s *Server, c Command) *client { return newWebSocket(t, mustExec(t, s, c), "v5.channel.k8s.io") })
	})
}

func mustExec(t *testing.T, s *Server, c Command) string {
	t.Helper()
	url, err := s.Exec(c)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		c := open(s, Command{Stdin: true, Stdout: true, Stderr: true, Run: func(_ context.Context, io_ monitor.Stream) (int, error) {
			line := make([]byte, 5)
			if _, err := io.ReadFull(io_.Stdin, line); err != nil {
				return 0, err
			}
			fmt.Fprintf(io_.Stdout, "out %s", line)
			fmt.Fprintf(io_.Stderr, "err %s", line)
			return 42, nil
		}})
		if _, err := c.stdin.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		out, errOut, text := c.result()
		got := parseStatus(t, text)
		if out != "out hello" || errOut != "err hello" || got.Reason != "NonZeroExitCode" || len(got.Details.Causes) != 1 ||
			got.Details.Causes[0].Reason != "ExitCode" || got.Details.Causes[0].Message != "42" {
			t.Errorf("%q %q %+v", out, errOut, got)
		}
	})
}

func TestExecOutcomes(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		for _, tt := range []struct {
			code int
			err  error
			want status
			text string
		}{
			{0, nil, status{Status: "Success"}, ""},
			{137, nil, status{Status: "Failure", Reason: "NonZeroExitCode"}, "137"},
			{0, errors.New(`run "sl": executable file not found in $PATH`), status{Status: "Failure", Reason: "InternalError"}, `run "sl": executable file not found`},
		} {
			c := open(s, Command{Stdout: true, Run: func(context.Context, monitor.Stream) (int, error) { return tt.code, tt.err }})
			_, _, text := c.result()
			if got := parseStatus(t, text); got.Status != tt.want.Status || got.Reason != tt.want.Reason || !strings.Contains(got.Message, tt.text) {
				t.Errorf("%d, %v: %+v", tt.code, tt.err, got)
			}
		}
	})
}

// A session is joined to what was asked for, and to nothing else.
func TestStreamsAreThoseAskedFor(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		for _, ask := range []Command{{Stdin: true}, {Stdout: true}, {Stderr: true}, {Stdin: true, Stdout: true, TTY: true}} {
			var got Command
			ask.Run = func(_ context.Context, io monitor.Stream) (int, error) {
				got = Command{Stdin: io.Stdin != nil, Stdout: io.Stdout != nil, Stderr: io.Stderr != nil, TTY: io.TTY}
				return 0, nil
			}
			open(s, ask).result()
			if got.Stdin != ask.Stdin || got.Stdout != ask.Stdout || got.Stderr != ask.Stderr || got.TTY != ask.TTY {
				t.Errorf("asked for %+v, got %+v", ask, got)
			}
		}
	})
}

func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		c := open(s, Command{Stdin: true, Stdout: true, TTY: true, Run: func(_ context.Context, io monitor.Stream) (int, error) {
			for size := range io.Resize {
				fmt.Fprintf(io.Stdout, "%dx%d ", size.Width, size.Height)
				if size.Width == 300 {
					break
				}
			}
			return 0, nil
		}})
		for _, size := range []string{`{"Width":0,"Height":10}`, `{"Width":300,"Height":100}`} {
			if _, err := c.resize.Write([]byte(size)); err != nil {
				t.Fatal(err)
			}
		}
		if out, _, _ := c.result(); out != "300x100 " {
			t.Errorf("sizes %q", out)
		}
	})
}

// Sizes that nobody takes keep neither the client nor standard input waiting.
func TestSizesDoNotBlock(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		c := open(s, Command{Stdin: true, Stdout: true, TTY: true, Run: func(_ context.Context, io_ monitor.Stream) (int, error) {
			_, err := io.CopyN(io_.Stdout, io_.Stdin, 4)
			return 0, err
		}})
		for i := range 100 {
			fmt.Fprintf(c.resize, `{"Width":%d,"Height":1}`, i+1)
		}
		_, _ = c.stdin.Write([]byte("done"))
		if out, _, _ := c.result(); out != "done" {
			t.Errorf("%q", out)
		}
	})
}

// The end of standard input reaches the command, and its output the client after that.
func TestHalfClose(t *testing.T) {
	echo := Command{Stdin: true, Stdout: true, Run: func(_ context.Context, io_ monitor.Stream) (int, error) {
		data, err := io.ReadAll(io_.Stdin)
		fmt.Fprintf(io_.Stdout, "%d bytes", len(data))
		return 0, err
	}}
	const size = 1 << 20
	check := func(t *testing.T, c *client) {
		for range 16 {
			if _, err := c.stdin.Write(make([]byte, size/16)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.stdin.Close(); err != nil {
			t.Fatal(err)
		}
		if out, _, _ := c.result(); out != fmt.Sprintf("%d bytes", size) {
			t.Errorf("%q", out)
		}
	}
	t.Run("SPDY", func(t *testing.T) {
		s := serving(t, Config{})
		check(t, newSPDY(t, mustExec(t, s, echo), echo))
	})
	t.Run("WebSocket 5", func(t *testing.T) {
		s := serving(t, Config{})
		check(t, newWebSocket(t, mustExec(t, s, echo), "v5.channel.k8s.io"))
	})
}

func TestAttach(t *testing.T) {
	s := serving(t, Config{})
	c := Command{Stdout: true, Run: func(_ context.Context, io monitor.Stream) (int, error) {
		fmt.Fprint(io.Stdout, "attached")
		return 0, nil
	}}
	url, err := s.Attach(c)
	if err != nil || !strings.HasPrefix(url, s.URL()+"/attach/") {
		t.Fatal(url, err)
	}
	out, _, text := newSPDY(t, url, c).result()
	if out != "attached" || parseStatus(t, text).Status != "Success" {
		t.Errorf("%q %q", out, text)
	}
}

// When the client goes, so does the session, even one that neither reads nor writes.
func TestClientGoes(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		begun, ended := make(chan struct{}), make(chan error, 1)
		c := open(s, Command{Stdin: true, Stdout: true, Run: func(ctx context.Context, _ monitor.Stream) (int, error) {
			close(begun)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return 0, ctx.Err()
		}})
		<-begun
		c.hangUp()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the session goes on")
		}
	})
}

// Stopping cuts what does not end by itself, in a bounded time.
func TestStopCutsSessions(t *testing.T) {
	each(t, func(t *testing.T, open func(*Server, Command) *client) {
		s := serving(t, Config{})
		begun := make(chan struct{})
		c := open(s, Command{Stdin: true, Stdout: true, Run: func(ctx context.Context, io_ monitor.Stream) (int, error) {
			close(begun)
			_, err := io.Copy(io_.Stdout, io_.Stdin)
			<-ctx.Done()
			return 0, err
		}})
		<-begun
		at := time.Now()
		s.Close()
		if took := time.Since(at); took > stopGrace+cutGrace+10*time.Second {
			t.Errorf("took %v", took)
		}
		c.result()
	})
}

// What is no size is neither kept, however long, nor left unread.
func TestNoSize(t *testing.T) {
	from, to := io.Pipe()
	sizes := decodeSizes(t.Context(), from)
	go func() {
		_, _ = io.WriteString(to, `{"Width":7,"Height":1} `)
		_, _ = io.WriteString(to, `{"Width":8,"Height":1,"x":"`+strings.Repeat("x", maxSizeBytes))
		_, _ = io.WriteString(to, `"}{"Width":9,"Height":1}`)
		_ = to.Close()
	}()
	var got []uint16
	for size := range sizes {
		got = append(got, size.Width)
	}
	if !slices.Equal(got, []uint16{7}) {
		t.Errorf("sizes %v", got)
	}
}
