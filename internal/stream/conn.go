package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// linger is how long a connection may live on once its session has ended, or
// once its client has gone, for what is still on its way.
const linger = 5 * time.Second

// lookPeriod is how often a session looks after its client.
const lookPeriod = 500 * time.Millisecond

// conns are the connections that are open. The zero value is ready.
type conns struct {
	mu   sync.Mutex
	open map[*conn]struct{}
}

func (c *conns) add(one *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*conn]struct{}{}
	}
	c.open[one] = struct{}{}
}

func (c *conns) remove(one *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, one)
}

func (c *conns) all() []*conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*conn, 0, len(c.open))
	for one := range c.open {
		all = append(all, one)
	}
	return all
}

// A listener makes a conn of each connection.
type listener struct {
	net.Listener
	conns *conns
}

func (l listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, conns: l.conns, lost: make(chan struct{})}
	l.conns.add(c)
	return c, nil
}

// A conn tells when its client has gone. net/http forgets connections that
// change their protocol, and nobody else would notice.
type conn struct {
	net.Conn
	conns *conns
	lost  chan struct{} // closed when the client has gone, or Close was called
	once  sync.Once

	closed atomic.Bool // Close was called
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	// net/http stops a read of its own by a deadline when the protocol changes.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.lose()
		_ = c.SetWriteDeadline(time.Now().Add(linger))
	}
	return n, err
}

// Close succeeds again and again: spdystream waits where it does not.
//
// What the client still sends is taken for a moment: a connection that is
// closed on it is reset, and then who stands between, a kubelet or an API
// server, drops what it has not passed on to the client yet.
func (c *conn) Close() error {
	c.lose()
	if c.closed.Swap(true) {
		return nil
	}
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok || tcp.CloseWrite() != nil {
		c.cut()
		return nil
	}
	_ = tcp.SetReadDeadline(time.Now().Add(linger))
	go func() {
		_, _ = io.Copy(io.Discard, tcp)
		c.cut()
	}()
	return nil
}

// cut closes the connection at once.
func (c *conn) cut() {
	c.lose()
	_ = c.Conn.Close()
	c.conns.remove(c)
}

// gone reports whether the client has ended the connection, or its machine
// has. It knows where Read does not: a session whose command reads nothing
// does not read from its client either, once all buffers are full.
func (c *conn) gone() bool {
	tcp, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		gone = err == nil && info.State != unix.BPF_TCP_ESTABLISHED
	})
	return gone || err != nil
}

func (c *conn) lose() { c.once.Do(func() { close(c.lost) }) }

type connKey struct{}

// withConn makes the connection known to its requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// whileConnected returns a context that ends when ctx does, or when the
// client of its connection has gone.
func whileConnected(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return ctx, cancel
	}
	go func() {
		look := time.NewTicker(lookPeriod)
		defer look.Stop()
		for {
			select {
			case <-c.lost:
				cancel()
			case <-look.C:
				if c.gone() {
					c.lose()
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}
