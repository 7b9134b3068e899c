package cristream

import (
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/moby/spdystream"
)

// A mux is a connection of SPDY.
type mux struct {
	conn    *spdystream.Connection
	raw     net.Conn
	served  chan struct{} // closed when nothing more will come
	streams []*spdystream.Stream

	unanswered *spdystream.Stream // if the last of them is
}

// newMux owns raw from now on.
func newMux(raw net.Conn) (*mux, error) {
	conn, err := spdystream.NewConnection(raw, false)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	m := &mux{conn: conn, raw: raw, served: make(chan struct{})}
	go func() {
		defer close(m.served)
		conn.Serve(func(s *spdystream.Stream) { _ = s.Reset() }) // servers open none
	}()
	return m, nil
}

// replyWait is how often one who waits for an answer to a new stream looks
// whether the connection still is there, of which the library does not tell him.
const replyWait = 100 * time.Millisecond

// open opens a stream of a kind, with more headers: name, value and so on. It
// must not be called by two at a time, nor after a failure: then the peer
// refuses, is gone or does not answer.
func (m *mux) open(kind string, more ...string) (*spdystream.Stream, bool) {
	header := http.Header{}
	header.Set("Streamtype", kind)
	for i := 0; i < len(more); i += 2 {
		header.Set(more[i], more[i+1])
	}
	s, err := m.conn.CreateStream(header, nil, false)
	if s == nil {
		return nil, false
	}
	m.streams = append(m.streams, s)
	m.unanswered = s
	for begun := time.Now(); err == nil && time.Since(begun) < handshakeTimeout; {
		switch err := s.WaitTimeout(replyWait); err {
		case spdystream.ErrTimeout:
		case nil:
			m.unanswered = nil
			return s, true
		default:
			return nil, false
		}
		select {
		case <-m.served:
			return nil, false
		default:
		}
	}
	return nil, false
}

// close ends the connection and waits until nothing of it is left.
func (m *mux) close() {
	_ = m.raw.Close()
	for _, s := range m.streams {
		_ = s.Reset() // frees the library's readers, who wait for ours
	}
	for m.unanswered != nil {
		select {
		case <-m.served:
			return
		default:
			// A late answer is handed to nobody but who waits for it.
			_ = m.unanswered.WaitTimeout(time.Millisecond)
		}
	}
	<-m.served
}

func (s *session) overSPDY(l *link) error {
	m, err := newMux(l.raw)
	if err != nil {
		return err
	}
	said, err := s.exchange(m)
	m.close()
	if err == nil {
		err = l.raw.lost()
	}
	return s.ended(said, err)
}

// exchange passes on what comes until no more does, and returns the status.
func (s *session) exchange(m *mux) (said []byte, err error) {
	streams := map[string]*spdystream.Stream{}
	for kind, wanted := range map[string]bool{
		"error": true, "stdin": s.Stdin != nil, "stdout": s.Stdout != nil, "stderr": s.Stderr != nil, "resize": s.TTY,
	} {
		if !wanted {
			continue
		}
		one, ok := m.open(kind)
		if !ok {
			return nil, nil
		}
		streams[kind] = one
	}
	if in := streams["stdin"]; in != nil {
		s.send(chunks{in}, in.Close, streams["resize"])
		// The peer says nothing here, but a library's reader would wait with what it does say.
		go func() { _, _ = io.Copy(io.Discard, in) }()
	} else {
		s.send(nil, nil, streams["resize"])
	}
	var receiving sync.WaitGroup
	for kind, to := range map[string]io.Writer{"stdout": s.stdout(), "stderr": s.stderr()} {
		if from := streams[kind]; from != nil {
			receiving.Go(func() { _, _ = io.Copy(to, from) })
		}
	}
	said, err = io.ReadAll(io.LimitReader(streams["error"], maxMessageBytes+1))
	if len(said) > maxMessageBytes {
		s.fail(&LostError{errTooLong})
	}
	receiving.Wait()
	return said, err
}

// chunks writes what fits into frames of SPDY, and leaves room for others'.
type chunks struct{ io.Writer }

func (c chunks) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var some int
		some, err = c.Writer.Write(p[:min(len(p), bufferBytes)])
		n, p = n+some, p[some:]
	}
	return n, err
}
