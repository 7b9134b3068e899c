package cristream_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/criclient/cristream"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/stream"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		c := command{stdin: true, stdout: true, stderr: true, run: func(_ context.Context, io_ monitor.Stream) (int, error) {
			line := make([]byte, 5)
			if _, err := io.ReadFull(io_.Stdin, line); err != nil {
				return 0, err
			}
			fmt.Fprintf(io_.Stdout, "out %s", line)
			fmt.Fprintf(io_.Stderr, "err %s", line)
			return 42, nil
		}}
		var out, errOut strings.Builder
		asked := 0
		err := d.Exec(t.Context(), opener(s, c, &asked), cristream.Streams{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut})
		if exit := as[*cristream.ExitError](t, err); exit.Code != 42 || out.String() != "out hello" || errOut.String() != "err hello" || asked != 1 {
			t.Errorf("%v %q %q, %d URLs", err, &out, &errOut, asked)
		}
	})
}

func TestOutcomes(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		for _, code := range []int{0, 1, 137, 255} {
			c := command{stdout: true, run: func(context.Context, monitor.Stream) (int, error) { return code, nil }}
			err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdout: io.Discard})
			if code == 0 && err != nil {
				t.Errorf("0: %v", err)
			} else if code != 0 && as[*cristream.ExitError](t, err).Code != code {
				t.Errorf("%d: %v", code, err)
			}
		}
		c := command{stdout: true, run: func(context.Context, monitor.Stream) (int, error) {
			return 0, errors.New(`run "sl": executable file not found in $PATH`)
		}}
		err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdout: io.Discard})
		if remote := as[*cristream.RemoteError](t, err); !strings.Contains(remote.Message, `run "sl": executable file not found`) || remote.Reason != "InternalError" {
			t.Errorf("%+v", remote)
		}
	})
}

// All output has arrived when Exec returns, however much it is; and what is
// sent to it has, with its end.
func TestMuchBothWays(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		const size = 8 << 20
		c := command{stdin: true, stdout: true, stderr: true, run: func(_ context.Context, io_ monitor.Stream) (int, error) {
			n, err := io.Copy(io_.Stdout, io_.Stdin)
			fmt.Fprintf(io_.Stderr, "%d bytes", n)
			return 0, err
		}}
		sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		var out, errOut bytes.Buffer
		err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdin: bytes.NewReader(sent), Stdout: &out, Stderr: &errOut})
		if err != nil || !bytes.Equal(out.Bytes(), sent) || errOut.String() != fmt.Sprintf("%d bytes", size) {
			t.Errorf("%v, %d bytes, %q", err, out.Len(), &errOut)
		}
	})
}

func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		c := command{stdin: true, stdout: true, tty: true, run: func(_ context.Context, io_ monitor.Stream) (int, error) {
			for size := range io_.Resize {
				fmt.Fprintf(io_.Stdout, "%dx%d ", size.Width, size.Height)
				if size.Width == 300 {
					break
				}
			}
			return 0, nil
		}}
		sizes := make(chan cristream.Size)
		go func() {
			sizes <- cristream.Size{Width: 0, Height: 10} // none
			sizes <- cristream.Size{Width: 300, Height: 100}
		}()
		var out strings.Builder
		in, keep := io.Pipe()
		defer keep.Close()
		err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdin: in, Stdout: &out, TTY: true, Resize: sizes})
		if err != nil || out.String() != "300x100 " {
			t.Errorf("%v %q", err, &out)
		}
	})
}

func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		open := func(context.Context) (string, error) {
			return s.Attach(stream.Command{Stderr: true, Run: func(_ context.Context, io monitor.Stream) (int, error) {
				fmt.Fprint(io.Stderr, "attached")
				return 0, nil
			}})
		}
		var out strings.Builder
		if err := d.Attach(t.Context(), open, cristream.Streams{Stderr: &out}); err != nil || out.String() != "attached" {
			t.Errorf("%v %q", err, &out)
		}
	})
}

var errEnough = errors.New("enough")

// A session ends with its context at once, on both sides, whatever it is at.
func TestContextEnds(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		for name, stdin := range map[string]io.Reader{"idle": blocked{t.Context()}, "sending": endless{}} {
			begun, ended := make(chan struct{}), make(chan struct{})
			c := command{stdin: true, stdout: true, run: func(ctx context.Context, io_ monitor.Stream) (int, error) {
				close(begun)
				<-ctx.Done()
				close(ended)
				return 0, ctx.Err()
			}}
			ctx, cancel := context.WithCancelCause(t.Context())
			result := make(chan error, 1)
			go func() {
				result <- d.Exec(ctx, opener(s, c, nil), cristream.Streams{Stdin: stdin, Stdout: io.Discard})
			}()
			soon(t, begun)
			cancel(errEnough)
			if err := soon(t, result); err != errEnough {
				t.Errorf("%s: %v", name, err)
			}
			soon(t, ended)
		}
	})
}

