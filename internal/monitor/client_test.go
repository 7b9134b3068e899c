package monitor

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// dying is a davit-monitor that ends whenever it has been asked for something.
// It returns how often it was asked.
func dying(t *testing.T) (c *Client, asked chan string) {
	t.Helper()
	state := t.TempDir()
	l, err := net.Listen("unix", SocketPath(state))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	asked = make(chan string, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var r Request
			if ReadFrame(conn, &r) == nil {
				asked <- r.Method
			}
			_ = conn.Close()
		}
	}()
	return Connect(state), asked
}

// What may have been begun is not begun again: a command would run twice. What
// can be repeated is, until the caller has no more time.
func TestNotAskedAgain(t *testing.T) {
	for name, test := range map[string]struct {
		call  func(context.Context, *Client) error
		again bool
	}{
		"exec": {call: func(ctx context.Context, c *Client) error {
			_, err := c.Exec(ctx, Exec{ContainerID: "a"})
			return err
		}},
		"stream": {call: func(ctx context.Context, c *Client) error {
			_, err := c.ExecStream(ctx, Exec{ContainerID: "a"}, Stream{Stdout: io.Discard})
			return err
		}},
		"stream, terminal": {call: func(ctx context.Context, c *Client) error {
			_, err := c.ExecStream(ctx, Exec{ContainerID: "a"}, Stream{TTY: true})
			return err
		}},
		"attach": {again: true, call: func(ctx context.Context, c *Client) error {
			return c.Attach(ctx, "a", Stream{Stdout: io.Discard})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c, asked := dying(t)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err := test.call(ctx, c)
			want := fault.Unavailable
			if test.again {
				want = fault.Deadline
			}
			if fault.KindOf(err) != want {
				t.Errorf("%v, want kind %s", err, want)
			}
			if n := len(asked); (n > 1) != test.again || n == 0 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}
