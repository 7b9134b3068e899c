package namespace

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// listenIn listens in the namespace at path, and answers each caller with the address it reached.
func listenIn(t *testing.T, path, address string) (port uint16) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		inner := listen
		listen = func() error {
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return inner()
		}
	}
	if err := onThread(listen); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(path + c.LocalAddr().(*net.TCPAddr).IP.String()))
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func reach(t *testing.T, path string, port uint16) string {
	t.Helper()
	c, err := Dial(t.Context(), path, port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 200)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

func TestDial(t *testing.T) {
	testkit.Root(t)
	m, paths := New(), []string{}
	for _, name := range []string{"a", "b"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := m.Create(t.Context(), dir, Spec{Net: true}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Release(context.Background(), dir); err != nil {
				t.Error(err)
			}
		})
		paths = append(paths, filepath.Join(dir, "net"))
	}
	own := listenIn(t, "", "127.0.0.1:0")
	if got := reach(t, "", own); got != "127.0.0.1" {
		t.Errorf("own namespace: %q", got)
	}
	four, six := listenIn(t, paths[0], "127.0.0.1:0"), listenIn(t, paths[0], "[::1]:0")
	if got := reach(t, paths[0], four); got != paths[0]+"127.0.0.1" {
		t.Errorf("IPv4: %q", got)
	}
	if got := reach(t, paths[0], six); got != paths[0]+"::1" {
		t.Errorf("IPv6: %q", got)
	}
	if got := reach(t, "", own); got != "127.0.0.1" {
		t.Errorf("own namespace afterwards: %q", got)
	}

	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		port uint16
		kind fault.Kind
		text string
	}{
		{paths[1], four, fault.Unavailable, "nothing listens on port "},
		{"", 1, fault.Unavailable, "nothing listens on port 1 of localhost"},
		{"/nowhere/net", 1, fault.NotFound, "/nowhere/net"},
		{plain, 1, fault.NotFound, "join the network namespace"},
	} {
		c, err := Dial(t.Context(), tt.path, tt.port)
		if c != nil || !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s port %d: %v", tt.path, tt.port, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, paths[0], four); !fault.Is(err, fault.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// However many come at once, each lands in the namespace it named.
func TestDialManyAtOnce(t *testing.T) {
	testkit.Root(t)
	dir := filepath.Join(t.TempDir(), "n")
	if err := New().Create(t.Context(), dir, Spec{Net: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = New().Release(context.Background(), dir) })
	path := filepath.Join(dir, "net")
	inside, outside := listenIn(t, path, "127.0.0.1:0"), listenIn(t, "", "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			where, port := path, inside
			if i%2 == 0 {
				where, port = "", outside
			}
			c, err := Dial(ctx, where, port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			buf := make([]byte, 200)
			n, _ := c.Read(buf)
			if got := string(buf[:n]); got != where+"127.0.0.1" {
				t.Errorf("asked for %q, got %q", where, got)
			}
		})
	}
	all.Wait()
}
