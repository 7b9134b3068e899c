package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// A port is a pod's program: it serves one connection after another.
type port func(c *net.TCPConn)

// program serves p on loopback and returns what connects to it.
func program(t *testing.T, p port) func(context.Context, uint16) (net.Conn, error) {
	t.Helper()
	address := testkit.Serve(t, p)
	return func(ctx context.Context, asked uint16) (net.Conn, error) {
		if asked != 80 {
			return nil, fault.New(fault.Unavailable, "", "nothing listens on port %d of localhost", asked)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}

// forwards opens a session by SPDY, and by SPDY in a WebSocket.
func forwards(t *testing.T, test func(t *testing.T, open func(s *Server, f Forward) httpstream.Connection)) {
	url := func(t *testing.T, s *Server, f Forward) string {
		url, err := s.Forward(f)
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	t.Run("SPDY", func(t *testing.T) {
		test(t, func(s *Server, f Forward) httpstream.Connection {
			return testkit.DialSPDY(t, url(t, s, f), portforward.ProtocolV1Name, nil)
		})
	})
	t.Run("tunnel", func(t *testing.T) {
		test(t, func(s *Server, f Forward) httpstream.Connection {
			ws := dialWebSocket(t, url(t, s, f), tunnelPrefix+portforward.ProtocolV1Name)
			conn, err := spdy.NewClientConnection(ws)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		})
	})
}

func dialWebSocket(t *testing.T, url, protocol string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(url, "http"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{protocol}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	t.Cleanup(func() { _ = ws.Close() })
	return ws
}

// connect opens one connection of a session.
func connect(t *testing.T, conn httpstream.Connection, id, port string) (data, errs httpstream.Stream) {
	t.Helper()
	errs = testkit.OpenStream(t, conn, "error", "port", port, "requestID", id)
	if err := errs.Close(); err != nil { // clients never write to it
		t.Fatal(err)
	}
	return testkit.OpenStream(t, conn, "data", "port", port, "requestID", id), errs
}

func TestForward(t *testing.T) {
	forwards(t, func(t *testing.T, open func(*Server, Forward) httpstream.Connection) {
		// It answers once it has heard all: half-closed both ways, one after the other.
		dial := program(t, func(c *net.TCPConn) {
			heard, _ := io.ReadAll(c)
			time.Sleep(2 * forwardGrace) // longer than any grace
			_, _ = c.Write(bytes.ToUpper(heard))
		})
		s := serving(t, Config{})
		conn := open(s, Forward{Pod: "p", Dial: dial})
		var all sync.WaitGroup
		for i := range 20 {
			data, errs := connect(t, conn, fmt.Sprint(i), "80")
			all.Go(func() {
				said := strings.Repeat(fmt.Sprintf("connection %d ", i), 5000)
				if _, err := io.WriteString(data, said); err != nil {
					t.Error(err)
				}
				_ = data.Close()
				heard, err := io.ReadAll(data)
				if string(heard) != strings.ToUpper(said) || err != nil {
					t.Errorf("%d: %d bytes back, %v", i, len(heard), err)
				}
				if text, _ := io.ReadAll(errs); len(text) > 0 {
					t.Errorf("%d: %s", i, text)
				}
			})
		}
		all.Wait()
	})
}

// One port on which nothing listens says so, and leaves the others alone.
func TestForwardRefused(t *testing.T) {
	forwards(t, func(t *testing.T, open func(*Server, Forward) httpstream.Connection) {
		dial := program(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "hello") })
		s := serving(t, Config{})
		conn := open(s, Forward{Pod: "p", Dial: dial})
		_, errs := connect(t, conn, "1", "81")
		if text, _ := io.ReadAll(errs); !strings.Contains(string(text), "nothing listens on port 81 of localhost") {
			t.Errorf("%q", text)
		}
		data, _ := connect(t, conn, "2", "80")
		if text, _ := io.ReadAll(data); string(text) != "hello" {
			t.Errorf("%q", text)
		}
	})
}

// The pod closes first. The client's half stays open for a grace, no longer.
func TestForwardPodCloses(t *testing.T) {
	forwards(t, func(t *testing.T, open func(*Server, Forward) httpstream.Connection) {
		closed := make(chan time.Duration, 1)
		dial := program(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "bye")
			at := time.Now()
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c) // until davit closes
			closed <- time.Since(at)
		})
		s := serving(t, Config{})
		data, _ := connect(t, open(s, Forward{Pod: "p", Dial: dial}), "1", "80")
		if text, _ := io.ReadAll(data); string(text) != "bye" {
			t.Errorf("%q", text)
		}
		select {
		case took := <-closed:
			if took < forwardGrace {
				t.Errorf("closed after %v", took)
			}
		case <-time.After(20 * time.Second):
			t.Error("the pod's connection stays open")
		}
	})
}

