package cristream_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/davit-runtime/davit/criclient/cristream"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/stream"
	"github.com/davit-runtime/davit/internal/testkit"
)

// A command is what a session runs: its streams are those that it was asked for.
type command struct {
	stdin, stdout, stderr, tty bool
	run                        func(ctx context.Context, s monitor.Stream) (code int, err error)
}

// davit is davit's own server.
type davit struct {
	*stream.Server
	stop func()
}

func newDavit(t *testing.T, c stream.Config) *davit {
	t.Helper()
	c.Log = slog.New(slog.NewTextHandler(testkit.Output(t), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := stream.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	var stopped atomic.Bool
	d := &davit{s, func() {
		cancel()
		if stopped.Swap(true) {
			return
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}}
	t.Cleanup(d.stop)
	return d
}

func (d *davit) exec(c command) (string, error) {
	return d.Exec(stream.Command{Stdin: c.stdin, Stdout: c.stdout, Stderr: c.stderr, TTY: c.tty, Run: c.run})
}

func (d *davit) forward(dial func(context.Context, uint16) (net.Conn, error)) (string, error) {
	return d.Forward(stream.Forward{Pod: "p", Dial: dial})
}

// opener counts the URLs of a command.
func opener(s *davit, c command, asked *int) cristream.Opener {
	return func(context.Context) (string, error) {
		if asked != nil {
			*asked++
		}
		return s.exec(c)
	}
}

// ways are the protocols; by Auto, davit's server speaks WebSocket.
var ways = []cristream.Protocol{cristream.Auto, cristream.SPDY}

// each runs a test with each protocol, and requires that nothing is left of it.
func each(t *testing.T, test func(t *testing.T, s *davit, d *cristream.Dialer)) {
	for _, p := range ways {
		t.Run(p.String(), func(t *testing.T) {
			testkit.Watch(t)
			test(t, newDavit(t, stream.Config{}), &cristream.Dialer{Protocol: p})
		})
	}
}

func as[T error](t *testing.T, err error) T {
	t.Helper()
	var want T
	if !errors.As(err, &want) {
		t.Fatalf("%T %v, want a %T", err, err, want)
	}
	return want
}

// soon fails a test that waits for what does not come.
func soon[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("it does not come\n%s", buf[:runtime.Stack(buf, true)])
	}
	return v
}

// newCertificate writes a certificate for 127.0.0.1 and its key, and returns
// who vouches for it.
func newCertificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: s.Certificate().Raw}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return certFile, keyFile, pool
}
