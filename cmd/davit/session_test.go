package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/stream"
)

// shared is a buffer that is read while it is written.
type shared struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until s has text.
func (s *shared) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(s.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %q", text, s)
		}
	}
}

// background runs davit meanwhile; wait returns its exit code.
func (s *shell) background(in io.Reader, out, errOut io.Writer, args ...string) (wait func() int) {
	code := make(chan int, 1)
	go func() { code <- run(append([]string{"--endpoint", s.socket.Path()}, args...), in, out, errOut) }()
	return func() int {
		s.Helper()
		select {
		case c := <-code:
			return c
		case <-time.After(20 * time.Second):
			s.Fatalf("davit %q does not end", args)
			return 0
		}
	}
}

// A program is what runs in a container: a command, or without one the
// container's own.
type program func(container string, cmd []string, s monitor.Stream) (code int, err error)

// whoami tells who it is; exit N ends with N.
func whoami(container string, cmd []string, s monitor.Stream) (code int, err error) {
	fmt.Fprintf(s.Stdout, "%s: %q\n", container, cmd)
	fmt.Fprint(s.Stderr, "err\n")
	if cmd[0] == "exit" {
		fmt.Sscan(cmd[1], &code)
	}
	return code, nil
}

// serveStreams gives the fake runtime sessions, until the test's end.
func (s *shell) serveStreams() {
	s.program = whoami
	sessions, err := stream.Listen(stream.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- sessions.Serve(ctx) }()
	// The fake's URLs tell nothing but the kind: the request is the last of those.
	proxy := httptest.NewServer(&httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		to, err := url.Parse(s.offer(sessions, strings.Split(r.In.URL.Path, "/")[1]))
		if err != nil {
			s.Error(err)
		}
		r.Out.URL = to
	}})
	s.cri.SetStreamURL(proxy.URL)
	s.Cleanup(func() {
		cancel()
		<-served
		proxy.Close()
	})
}

// offer returns the URL of the session that was asked for last.
func (s *shell) offer(sessions *stream.Server, kind string) (url string) {
	method := map[string]string{"exec": "Exec", "attach": "Attach", "portforward": "PortForward"}[kind]
	calls := s.cri.Calls(method)
	var err error
	switch r := calls[len(calls)-1].Request.(type) {
	case *runtimeapi.ExecRequest:
		url, err = sessions.Exec(stream.Command{
			Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, TTY: r.Tty,
			Run: func(_ context.Context, io monitor.Stream) (int, error) {
				return s.program(s.nameOf(r.ContainerId), r.Cmd, io)
			},
		})
	case *runtimeapi.AttachRequest:
		url, err = sessions.Attach(stream.Command{
			Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, TTY: r.Tty,
			Run: func(_ context.Context, io monitor.Stream) (int, error) {
				return s.program(s.nameOf(r.ContainerId), nil, io)
			},
		})
	case *runtimeapi.PortForwardRequest:
		url, err = sessions.Forward(stream.Forward{Pod: r.PodSandboxId, Dial: func(ctx context.Context, port uint16) (net.Conn, error) {
			if port != 80 {
				return nil, fmt.Errorf("nothing listens on port %d", port)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", s.port)
		}})
	}
	if err != nil {
		s.Error(err)
	}
	return url
}

func (s *shell) nameOf(container string) string {
	for _, c := range s.cri.Containers() {
		if c.Id == container {
			return c.Metadata.Name
		}
	}
	return ""
}

// onePod is a shell with a pod whose one container does what program does.
func onePod(t *testing.T, p program) *shell {
	s := newShell(t)
	s.program = p
	s.play(0, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: \"a:1\"}]}\n")
	return s
}

func TestExecStreams(t *testing.T) {
	for _, protocol := range []string{"auto", "websocket", "spdy"} {
		more := make(chan struct{})
		s := onePod(t, func(_ string, cmd []string, streams monitor.Stream) (int, error) {
			fmt.Fprintf(streams.Stdout, "%s begins\n", cmd)
			<-more
			if streams.Stdin != nil {
				_, _ = io.Copy(streams.Stderr, streams.Stdin)
			}
			return 7, nil
		})
		var out, errOut shared
		wait := s.background(strings.NewReader("input"), &out, &errOut, "exec", "--protocol", protocol, "-i", "web", "--", "cmd", "-x")
		out.await(t, "[cmd -x] begins\n") // it comes while the command runs
		close(more)
		if code := wait(); code != 7 || errOut.String() != "input" {
			t.Errorf("%s: exit code %d, %q", protocol, code, &errOut)
		}
	}
	s := onePod(t, func(string, []string, monitor.Stream) (int, error) { return 0, errors.New("no such program") })
	s.davit(1, "", "exec", "web", "--", "sl")
	s.has(s.errOut, `^davit: exec in container c: .*no such program\n$`)
	s.davit(1, "", "exec", "--protocol", "http", "web", "--", "sl")
	s.has(s.errOut, `protocol "http": want auto, websocket or spdy`)
	s.davit(1, "", "attach", "-it", "web", "--detach-keys", "esc")
	s.has(s.errOut, `key "esc"`)
	s.davit(1, "", "exec", "--stream-ca", "/dev/null", "web", "--", "sl")
	s.has(s.errOut, `/dev/null has no certificate in PEM`)
}

// pty returns both sides of a terminal.
func pty(t *testing.T) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	resize(t, screen, 80, 24)
	return keyboard, screen
}

