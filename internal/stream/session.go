package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A session is what a URL is good for.
type session interface {
	kind() string // the first part of its path
	// serve runs the session; r's context ends when the client has gone.
	serve(w http.ResponseWriter, r *http.Request, s *Server)
	log(log *slog.Logger) // says how it went
}

// A Command is a session with a container: which streams it has, and what
// they are joined to. With TTY there is no Stderr.
type Command struct {
	Container                  string // its ID, for the log
	Stdin, Stdout, Stderr, TTY bool
	// Run is called once a client has come, and ends the session when it
	// returns. Its context ends when the client has gone. The code counts with Exec only.
	Run func(ctx context.Context, s monitor.Stream) (code int, err error)
}

// Exec returns the URL that runs c once. A code other than 0 reaches the client as such.
//
// It returns Exhausted while too many URLs wait to be opened; so do the next two.
func (s *Server) Exec(c Command) (url string, err error) {
	return s.offer(&command{Command: c, name: "exec"})
}

// Attach returns the URL that runs c once.
func (s *Server) Attach(c Command) (url string, err error) {
	return s.offer(&command{Command: c, name: "attach"})
}

type command struct {
	Command
	name string
	code int
	err  error
}

func (c *command) kind() string { return c.name }

func (c *command) serve(w http.ResponseWriter, r *http.Request, s *Server) {
	options := &remotecommand.Options{Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, TTY: c.TTY}
	c.err = errors.New("the client opened no session")
	switch {
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		c.serveClosable(w, r, s)
	case c.name == "exec":
		remotecommand.ServeExec(w, r, c, "", "", c.Container, nil, options, s.config.IdleTimeout, createTimeout, remotecommand.SupportedStreamingProtocols)
	default:
		remotecommand.ServeAttach(w, r, c, "", "", c.Container, options, s.config.IdleTimeout, createTimeout, remotecommand.SupportedStreamingProtocols)
	}
}

func (c *command) log(log *slog.Logger) {
	attrs := []any{"kind", c.name, "container_id", c.Container, "tty", c.TTY}
	if c.name == "exec" && c.err == nil {
		attrs = append(attrs, "exit_code", c.code)
	}
	if c.err != nil {
		attrs = append(attrs, "error", c.err)
	}
	log.Info("session", attrs...)
}

// ExecInContainer implements remotecommand.Executor.
func (c *command) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	c.run(ctx, in, out, errOut, resize)
	if c.err == nil && c.code != 0 {
		return exitError(c.code)
	}
	return c.err
}

// AttachContainer implements remotecommand.Attacher.
func (c *command) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize,
) error {
	c.run(ctx, in, out, errOut, resize)
	return c.err
}

// run joins what the client asked for. By WebSocket there are streams that
// nobody asked for, too.
func (c *command) run(ctx context.Context, in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) {
	joined := monitor.Stream{TTY: c.TTY}
	if c.Stdin {
		joined.Stdin = in
	}
	if c.Stdout {
		joined.Stdout = out
	}
	if c.Stderr {
		joined.Stderr = errOut
	}
	if resize != nil {
		joined.Resize = sizes(ctx, resize)
	}
	c.code, c.err = c.Run(ctx, joined)
}

// sizes passes on the latest size of a terminal. It never keeps the client
// waiting, whose other streams wait with this one.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan monitor.Size {
	to := make(chan monitor.Size, 1)
	go func() {
		defer close(to)
		for {
			select {
			case size, ok := <-from:
				if !ok {
					return
				}
				if size.Width < 1 || size.Height < 1 {
					continue
				}
				select {
				case <-to: // nobody has taken the one before
				default:
				}
				to <- monitor.Size{Width: size.Width, Height: size.Height}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// An exitError is how the library learns of a command's exit code.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("the command ended with exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }
