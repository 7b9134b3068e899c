package contract

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// A line is an exec or attach with standard input and output.
type line struct {
	conn            httpstream.Connection
	in, out, status httpstream.Stream
}

func open(t *testing.T, url string) *line {
	t.Helper()
	s := &line{conn: testkit.DialSPDY(t, url, "v4.channel.k8s.io", nil)}
	s.status, s.in, s.out = testkit.OpenStream(t, s.conn, "error"), testkit.OpenStream(t, s.conn, "stdin"), testkit.OpenStream(t, s.conn, "stdout")
	return s
}

// await reads until text has come.
func (s *line) await(t *testing.T, text string) {
	t.Helper()
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), text) {
		n, err := s.out.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("%q, then %v; want %q", got.String(), err, text)
		}
	}
}

func (w *world) execURL(t *testing.T, id string, command ...string) string {
	t.Helper()
	r, err := w.c.Exec(w.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: command, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.Url
}

func (w *world) attach(t *testing.T, id string) *line {
	t.Helper()
	r, err := w.c.Attach(w.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return open(t, r.Url)
}

// forwarded says hello to a port of a pod and returns what came back, or the error stream's text.
func (w *world) forwarded(t *testing.T, podID string, port int32, hello string) string {
	t.Helper()
	r, err := w.c.PortForward(w.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{port}})
	if err != nil {
		t.Fatal(err)
	}
	conn := testkit.DialSPDY(t, r.Url, "portforward.k8s.io", nil)
	errs := testkit.OpenStream(t, conn, "error", "port", fmt.Sprint(port), "requestID", "1")
	data := testkit.OpenStream(t, conn, "data", "port", fmt.Sprint(port), "requestID", "1")
	_, _ = io.WriteString(data, hello)
	_ = data.Close()
	text, _ := io.ReadAll(data)
	failed, _ := io.ReadAll(errs)
	return string(text) + string(failed)
}

// TestSessions: exec, attach and port-forward reach what they name; stopping
// davitd ends them and nothing else.
func TestSessions(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("sessions")
	reader := w.config("reader", "sh", "-c", "(while :; do echo served | nc -l -p 80; done) & while read line; do echo got $line; done")
	reader.Stdin = true
	ctr := w.run(podID, pod, reader)

	t.Run("exec", func(t *testing.T) {
		s := open(t, w.execURL(t, ctr, "sh", "-c", "cat; exit 42"))
		_, _ = io.WriteString(s.in, "hello")
		_ = s.in.Close()
		out, _ := io.ReadAll(s.out)
		status, _ := io.ReadAll(s.status)
		if string(out) != "hello" || !strings.Contains(string(status), `"message":"42"`) {
			t.Errorf("%q, %s", out, status)
		}
		s = open(t, w.execURL(t, ctr, "no-such-program"))
		if status, _ := io.ReadAll(s.status); !strings.Contains(string(status), "no-such-program") {
			t.Errorf("%s", status)
		}
	})
	t.Run("exec by WebSocket", func(t *testing.T) {
		config, err := websocket.NewConfig("ws"+strings.TrimPrefix(w.execURL(t, ctr, "sh", "-c", "wc -c; exit 3"), "http"), "http://localhost")
		if err != nil {
			t.Fatal(err)
		}
		config.Protocol = []string{"v5.channel.k8s.io"}
		ws, err := config.DialContext(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		for _, frame := range []string{"\x00" + strings.Repeat("x", 100000), "\xff\x00"} {
			if err := websocket.Message.Send(ws, []byte(frame)); err != nil {
				t.Fatal(err)
			}
		}
		var all strings.Builder
		for data := []byte{}; websocket.Message.Receive(ws, &data) == nil; {
			all.Write(data)
		}
		if !strings.Contains(all.String(), "100000") || !strings.Contains(all.String(), `"message":"3"`) {
			t.Errorf("%q", all.String())
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		if got := w.forwarded(t, podID, 80, "hello"); got != "served\n" {
			t.Errorf("%q", got)
		}
		if got := w.forwarded(t, podID, 81, ""); !strings.Contains(got, "nothing listens on port 81") {
			t.Errorf("%q", got)
		}
		hostID, _ := w.pod("onhost", func(p *runtimeapi.PodSandboxConfig) {
			p.Hostname = ""
			p.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		})
		l, err := net.Listen("tcp", "[::1]:0") // by IPv6 only
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.WriteString(c, "the host\n")
				_ = c.Close()
			}
		}()
		if got := w.forwarded(t, hostID, int32(l.Addr().(*net.TCPAddr).Port), ""); got != "the host\n" {
			t.Errorf("%q", got)
		}
		if _, err := w.c.StopPodSandbox(w.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: hostID}); err != nil {
			t.Fatal(err)
		}
		_, err = w.c.PortForward(w.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: hostID, Port: []int32{80}})
		want(t, err, codes.FailedPrecondition, hostID)
	})
	t.Run("nothing is left", func(t *testing.T) {
		for range 3 {
			s := open(t, w.execURL(t, ctr, "cat"))
			_ = s.conn.Close() // without a word
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			r, err := w.exec(ctr, 5, "sh", "-c", "ps | grep -c '[c]at$'")
			if err == nil && strings.TrimSpace(string(r.Stdout)) == "0" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("commands outlive their clients: %v, %v", r, err)
			}
		}
	})
	t.Run("davitd restarts", func(t *testing.T) {
		s := w.attach(t, ctr)
		_, _ = io.WriteString(s.in, "one\n")
		s.await(t, "got one\n")
		shell := open(t, w.execURL(t, ctr, "sh", "-c", "echo up; exec sleep 1000"))
		shell.await(t, "up\n")
		before, at := w.pid(ctr), time.Now()
		if err := w.d.Stop(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(at); took > 15*time.Second {
			t.Errorf("davitd took %v to stop", took)
		}
		for _, one := range []*line{s, shell} {
			if _, err := io.Copy(io.Discard, one.out); err != nil {
				t.Error(err)
			}
		}
		if err := w.d.Start(); err != nil {
			t.Fatal(err)
		}
		s = w.attach(t, ctr)
		_, _ = io.WriteString(s.in, "two\n")
		s.await(t, "got two\n")
		if w.pid(ctr) != before {
			t.Error("another process")
		}
	})
	log, err := os.ReadFile(w.status(ctr).LogPath)
	if err != nil || !strings.Contains(string(log), "got one") || !strings.Contains(string(log), "got two") {
		t.Errorf("the log: %s, %v", log, err)
	}
	t.Run("a killed container ends its sessions", func(t *testing.T) {
		s := open(t, w.execURL(t, ctr, "sh", "-c", "echo up; exec sleep 1000"))
		s.await(t, "up\n")
		if err := w.stop(ctr, 0); err != nil {
			t.Fatal(err)
		}
		status, _ := io.ReadAll(s.status)
		if !strings.Contains(string(status), "Failure") {
			t.Errorf("%s", status)
		}
		_, err := w.c.Attach(w.ctx, &runtimeapi.AttachRequest{ContainerId: ctr, Stdout: true})
		want(t, err, codes.FailedPrecondition, ctr)
	})
}