func resize(t *testing.T, f *os.File, width, height uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		t.Fatal(err)
	}
}

func modes(t *testing.T, f *os.File) *unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// keys is a command that tells what it gets: sizes, and keys until q.
func keys(_ string, _ []string, s monitor.Stream) (int, error) {
	var writing sync.Mutex
	say := func(format string, args ...any) {
		writing.Lock()
		defer writing.Unlock()
		fmt.Fprintf(s.Stdout, format, args...)
	}
	go func() {
		for size := range s.Resize {
			say("size %dx%d ", size.Width, size.Height)
		}
	}()
	for key := make([]byte, 1); ; {
		if _, err := io.ReadFull(s.Stdin, key); err != nil {
			return 0, err
		}
		say("key %d ", key[0])
		if key[0] == 'q' {
			return 5, nil
		}
	}
}

// Keys go to the command as they are, sizes too; and whatever ends the
// session, the terminal is as it was.
func TestTerminal(t *testing.T) {
	signal := func(sig syscall.Signal) func(*os.File) {
		return func(*os.File) { _ = unix.Kill(os.Getpid(), sig) }
	}
	for name, tt := range map[string]struct {
		args []string
		end  func(keyboard *os.File)
		code int
		says string // on standard error
	}{
		"command": {[]string{"exec", "-it", "web", "--", "sh"}, func(k *os.File) { _, _ = k.WriteString("q") }, 5, ""},
		"spdy":    {[]string{"exec", "--protocol", "spdy", "-it", "web", "--", "sh"}, func(k *os.File) { _, _ = k.WriteString("q") }, 5, ""},
		"SIGTERM": {[]string{"exec", "-it", "web", "--", "sh"}, signal(unix.SIGTERM), 130, "davit: interrupted\n"},
		"SIGHUP":  {[]string{"exec", "-it", "web", "--", "sh"}, signal(unix.SIGHUP), 130, "davit: interrupted\n"},
		"SIGQUIT": {[]string{"attach", "-it", "web"}, signal(unix.SIGQUIT), 130, "davit: interrupted\n"},
		"left":    {[]string{"attach", "-it", "web"}, func(k *os.File) { _, _ = k.WriteString("\x10\x11") }, 0, "\nleft container c, which goes on\n"},
		"other keys": {[]string{"attach", "-it", "web", "--detach-keys", "ctrl-a,d"}, func(k *os.File) {
			_, _ = k.WriteString("\x10\x11\x01d")
		}, 0, "\nleft container c, which goes on\n"},
		"limit": {[]string{"exec", "--timeout", "1s", "-it", "web", "--", "sh"}, func(*os.File) {}, 1, "davit: exec in container c: the time limit of 1s is over\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := onePod(t, keys)
			keyboard, screen := pty(t)
			before := modes(t, screen)
			var out, errOut shared
			wait := s.background(screen, &out, &errOut, tt.args...)
			out.await(t, "size 80x24 ")
			if now := modes(t, screen); now.Lflag&(unix.ECHO|unix.ISIG|unix.ICANON) != 0 {
				t.Errorf("the terminal is not raw: %+v", now)
			}
			_, _ = keyboard.WriteString("\x03\r")
			out.await(t, "key 3 key 13 ") // neither a signal, nor a line
			resize(t, screen, 132, 43)
			_ = unix.Kill(os.Getpid(), unix.SIGWINCH)
			out.await(t, "size 132x43 ")
			tt.end(keyboard)
			if code := wait(); code != tt.code || errOut.String() != tt.says {
				t.Errorf("exit code %d, %q", code, &errOut)
			}
			if after := modes(t, screen); !reflect.DeepEqual(after, before) {
				t.Errorf("the terminal was %+v and is %+v", before, after)
			}
		})
	}
}

