package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/criclient/cristream"
	"github.com/davit-runtime/davit/internal/terminal"
)

// A session says how davit is joined to a container.
type session struct {
	container, protocol, authority string
	stdin, tty                     bool
	leave                          string // keys that end it, for attach
}

// dialFlags are of all commands with sessions.
func (s *session) dialFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.protocol, "protocol", "auto", "how the runtime's streams are reached: websocket, spdy, or auto for the first that works")
	cmd.Flags().StringVar(&s.authority, "stream-ca", "", "PEM file with whom to trust if the streams come by TLS; without it, no certificate is checked, as by a kubelet")
}

func (s *session) flags(cmd *cobra.Command) {
	s.dialFlags(cmd)
	cmd.Flags().StringVarP(&s.container, "container", "c", "", "name of the container, if the pod has several")
	cmd.Flags().BoolVarP(&s.stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&s.tty, "tty", "t", false, "by a terminal: with -i, each key goes to the container")
}

// dialer returns what opens sessions.
func (s *session) dialer() (*cristream.Dialer, error) {
	protocol, err := cristream.ParseProtocol(s.protocol)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{InsecureSkipVerify: s.authority == ""}
	if s.authority != "" {
		text, err := os.ReadFile(s.authority)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s has no certificate in PEM", s.authority)
		}
	}
	return &cristream.Dialer{Protocol: protocol, TLS: config}, nil
}

func (a app) execCommand() *cobra.Command {
	var s session
	cmd := &cobra.Command{
		Use:   "exec POD[/CONTAINER] [-it] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a container and exit with its code",
		Long: `Run a command in a container and exit with its code. Its output comes as it is written.

--timeout, if given, ends it. Without -i and -t it is the runtime that does so, and then at most 16 MiB of output come, at the end.
If davit ends first, what becomes of the command is up to the runtime: davitd ends it.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.findContainer(cmd.Context(), args[0], s.container)
			if err != nil {
				return err
			}
			var limit time.Duration
			if cmd.Flags().Changed("timeout") {
				limit = a.Timeout
			}
			if limit > 0 && !s.stdin && !s.tty {
				err = a.execSync(cmd.Context(), c, args[1:], limit)
			} else {
				err = a.exec(cmd.Context(), &s, c, args[1:], limit)
			}
			var exit *cristream.ExitError
			if errors.As(err, &exit) {
				return console.ExitCode(exit.Code)
			}
			if err != nil {
				return fmt.Errorf("exec in container %s: %w", c.Metadata.GetName(), err)
			}
			return nil
		},
	}
	s.flags(cmd)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; if it is the command's, put -- before the command", err)
	})
	return cmd
}

// execSync has the runtime end the command when limit is over.
func (a app) execSync(ctx context.Context, c *runtimeapi.Container, command []string, limit time.Duration) error {
	r, err := a.Client.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: c.Id, Cmd: command, Timeout: int64((limit + time.Second - 1) / time.Second),
	})
	if status.Code(err) == codes.DeadlineExceeded {
		return overLimit(limit)
	}
	if err != nil {
		return err
	}
	_, outErr := a.Out.Write(r.Stdout)
	_, errErr := a.Err.Write(r.Stderr)
	if err := errors.Join(outErr, errErr); err != nil {
		return err
	}
	if r.ExitCode != 0 {
		return &cristream.ExitError{Code: int(r.ExitCode)}
	}
	return nil
}

func overLimit(limit time.Duration) error { return fmt.Errorf("the time limit of %v is over", limit) }

func (a app) exec(ctx context.Context, s *session, c *runtimeapi.Container, command []string, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, overLimit(limit))
		defer cancel()
	}
	return a.join(ctx, s, func(ctx context.Context, d *cristream.Dialer, streams cristream.Streams) error {
		return d.Exec(ctx, func(ctx context.Context) (string, error) {
			ctx, cancel := a.Call(ctx, 0)
			defer cancel()
			r, err := a.Client.Exec(ctx, &runtimeapi.ExecRequest{
				ContainerId: c.Id, Cmd: command, Tty: s.tty, Stdin: s.stdin || s.tty, Stdout: true, Stderr: !s.tty,
			})
			return r.GetUrl(), err
		}, streams)
	})
}

func (a app) attachCommand() *cobra.Command {
	var s session
	cmd := &cobra.Command{
		Use:   "attach POD[/CONTAINER] [-it]",
		Short: "Join the streams of a running container",
		Long: `Show what a container writes from now on, and with -i pass standard input on to it, until it ends.
-t is for containers that have a terminal; with -it, the keys ctrl-p ctrl-q leave, and the container goes on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.findContainer(cmd.Context(), args[0], s.container)
			if err != nil {
				return err
			}
			err = a.join(cmd.Context(), &s, func(ctx context.Context, d *cristream.Dialer, streams cristream.Streams) error {
				return d.Attach(ctx, func(ctx context.Context) (string, error) {
					ctx, cancel := a.Call(ctx, 0)
					defer cancel()
					r, err := a.Client.Attach(ctx, &runtimeapi.AttachRequest{
						ContainerId: c.Id, Tty: s.tty, Stdin: s.stdin || s.tty, Stdout: true, Stderr: !s.tty,
					})
					return r.GetUrl(), err
				}, streams)
			})
			if errors.Is(err, terminal.ErrLeft) {
				fmt.Fprintf(a.Err, "\nleft container %s, which goes on\n", c.Metadata.GetName())
				return nil
			}
			if err != nil {
				return fmt.Errorf("attach to container %s: %w", c.Metadata.GetName(), err)
			}
			return nil
		},
	}
	s.flags(cmd)
	cmd.Flags().StringVar(&s.leave, "detach-keys", "ctrl-p,ctrl-q", "keys that leave the container; empty for none")
	return cmd
}

// join runs a session on davit's own streams. With -i and -t a terminal is
// raw meanwhile, and is put back before join returns, whatever ends it.
func (a app) join(ctx context.Context, s *session, run func(context.Context, *cristream.Dialer, cristream.Streams) error) error {
	d, err := s.dialer()
	if err != nil {
		return err
	}
	keys, err := terminal.ParseKeys(s.leave)
	if err != nil {
		return err
	}
	streams := cristream.Streams{Stdout: a.Out, TTY: s.tty}
	if !s.tty {
		streams.Stderr = a.Err
	}
	if s.stdin {
		streams.Stdin = a.In
	} else if s.tty {
		quiet, end := context.WithCancel(ctx)
		defer end()
		streams.Stdin = mute{quiet}
	}
	if screen := terminal.Of(a.In); screen != nil && s.tty && s.stdin {
		// These would end davit at once, and leave the terminal raw.
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
		defer stop()
		restore, err := terminal.Raw(screen)
		if err != nil {
			return err
		}
		defer restore()
		defer context.AfterFunc(ctx, restore)() // even if what is written to the terminal blocks
		streams.Stdin = &terminal.Leaver{From: a.In, Keys: keys}
		streams.Resize = terminal.Sizes(ctx, screen)
	}
	err = run(ctx, d, streams)
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) && ctx.Err() == context.Canceled {
		return context.Canceled // by a signal, of which the cause tells
	}
	return err
}

// A mute says nothing until its context ends. containerd loses what comes by
// a terminal without standard input.
type mute struct{ ctx context.Context }

func (m mute) Read([]byte) (int, error) {
	<-m.ctx.Done()
	return 0, m.ctx.Err()
}
