package cristream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
)

// The protocols of port-forward. (A third, v4.channel.k8s.io by WebSocket,
// cannot tell the end of a stream.)
// Kubernetes: k8s.io/apimachinery/pkg/util/portforward.
const (
	forwardSPDY   = "portforward.k8s.io"
	forwardTunnel = "SPDY/3.1+portforward.k8s.io" // a connection of SPDY in a WebSocket
)

// forwardGrace is how long one side of a forwarded connection may take once
// the pod has said all, and the peer's word of a failure after the data's end.
const forwardGrace = time.Second

// DialPort connects to a port of the pod whose URL open returns, by a session
// of its own: one that is not read holds up no other. ctx bounds the
// connecting only. Errors are those of Exec.
//
// A peer connects to the port while DialPort returns, so that it is the first
// Read that tells of a port on which nobody listens, by a RemoteError. Read
// returns io.EOF when the pod has said all, and a LostError if the session
// ended before that. The connection has CloseWrite, as those of TCP have, and
// no deadlines: to set one fails with os.ErrNoDeadline. Close discards what
// was not read, and waits for nothing but this side's own work.
func (d *Dialer) DialPort(ctx context.Context, open Opener, port uint16) (net.Conn, error) {
	l, err := d.connect(ctx, open, []string{forwardTunnel}, forwardSPDY)
	if err != nil {
		return nil, err
	}
	raw := l.raw
	if l.ws != nil {
		raw = watch(&tunnel{Conn: l.raw, ws: l.ws})
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	m, err := newMux(raw)
	if err != nil {
		return nil, err
	}
	number := strconv.Itoa(int(port))
	messages, ok := m.open("error", "port", number, "requestID", "0")
	if ok {
		_ = messages.Close() // nothing is ever said to the peer by it
		var data *spdystream.Stream
		if data, ok = m.open("data", "port", number, "requestID", "0"); ok && stop() {
			p := &portConn{mux: m, raw: raw, data: data, told: make(chan struct{}), closed: make(chan struct{})}
			go p.listen(messages)
			return p, nil
		}
	}
	m.close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !raw.ended() {
		return nil, &RemoteError{Message: "the server refuses to forward port " + number}
	}
	return nil, raw.lost()
}

// A portConn is a connection to a port of a pod.
type portConn struct {
	mux  *mux
	raw  *watched
	data *spdystream.Stream

	told    chan struct{} // closed when the peer will say no more about the connection
	message string        // what it said; written before told is closed

	reading sync.Mutex
	some    bool // something was read; guarded by reading

	closing sync.Once
	closed  chan struct{} // by Close
}

// listen takes what the peer says about the connection.
func (p *portConn) listen(messages io.Reader) {
	defer close(p.told)
	var text bytes.Buffer
	_, err := io.Copy(limited{&text}, messages)
	p.message = plainMessage(text.Bytes())
	if errors.Is(err, errTooLong) {
		_ = p.raw.Close()
	}
}

func (p *portConn) Read(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	n, err := p.data.Read(b)
	if n > 0 || err == nil {
		p.some = true
		return n, err
	}
	// Streams overtake one another: word of a connection that could not be made
	// may be on its way yet.
	grace := forwardGrace
	if p.some {
		grace = 0
	}
	select {
	case <-p.told:
	case <-time.After(grace):
	}
	select {
	case <-p.told:
		if p.message != "" {
			return 0, &RemoteError{Message: p.message}
		}
	default:
	}
	select {
	case <-p.closed:
		return 0, net.ErrClosed
	default:
	}
	if p.raw.ended() {
		return 0, p.raw.lost()
	}
	return 0, err
}

func (p *portConn) Write(b []byte) (int, error) {
	if p.data.IsFinished() {
		return 0, io.ErrClosedPipe // by CloseWrite, or by the peer
	}
	n, err := chunks{p.data}.Write(b)
	if err != nil {
		return n, &LostError{err}
	}
	return n, nil
}

// CloseWrite tells the pod that it has heard all.
func (p *portConn) CloseWrite() error { return p.data.Close() }

func (p *portConn) Close() error {
	p.closing.Do(func() {
		close(p.closed)
		p.mux.close()
	})
	return nil
}

func (p *portConn) LocalAddr() net.Addr              { return p.raw.LocalAddr() }
func (p *portConn) RemoteAddr() net.Addr             { return p.raw.RemoteAddr() }
func (p *portConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (p *portConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (p *portConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// A tunnel is the bytes in a WebSocket's messages.
type tunnel struct {
	net.Conn // beneath
	ws       *websocket.Conn
	message  io.Reader // the one that is being read; nil between two
	writing  sync.Mutex
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			kind, message, err := t.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errText
			}
			t.message = message
		}
		n, err := t.message.Read(p)
		if err == io.EOF {
			t.message, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Forward connects each connection that l accepts to a port of a pod, until
// ctx ends, which is no error, or l fails. It closes l, and none of the
// connections goes on when it returns. failed, if not nil, is told of each
// that could not be made or was lost, by several goroutines at a time; the
// client's end is reset then, so that it takes that for no answer.
func (d *Dialer) Forward(ctx context.Context, open Opener, l net.Listener, port uint16, failed func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	for {
		local, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			_ = l.Close()
			return err
		}
		connections.Go(func() {
			if err := d.forward(ctx, open, local, port); err != nil && ctx.Err() == nil && failed != nil {
				failed(err)
			}
		})
	}
}

// forward is one connection, from begin to end.
func (d *Dialer) forward(ctx context.Context, open Opener, local net.Conn, port uint16) error {
	stop := context.AfterFunc(ctx, func() { _ = local.Close() })
	defer stop()
	pod, err := d.DialPort(ctx, open, port)
	if err == nil {
		err = exchange(ctx, local, pod.(*portConn))
	}
	if tcp, ok := local.(*net.TCPConn); ok && err != nil {
		_ = tcp.SetLinger(0)
	}
	_ = local.Close()
	return err
}

// exchange copies both ways until both sides have said all, and closes pod.
func exchange(ctx context.Context, local net.Conn, pod *portConn) error {
	stop := context.AfterFunc(ctx, func() { _ = pod.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		switch _, err := io.Copy(pod, local); {
		case err == nil:
			_ = pod.CloseWrite()
		case errors.Is(err, io.ErrClosedPipe) || errors.As(err, new(*LostError)):
			// The reader learns why.
		default:
			_ = pod.Close() // the client has gone
		}
	}()
	_, err := io.Copy(local, pod)
	if half, ok := local.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		select { // the pod has said all; the client may have something under way
		case <-sent:
		case <-time.After(forwardGrace):
		}
	}
	_ = pod.Close()
	_ = local.SetReadDeadline(time.Now()) // else the client would be waited for
	<-sent
	var remote *RemoteError
	var lost *LostError
	switch { // the copying adds words that say nothing
	case errors.As(err, &remote):
		return remote
	case errors.As(err, &lost):
		return lost
	}
	return nil // the client has gone
}