type panics struct{}

func (panics) Write([]byte) (int, error) { panic("a bug") }

func TestTerminalAfterPanic(t *testing.T) {
	s := onePod(t, keys)
	keyboard, screen := pty(t)
	before := modes(t, screen)
	_, _ = keyboard.WriteString("x")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		run([]string{"--endpoint", s.socket.Path(), "exec", "-it", "web", "--", "sh"}, screen, panics{}, io.Discard)
	}()
	if after := modes(t, screen); !reflect.DeepEqual(after, before) {
		t.Errorf("the terminal was %+v and is %+v", before, after)
	}
}

func TestPortForward(t *testing.T) {
	s := onePod(t, nil)
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	s.port = web.Addr().String()
	go func() {
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "hello")
			_ = c.Close()
		}
	}()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	for _, tt := range []struct{ arg, says string }{
		{"0", `port "0": want REMOTE or LOCAL:REMOTE`}, {"80:", "want REMOTE"}, {"1:2:3", "want REMOTE"}, {"70000", "want REMOTE"}, {port + ":80", "address already in use"},
	} {
		s.davit(1, "", "port-forward", "web", "--address", "127.0.0.1", ":80", tt.arg)
		s.has(s.errOut, tt.says)
	}
	var out, errOut shared
	wait := s.background(nil, &out, &errOut, "port-forward", "web", "--address", "127.0.0.1,127.0.0.2", ":80", "0:81")
	out.await(t, "-> 81\nForwarding from 127.0.0.2:")
	var to, refused string
	for line := range strings.Lines(out.String()) {
		var address, remote string
		fmt.Sscanf(line, "Forwarding from %s -> %s", &address, &remote)
		if remote == "80" && strings.HasPrefix(address, "127.0.0.2") {
			to = address
		} else if remote == "81" {
			refused = address
		}
	}
	get := func(address string) (string, error) {
		c, err := new(net.Dialer).DialContext(context.Background(), "tcp", address)
		if err != nil {
			return "", err
		}
		defer c.Close()
		text, err := io.ReadAll(c)
		return string(text), err
	}
	for range 3 {
		if text, err := get(to); text != "hello" || err != nil {
			t.Errorf("%q, %v", text, err)
		}
	}
	if text, err := get(refused); err == nil {
		t.Errorf("%q from a port on which nobody listens", text)
	}
	errOut.await(t, "davit: port 81: error forwarding port 81")
	s.cri.Fail("PortForward", status.Error(codes.NotFound, "no pod aa"))
	_, _ = get(to)
	if code := wait(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	errOut.await(t, "davit: pod default/web is gone: no pod aa\n")
	if _, err := get(to); err == nil {
		t.Error("it listens on")
	}
}
