package stream

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/davit-runtime/davit/internal/fault"
)

// forwardGrace is how long the client's side of a forwarded connection may
// stay open after the pod's.
var forwardGrace = time.Second

// A Forward is a session with ports of a pod.
type Forward struct {
	Pod   string  // its ID, for messages
	Ports []int32 // for plain WebSocket; by SPDY, each connection names its own
	// Dial connects to a port of the pod.
	Dial func(ctx context.Context, port uint16) (net.Conn, error)
}

// Forward returns the URL of a session with any number of connections.
func (s *Server) Forward(f Forward) (url string, err error) { return s.offer(&forward{Forward: f}) }

type forward struct {
	Forward
	ctx         context.Context // of the client's connection, which the library does not hand on
	server      *Server
	connections atomic.Int32
}

func (f *forward) kind() string { return "portforward" }

func (f *forward) serve(w http.ResponseWriter, r *http.Request, s *Server) {
	f.ctx, f.server = r.Context(), s
	handle := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, f, f.Pod, "", &portforward.V4Options{Ports: f.Ports},
			s.config.IdleTimeout, createTimeout, portforward.SupportedProtocols)
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		serveTunnel(w, r, handle)
		return
	}
	handle(w, r)
}

func (f *forward) log(log *slog.Logger) {
	log.Info("session", "kind", f.kind(), "pod_id", f.Pod, "connections", f.connections.Load())
}

// PortForward implements portforward.PortForwarder: it is one connection.
func (f *forward) PortForward(_ context.Context, _, _ string, port int32, client io.ReadWriteCloser) error {
	if !f.server.enter() {
		return fault.New(fault.Unavailable, "", "davitd is stopping")
	}
	defer f.server.sessions.Done()
	f.connections.Add(1)
	if port < 1 || port > 65535 {
		return fault.New(fault.Invalid, "", "%d is not a port", port)
	}
	target, err := f.Dial(f.ctx, uint16(port))
	if err != nil {
		// By SPDY, a write waits until the client has been told that its stream
		// is open. A stream that fails before that takes the reason along.
		_, _ = client.Write(nil)
		return err
	}
	// How a connection ended is the pod's affair; an error would make clients
	// give up all the others.
	join(f.ctx, client, target)
	return nil
}

// join copies both ways until both sides have said all, and closes target.
// When ctx ends, what is under way has a moment to arrive.
func join(ctx context.Context, client io.ReadWriteCloser, target net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = target.SetDeadline(time.Now().Add(forwardGrace)) })
	defer stop()
	sent, received := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sent)
		if _, err := io.Copy(target, client); err == nil {
			closeWrite(target)
		}
	}()
	go func() {
		defer close(received)
		_, _ = io.Copy(client, target)
		_ = client.Close()
	}()
	watch := time.NewTicker(forwardGrace)
	defer watch.Stop()
	for ended := false; !ended; {
		select {
		case <-received:
			ended = true
		case <-watch.C:
			// By SPDY, one connection can be given up among others. Writing
			// to it succeeds, and reading looks as if it had said all.
			if c, ok := client.(interface{ IsFinished() bool }); ok && c.IsFinished() {
				_ = target.Close()
			}
		}
	}
	// The pod has said all; the client may have something under way.
	select {
	case <-sent:
	case <-time.After(forwardGrace):
	}
	_ = target.Close()
	if c, ok := client.(interface{ Reset() error }); ok {
		_ = c.Reset() // else its reader would wait for as long as the session lasts
	}
	<-sent
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