// However a client leaves a connection, or all of them, the pod's side ends.
func TestForwardClientGoes(t *testing.T) {
	for name, leave := range map[string]func(conn httpstream.Connection, data httpstream.Stream){
		"resets one": func(_ httpstream.Connection, data httpstream.Stream) { _ = data.Reset() },
		"leaves":     func(conn httpstream.Connection, _ httpstream.Stream) { _ = conn.Close() },
	} {
		for kind, talk := range map[string]func(c *net.TCPConn){
			"silent": func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c); _, _ = c.Read(make([]byte, 1)); wait(c) },
			"deaf":   func(c *net.TCPConn) { wait(c) },
			"talker": func(c *net.TCPConn) {
				for {
					if _, err := c.Write(make([]byte, 1000)); err != nil {
						return
					}
				}
			},
		} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				forwards(t, func(t *testing.T, open func(*Server, Forward) httpstream.Connection) {
					ended := make(chan struct{})
					dial := program(t, func(c *net.TCPConn) {
						talk(c)
						close(ended)
					})
					s := unwatched(t, Config{})
					conn := open(s, Forward{Pod: "p", Dial: dial})
					data, _ := connect(t, conn, "1", "80")
					if kind == "deaf" {
						go func() { _, _ = data.Write(make([]byte, 8<<20)) }()
					}
					time.Sleep(20 * time.Millisecond)
					leave(conn, data)
					select {
					case <-ended:
					case <-time.After(20 * time.Second):
						t.Error("the pod's connection stays open")
					}
				})
			})
		}
	}
}

// wait returns once the other side is gone for good: what is written is refused.
func wait(c *net.TCPConn) {
	for {
		if _, err := c.Write([]byte(".")); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// By plain WebSocket the session has one connection for each port asked for.
func TestForwardPlainWebSocket(t *testing.T) {
	dial := program(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, struct{ io.Reader }{c}) // no pipe of the runtime's that stays open
	})
	s := serving(t, Config{})
	url, err := s.Forward(Forward{Pod: "p", Ports: []int32{80, 81}, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWebSocket(t, url, "v4.channel.k8s.io")
	if err := websocket.Message.Send(ws, append([]byte{0}, "echo"...)); err != nil {
		t.Fatal(err)
	}
	var read [4]bytes.Buffer
	for read[0].Len() < 6 || read[3].Len() < 20 {
		var data []byte
		if err := websocket.Message.Receive(ws, &data); err != nil {
			t.Fatal(err)
		}
		read[data[0]].Write(data[1:])
	}
	if first := binary.LittleEndian.Uint16(read[0].Next(2)); first != 80 || read[0].String() != "echo" {
		t.Errorf("%d %q", first, read[0].String())
	}
	if first := binary.LittleEndian.Uint16(read[3].Next(2)); first != 81 || !strings.Contains(read[3].String(), "nothing listens on port 81") {
		t.Errorf("%d %q", first, read[3].String())
	}
}
