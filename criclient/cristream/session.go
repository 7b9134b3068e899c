package cristream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Streams are a session's, on the caller's side. Those that are nil are not
// joined: they must be the ones that the request to the runtime asked for.
type Streams struct {
	// Stdin is read to its end, which the command learns of. (With Stdin, a peer
	// that cannot be told by WebSocket counts as one that refuses it.)
	//
	// A Read under way when the session ends is not waited for, and what it
	// then returns is lost; no other follows.
	Stdin io.Reader
	// Stdout and Stderr are written to by one goroutine each at most. One that
	// blocks holds up the command, and the session's other streams.
	Stdout, Stderr io.Writer
	// TTY is a session with a terminal, all output of which comes by Stdout.
	TTY bool
	// Resize has the terminal's size whenever that changes, and at first. It
	// need not be closed.
	Resize <-chan Size
}

// A Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// The protocols of exec and attach.
// Kubernetes: k8s.io/cri-streaming/pkg/streaming/remotecommand, k8s.io/apimachinery/pkg/util/remotecommand.
const (
	sessionV5 = "v5.channel.k8s.io" // WebSocket only: the end of standard input can be told
	sessionV4 = "v4.channel.k8s.io" // by SPDY it can, too
)

// Exec runs the command whose URL open returns, and waits for its end, for
// that of ctx, or for a failure of s. Whichever it is, nothing but a Read of
// s.Stdin goes on when Exec returns: with ctx, a runtime ends the command or
// lets it go on without its streams, as it does for any client that goes.
//
// It returns nil for exit code 0; else an ExitError; a RemoteError for a
// command that could not be run; an UpgradeError for a URL that is good for no
// session; a LostError if the connection ended before the session did;
// context.Cause(ctx); or what open or a stream of s failed with.
func (d *Dialer) Exec(ctx context.Context, open Opener, s Streams) error {
	return d.join(ctx, open, s)
}

// Attach joins the streams of a container's first process, as Exec does those
// of a command, until that process or the session ends. The process's exit
// code is not told.
func (d *Dialer) Attach(ctx context.Context, open Opener, s Streams) error {
	return d.join(ctx, open, s)
}

func (d *Dialer) join(ctx context.Context, open Opener, s Streams) error {
	switch {
	case s.Stdin == nil && s.Stdout == nil && s.Stderr == nil:
		return errors.New("a session needs one stream at least")
	case s.TTY && s.Stderr != nil:
		return errors.New("a session with a terminal has no standard error of its own")
	}
	webSocket := []string{sessionV5}
	if s.Stdin == nil {
		webSocket = append(webSocket, sessionV4)
	}
	l, err := d.connect(ctx, open, webSocket, sessionV4)
	if err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	stop := context.AfterFunc(ctx, l.raw.abort)
	defer stop()
	one := &session{Streams: s, ctx: ctx, fail: fail}
	if l.ws != nil {
		return one.overWebSocket(l)
	}
	return one.overSPDY(l)
}

// A session is one that has begun.
type session struct {
	Streams
	ctx  context.Context
	fail context.CancelCauseFunc // ends the session, as a failure on this side
}

// send passes Stdin and sizes on until the session ends; closeInput tells the
// peer of Stdin's end.
func (s *session) send(input io.Writer, closeInput func() error, sizes io.Writer) {
	if s.Stdin != nil {
		go func() {
			_, err := io.Copy(input, source{s.Stdin, s.fail})
			if err == nil {
				_ = closeInput()
			}
		}()
	}
	if s.TTY && s.Resize != nil {
		go s.sendSizes(sizes)
	}
}

func (s *session) sendSizes(to io.Writer) {
	for {
		select {
		case size, ok := <-s.Resize:
			if !ok {
				return
			}
			if text, err := json.Marshal(size); err == nil {
				_, _ = to.Write(text)
			}
		case <-s.ctx.Done():
			return
		}
	}
}

// ended returns how the session ended, of which text is what the peer said,
// and lost why there will be no more.
func (s *session) ended(text []byte, lost error) error {
	switch {
	case len(text) > 0 && !failed(s.ctx):
		return outcome(text)
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	}
	return lost
}

// A streamError is a failure of one of the caller's streams.
type streamError struct {
	name string
	err  error
}

func (e *streamError) Error() string { return fmt.Sprintf("%s: %v", e.name, e.err) }
func (e *streamError) Unwrap() error { return e.err }

func failed(ctx context.Context) bool {
	return errors.As(context.Cause(ctx), new(*streamError))
}

// A source is Stdin; its failure is the session's.
type source struct {
	io.Reader
	fail context.CancelCauseFunc
}

func (s source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.fail(&streamError{"read standard input", err})
	}
	return n, err
}

// A sink is Stdout or Stderr; its failure is the session's. Without a Writer
// it takes what the peer should not have sent.
type sink struct {
	name string
	io.Writer
	fail context.CancelCauseFunc
}

func (s sink) Write(p []byte) (int, error) {
	if s.Writer == nil {
		return len(p), nil
	}
	n, err := s.Writer.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		s.fail(&streamError{"write " + s.name, err})
	}
	return n, err
}

func (s *session) stdout() io.Writer { return sink{"standard output", s.Stdout, s.fail} }
func (s *session) stderr() io.Writer { return sink{"standard error", s.Stderr, s.fail} }