// blocked has nothing to say until a context ends.
type blocked struct{ ctx context.Context }

func (b blocked) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, io.EOF
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A stream of the caller's that fails ends the session, whose error it is.
func TestOwnStreamsFail(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		c := command{stdin: true, stdout: true, stderr: true, run: func(ctx context.Context, io_ monitor.Stream) (int, error) {
			fmt.Fprint(io_.Stdout, "out")
			<-ctx.Done()
			return 0, ctx.Err()
		}}
		for _, streams := range []cristream.Streams{
			{Stdin: blocked{t.Context()}, Stdout: broken{}, Stderr: io.Discard},
			{Stdin: broken{}, Stdout: io.Discard, Stderr: io.Discard},
		} {
			if err := d.Exec(t.Context(), opener(s, c, nil), streams); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "standard") {
				t.Errorf("%v", err)
			}
		}
		c.run = func(ctx context.Context, io_ monitor.Stream) (int, error) { // and one that ends just then
			fmt.Fprint(io_.Stdout, "out")
			return 3, nil
		}
		if err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdin: strings.NewReader(""), Stdout: broken{}, Stderr: io.Discard}); !errors.Is(err, errBroken) {
			t.Errorf("%v", err)
		}
	})
}

var errBroken = errors.New("no space left on device")

type broken struct{}

func (broken) Read([]byte) (int, error)  { return 0, errBroken }
func (broken) Write([]byte) (int, error) { return 0, errBroken }

// A connection that ends before its session does is an error, and no success.
func TestLost(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		begun := make(chan net.Conn, 1)
		d.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			begun <- c
			return c, err
		}
		c := command{stdout: true, run: func(ctx context.Context, _ monitor.Stream) (int, error) {
			_ = (<-begun).(*net.TCPConn).CloseRead() // as if the peer had
			<-ctx.Done()
			return 0, nil // too late
		}}
		err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdout: io.Discard})
		as[*cristream.LostError](t, err)
	})
}

func TestRefused(t *testing.T) {
	each(t, func(t *testing.T, s *davit, d *cristream.Dialer) {
		err := d.Exec(t.Context(), cristream.At(s.URL()+"/exec/none"), cristream.Streams{Stdout: io.Discard})
		if refused := as[*cristream.UpgradeError](t, err); refused.Status != 404 || !strings.Contains(refused.Message, "no such session") {
			t.Errorf("%+v", refused)
		}
		for _, tt := range []struct {
			url, want string
			streams   cristream.Streams
		}{
			{"unix:///run/x", "none of http", cristream.Streams{Stdout: io.Discard}},
			{"http://127.0.0.1:1/x", "connection refused", cristream.Streams{Stdout: io.Discard}},
			{"", "one stream", cristream.Streams{}},
			{"", "terminal", cristream.Streams{TTY: true, Stderr: io.Discard}},
		} {
			if err := d.Exec(t.Context(), cristream.At(tt.url), tt.streams); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.want, err)
			}
		}
		failing := func(context.Context) (string, error) { return "", errEnough }
		if err := d.Exec(t.Context(), failing, cristream.Streams{Stdout: io.Discard}); err != errEnough {
			t.Errorf("%v", err)
		}
	})
}

func TestTLS(t *testing.T) {
	certFile, keyFile, pool := newCertificate(t)
	for _, p := range ways {
		t.Run(p.String(), func(t *testing.T) {
			testkit.Watch(t)
			s := newDavit(t, stream.Config{CertFile: certFile, KeyFile: keyFile})
			c := command{stdout: true, run: func(context.Context, monitor.Stream) (int, error) { return 7, nil }}
			for _, tt := range []struct {
				config *tls.Config
				good   bool
			}{{nil, false}, {&tls.Config{RootCAs: pool}, true}, {&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}, true}} {
				d := &cristream.Dialer{Protocol: p, TLS: tt.config}
				err := d.Exec(t.Context(), opener(s, c, nil), cristream.Streams{Stdout: io.Discard})
				if tt.good && as[*cristream.ExitError](t, err).Code != 7 {
					t.Errorf("%v", err)
				} else if !tt.good && !errors.As(err, new(x509.UnknownAuthorityError)) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}
