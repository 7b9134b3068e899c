package cristream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-runtime/davit/criclient/cristream"
	"github.com/davit-runtime/davit/internal/testkit"
)

// pod serves p on port 80 until the test ends.
func pod(t *testing.T, p func(c *net.TCPConn)) func(context.Context, uint16) (net.Conn, error) {
	t.Helper()
	address := testkit.Serve(t, p)
	return func(ctx context.Context, asked uint16) (net.Conn, error) {
		if asked != 80 {
			return nil, fmt.Errorf("nothing listens on port %d", asked)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}

func forwardOpener(s *davit, dial func(context.Context, uint16) (net.Conn, error)) cristream.Opener {
	return func(context.Context) (string, error) { return s.forward(dial) }
}

// shout answers once it has heard all.
func shout(c *net.TCPConn) {
	heard, _ := io.ReadAll(c)
	_, _ = c.Write(bytes.ToUpper(heard))
}

func TestDialPort(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		open := forwardOpener(s, pod(t, shout))
		c, err := d.DialPort(t.Context(), open, 80)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Repeat("hear me ", 200_000)
		if n, err := io.WriteString(c, said); n != len(said) || err != nil {
			t.Fatal(n, err)
		}
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		heard, err := io.ReadAll(c)
		if err != nil || string(heard) != strings.ToUpper(said) {
			t.Errorf("%d bytes, %v", len(heard), err)
		}
		if _, err := c.Write([]byte("more")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write after the end: %v", err)
		}
		if err := c.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) || c.LocalAddr() == nil || c.RemoteAddr() == nil {
			t.Errorf("%v %v %v", err, c.LocalAddr(), c.RemoteAddr())
		}
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	})
}

// A pod that ends a connection without a word has said all.
func TestDialPortSilent(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		c, err := d.DialPort(t.Context(), forwardOpener(s, pod(t, func(*net.TCPConn) {})), 80)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func TestDialPortRefused(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		open := forwardOpener(s, pod(t, shout))
		c, err := d.DialPort(t.Context(), open, 81)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		if remote := as[*cristream.RemoteError](t, err); !strings.Contains(remote.Message, "nothing listens on port 81") {
			t.Errorf("%+v", remote)
		}
		if _, err := d.DialPort(t.Context(), open, 0); err == nil {
			t.Error("port 0")
		}
		as[*cristream.UpgradeError](t, second(d.DialPort(t.Context(), cristream.At(s.URL()+"/portforward/none"), 80)))
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errEnough)
		if _, err := d.DialPort(ctx, open, 80); err != errEnough {
			t.Errorf("%v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

// A runtime that goes is no end of what the pod says.
func TestDialPortLost(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		conns := make(chan net.Conn, 1)
		d.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			conns <- c
			return c, err
		}
		c, err := d.DialPort(t.Context(), forwardOpener(s, pod(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("some"))
			_, _ = c.Read(make([]byte, 1))
		})), 80)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		some := make([]byte, 4)
		if _, err := io.ReadFull(c, some); err != nil || string(some) != "some" {
			t.Fatalf("%q, %v", some, err)
		}
		_ = (<-conns).(*net.TCPConn).CloseRead()
		_, err = c.Read(some)
		as[*cristream.LostError](t, err)
	})
}

// forwarding forwards port to a listener until the test ends; failures come by the channel.
func forwarding(t *testing.T, d *cristream.Dialer, open cristream.Opener, port uint16) (address string, failures <-chan error, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	failed, ended := make(chan error, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- d.Forward(ctx, open, l, port, func(err error) { failed <- err }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := soon(t, ended); err != nil {
			t.Errorf("forward: %v", err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().String(), failed, stop
}

func TestForward(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		address, failed, stop := forwarding(t, d, forwardOpener(s, pod(t, shout)), 80)
		var clients sync.WaitGroup
		for i := range 10 {
			clients.Go(func() {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				said := strings.Repeat(fmt.Sprintf("connection %d ", i), 20_000)
				if _, err := io.WriteString(c, said); err != nil {
					t.Error(err)
				}
				_ = c.(*net.TCPConn).CloseWrite()
				if heard, err := io.ReadAll(c); err != nil || string(heard) != strings.ToUpper(said) {
					t.Errorf("%d bytes, %v", len(heard), err)
				}
			})
		}
		clients.Wait()
		stop()
		if _, err := net.Dial("tcp", address); err == nil {
			t.Error("it listens after its end")
		}
		if len(failed) > 0 {
			t.Error(<-failed)
		}
	})
}

// A client learns of a failure by a reset, and whoever forwards by an error.
func TestForwardFails(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		open := forwardOpener(s, pod(t, shout))
		address, failed, _ := forwarding(t, d, open, 81)
		if c, err := net.Dial("tcp", address); err == nil { // it may be reset by then
			defer c.Close()
			if heard, err := io.ReadAll(c); err == nil {
				t.Errorf("a client heard %q and no error", heard)
			}
		}
		as[*cristream.RemoteError](t, soon(t, failed))
		address, failed, _ = forwarding(t, d, func(context.Context) (string, error) { return "", errEnough }, 80)
		if c, err := net.Dial("tcp", address); err == nil {
			defer c.Close()
		}
		if err := soon(t, failed); err != errEnough {
			t.Error(err)
		}
	})
}

// Whatever a connection is at, it ends with the forwarding; and one whose
// client goes, or whose pod has said all, ends by itself and is no failure.
func TestForwardEnds(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		heard := make(chan error, 10)
		open := forwardOpener(s, pod(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("hello"))
			_, err := io.ReadAll(c)
			heard <- err
		}))
		address, failed, stop := forwarding(t, d, open, 80)
		connect := func() *net.TCPConn {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			return c.(*net.TCPConn)
		}
		gone, stays := connect(), connect()
		defer stays.Close()
		_ = gone.SetLinger(0)
		_ = gone.Close()
		soon(t, heard) // the pod learns of it
		stop()
		soon(t, heard)
		if _, err := stays.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlives the forwarding")
		}
		if len(failed) > 0 {
			t.Error(<-failed)
		}
	})
}
