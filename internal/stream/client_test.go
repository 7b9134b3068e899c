package stream

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"

	"github.com/davit-runtime/davit/internal/testkit"
)

// serving returns a server that serves until the test ends, which then
// requires that nothing of it is left.
func serving(t *testing.T, c Config) *Server {
	t.Helper()
	testkit.Watch(t)
	return unwatched(t, c)
}

// unwatched returns a server like serving's, for tests that run beside others.
func unwatched(t *testing.T, c Config) *Server {
	t.Helper()
	c.Log = slog.New(slog.NewTextHandler(testkit.Output(t), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// A client is one side of an exec or attach session, whatever the protocol.
type client struct {
	t      *testing.T
	stdin  io.WriteCloser
	resize io.Writer
	hangUp func()
	// result waits for the end; status is what came on the error stream.
	result func() (stdout, stderr, status string)
}

// newSPDY opens a session as a client of SPDY.
func newSPDY(t *testing.T, url string, c Command) *client {
	t.Helper()
	conn := testkit.DialSPDY(t, url, "v4.channel.k8s.io", nil)
	one := &client{t: t, hangUp: func() { _ = conn.Close() }}
	var reading sync.WaitGroup
	read := func(kind string, to *string) {
		s := testkit.OpenStream(t, conn, kind)
		reading.Go(func() {
			data, _ := io.ReadAll(s)
			*to = string(data)
		})
	}
	var out, errOut, status string
	read("error", &status)
	if c.Stdin {
		one.stdin = testkit.OpenStream(t, conn, "stdin")
	}
	if c.Stdout {
		read("stdout", &out)
	}
	if c.Stderr {
		read("stderr", &errOut)
	}
	if c.TTY {
		one.resize = testkit.OpenStream(t, conn, "resize")
	}
	one.result = func() (string, string, string) {
		reading.Wait()
		return out, errOut, status
	}
	return one
}

// newWebSocket opens a session as a client of WebSocket.
func newWebSocket(t *testing.T, url string, protocol string) *client {
	t.Helper()
	ws := dialWebSocket(t, url, protocol)
	one := &client{t: t, stdin: channel{ws, 0}, resize: channel{ws, 4}, hangUp: func() { _ = ws.Close() }}
	var read [5]strings.Builder
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var data []byte
			if err := websocket.Message.Receive(ws, &data); err != nil {
				return
			}
			if len(data) > 0 && data[0] < 5 {
				read[data[0]].Write(data[1:])
			}
		}
	}()
	one.result = func() (string, string, string) {
		<-ended
		return read[1].String(), read[2].String(), read[3].String()
	}
	return one
}

// A channel writes to one channel of a WebSocket; closing it says that with protocol 5.
type channel struct {
	ws     *websocket.Conn
	number byte
}

func (c channel) Write(p []byte) (int, error) {
	return len(p), websocket.Message.Send(c.ws, append([]byte{c.number}, p...))
}

func (c channel) Close() error { return websocket.Message.Send(c.ws, []byte{255, c.number}) }

// status is what the error stream carries since protocol 4.
type status struct {
	Status, Message, Reason string
	Details                 struct {
		Causes []struct{ Reason, Message string }
	}
}

func parseStatus(t *testing.T, text string) (s status) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	return s
}
