package stream

import (
	"context"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// proxied returns the URL by which a session is reached through a proxy as in
// a kubelet or an API server: slow, and when it cannot pass on what the client
// sends it lets both sides go (k8s.io/apimachinery/pkg/util/proxy).
func proxied(t *testing.T, to string) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var passing sync.WaitGroup
	t.Cleanup(passing.Wait)
	t.Cleanup(func() { _ = l.Close() })
	server := u.Host
	passing.Go(func() {
		client, err := l.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		back, err := net.Dial("tcp", server)
		if err != nil {
			t.Error(err)
			return
		}
		defer back.Close()
		ended := make(chan struct{}, 2)
		passing.Go(func() {
			_, _ = io.Copy(struct{ io.Writer }{back}, client) // no splice(2), which keeps pipes
			ended <- struct{}{}
		})
		passing.Go(func() {
			for part := make([]byte, 8<<10); ; time.Sleep(time.Millisecond) {
				n, err := back.Read(part)
				if _, bad := client.Write(part[:n]); bad != nil || err != nil {
					break
				}
			}
			ended <- struct{}{}
		})
		<-ended
	})
	u.Host = l.Addr().String()
	return u.String()
}

// All that a command wrote arrives, though its client goes on sending after it
// has ended: a connection closed before that is read would be reset.
func TestLinger(t *testing.T) {
	s := serving(t, Config{})
	const size = 1 << 20
	c := Command{Stdin: true, Stdout: true, Run: func(_ context.Context, io monitor.Stream) (int, error) {
		_, err := io.Stdout.Write([]byte(strings.Repeat("x", size)))
		return 0, err
	}}
	one := newSPDY(t, proxied(t, mustExec(t, s, c)), c)
	defer one.hangUp()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, _ = one.stdin.Write([]byte("more"))
			}
		}
	}()
	out, _, status := one.result()
	close(stop)
	<-stopped
	if len(out) != size || !strings.Contains(status, "Success") {
		t.Errorf("%d bytes of %d, and status %q", len(out), size, status)
	}
}
