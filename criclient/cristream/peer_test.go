package cristream_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/davit-runtime/davit/criclient/cristream"
	"github.com/davit-runtime/davit/internal/testkit"
)

// An older runtime has the library's handlers only, as containerd and CRI-O:
// by WebSocket neither a protocol in which standard input can end, nor tunnels.
type older struct {
	*httptest.Server
	t      *testing.T
	tokens atomic.Int32 // handed out; each is good once
	used   sync.Map
	stdin  bool
	header string // that requests must have for Authorization
}

func newOlder(t *testing.T, stdin bool, header string) *older {
	t.Helper()
	o := &older{t: t, stdin: stdin, header: header}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

func (o *older) open(context.Context) (string, error) {
	return fmt.Sprintf("%s/%d", o.URL, o.tokens.Add(1)), nil
}

func (o *older) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, used := o.used.LoadOrStore(r.URL.Path, true); used {
		http.NotFound(w, r)
		return
	}
	if r.Header.Get("Authorization") != o.header {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"kind":"Status","status":"Failure","message":"who are you?"}`)
		return
	}
	if r.URL.Query().Has("forward") {
		portforward.ServePortForward(w, r, o, "pod", "", &portforward.V4Options{}, time.Minute, time.Minute, portforward.SupportedProtocols)
		return
	}
	remotecommand.ServeExec(w, r, o, "", "", "c", nil, &remotecommand.Options{Stdin: o.stdin, Stdout: true}, time.Minute, time.Minute, remotecommand.SupportedStreamingProtocols)
}

// ExecInContainer implements remotecommand.Executor.
func (o *older) ExecInContainer(_ context.Context, _, _, _ string, _ []string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if o.stdin {
		_, err := io.Copy(out, in)
		return err
	}
	_, err := io.WriteString(out, "no input")
	return err
}

// PortForward implements portforward.PortForwarder.
func (o *older) PortForward(_ context.Context, _, _ string, port int32, s io.ReadWriteCloser) error {
	heard, _ := io.ReadAll(s)
	_, err := fmt.Fprintf(s, "%d heard %s", port, heard)
	return err
}

func TestOlderRuntime(t *testing.T) {
	for _, tt := range []struct {
		protocol cristream.Protocol
		stdin    bool
		urls     int32 // 2 where WebSocket is tried first
	}{
		{cristream.Auto, true, 2}, {cristream.Auto, false, 1}, {cristream.SPDY, true, 1}, {cristream.WebSocket, false, 1},
	} {
		t.Run(fmt.Sprintf("%v, stdin %v", tt.protocol, tt.stdin), func(t *testing.T) {
			testkit.Watch(t)
			o := newOlder(t, tt.stdin, "")
			d := &cristream.Dialer{Protocol: tt.protocol}
			var out strings.Builder
			s, want := cristream.Streams{Stdout: &out}, "no input"
			if tt.stdin {
				s.Stdin, want = strings.NewReader("input"), "input"
			}
			if err := d.Exec(t.Context(), o.open, s); err != nil || out.String() != want || o.tokens.Load() != tt.urls {
				t.Errorf("%v, %q, %d URLs", err, &out, o.tokens.Load())
			}
		})
	}
	t.Run("forward", func(t *testing.T) {
		testkit.Watch(t)
		o := newOlder(t, true, "")
		c, err := new(cristream.Dialer).DialPort(t.Context(), func(ctx context.Context) (string, error) {
			url, err := o.open(ctx)
			return url + "?forward", err
		}, 8080)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "this")
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		if heard, err := io.ReadAll(c); err != nil || string(heard) != "8080 heard this" || o.tokens.Load() != 2 {
			t.Errorf("%q, %v", heard, err)
		}
	})
	t.Run("refused", func(t *testing.T) { // what was tried is told
		o := newOlder(t, true, "")
		err := (&cristream.Dialer{Protocol: cristream.WebSocket}).Exec(t.Context(), o.open, cristream.Streams{Stdin: strings.NewReader(""), Stdout: io.Discard})
		if refused := as[*cristream.UpgradeError](t, err); refused.Status != 403 {
			t.Error(err)
		}
		url, _ := o.open(t.Context())
		err = new(cristream.Dialer).Exec(t.Context(), cristream.At(url), cristream.Streams{Stdin: strings.NewReader(""), Stdout: io.Discard})
		as[*cristream.UpgradeError](t, err)
		if !strings.Contains(err.Error(), "by spdy: the server answered 404") || !strings.Contains(err.Error(), "by websocket: the server answered 403") {
			t.Error(err)
		}
	})
}

func TestCredentials(t *testing.T) {
	for _, p := range ways {
		testkit.Watch(t)
		o := newOlder(t, false, "Bearer secret")
		d := &cristream.Dialer{Protocol: p}
		err := d.Exec(t.Context(), o.open, cristream.Streams{Stdout: io.Discard})
		if refused := as[*cristream.UpgradeError](t, err); refused.Status != 401 || refused.Message != "who are you?" || o.tokens.Load() != 1 {
			t.Errorf("%v: %+v, %d attempts", p, refused, o.tokens.Load())
		}
		d.Header = http.Header{"Authorization": {"Bearer secret"}}
		if err := d.Exec(t.Context(), o.open, cristream.Streams{Stdout: io.Discard}); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
}

// peer answers requests with what say writes. Then it says that this was all
// unless hold is set, and listens until the client closes the connection.
func peer(t *testing.T, hold bool, say func(w *bufio.Writer, r *http.Request)) (url string) {
	t.Helper()
	return "http://" + testkit.Serve(t, func(c *net.TCPConn) {
		from := bufio.NewReader(c)
		r, err := http.ReadRequest(from)
		if err != nil {
			return
		}
		w := bufio.NewWriter(c)
		say(w, r)
		_ = w.Flush()
		if !hold {
			_ = c.CloseWrite()
		}
		_, _ = io.Copy(io.Discard, from)
	}) + "/"
}

// agree is the answer that r asks for.
func agree(w io.Writer, r *http.Request) {
	if key := r.Header.Get("Sec-WebSocket-Key"); key != "" {
		sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		protocol, _, _ := strings.Cut(r.Header.Get("Sec-WebSocket-Protocol"), ",")
		fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n",
			base64.StdEncoding.EncodeToString(sum[:]), protocol)
		return
	}
	fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: %s\r\n\r\n", r.Header.Get("X-Stream-Protocol-Version"))
}

// message is a frame of WebSocket.
func message(kind byte, data string) string {
	return string([]byte{0x80 | kind, byte(len(data))}) + data
}

const success = `{"status":"Success"}`

// Whatever a peer does, the client returns with an error that says so, and
// leaves nothing behind.
func TestBadPeers(t *testing.T) {
	both := []cristream.Protocol{cristream.WebSocket, cristream.SPDY}
	ws, spdy := both[:1], both[1:]
	after := func(text string) func(*bufio.Writer, *http.Request) {
		return func(w *bufio.Writer, r *http.Request) {
			agree(w, r)
			_, _ = w.WriteString(text)
		}
	}
	plain := func(text string) func(*bufio.Writer, *http.Request) {
		return func(w *bufio.Writer, _ *http.Request) { _, _ = w.WriteString(text) }
	}
	noise := strings.Repeat("\x81\x7f\x00\xff\xfe\x80\x03\x00\x01", 5000)
	for _, tt := range []struct {
		name   string
		by     []cristream.Protocol
		say    func(*bufio.Writer, *http.Request)
		hold   bool
		status int    // of an UpgradeError; 0: a LostError
		text   string // of the error
	}{
		{"says nothing", both, plain(""), false, 0, "EOF"},
		{"is no HTTP", both, plain("SSH-2.0-OpenSSH_9.2\r\n"), true, 0, "malformed HTTP"},
		{"refuses", both, plain("HTTP/1.1 500 x\r\nContent-Length: 4\r\n\r\noops"), true, 500, "oops"},
		{"refuses and goes", both, plain("HTTP/1.1 400 x\r\nContent-Length: 400\r\n\r\n"), false, 400, "400 Bad Request"},
		{"redirects", both, plain("HTTP/1.1 302 x\r\nLocation: http://example.com\r\nContent-Length: 0\r\n\r\n"), true, 302, "302 Found"},
		{"is a web page", both, plain("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome"), true, 200, "welcome"},
		{"changes to something else", both, plain("HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"), true, 101, ""},
		{"goes at once", both, after(""), false, 0, "EOF"},
		{"sends noise", both, after(noise), true, 0, ""},
		{"closes", ws, after(message(8, "\x03\xe8")), true, 0, "EOF"},
		{"closes with a reason", ws, after(message(8, "\x03\xf3out of luck")), true, 0, "out of luck"},
		{"stops within a frame", ws, after(message(2, "\x01hello")[:4]), false, 0, "EOF"},
		{"stops within a message", ws, after("\x02\x06\x01hello"), false, 0, "EOF"},
		{"sends text", ws, after(message(1, "\x01hello")), true, 0, "text"},
		{"has no exit code", ws, after(message(2, "\x03"+`{"status":"Failure","reason":"NonZeroExitCode"}`) + message(8, "")), true, 0, "without an exit code"},
		{"has a status of noise", ws, after(message(2, "\x03{") + message(8, "")), true, 0, "status"},
		{"has a status without end", ws, after(strings.Repeat(message(2, "\x03"+strings.Repeat("x", 100)), 1000)), true, 0, "bytes"},
		{"has half a header", spdy, after("\x80\x03\x00"), false, 0, "EOF"},
		{"refuses streams", spdy, after("\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x03"), false, 0, "EOF"},
		{"goes away", spdy, after("\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00"), true, 0, "EOF"},
	} {
		for _, p := range tt.by {
			t.Run(fmt.Sprintf("%s, %v", tt.name, p), func(t *testing.T) {
				testkit.Watch(t)
				d := &cristream.Dialer{Protocol: p}
				open := cristream.At(peer(t, tt.hold, tt.say))
				result := make(chan error, 1)
				go func() {
					result <- d.Exec(t.Context(), open, cristream.Streams{Stdin: strings.NewReader("input"), Stdout: io.Discard})
				}()
				err := soon(t, result)
				if tt.status != 0 && as[*cristream.UpgradeError](t, err).Status != tt.status || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("exec: %v", err)
				} else if tt.status == 0 {
					as[*cristream.LostError](t, err)
				}
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					c, err := d.DialPort(ctx, open, 80)
					if err == nil {
						_, err = c.Read(make([]byte, 1))
						_ = c.Close()
					}
					result <- err
				}()
				if err := soon(t, result); tt.status != 0 && as[*cristream.UpgradeError](t, err).Status != tt.status || err == nil || err == io.EOF {
					t.Errorf("forward: %v", err)
				}
			})
		}
	}
}

// What does not matter is no error: messages without content, channels that
// nobody knows, answers to pings, a connection that ends without a farewell.
func TestOddPeers(t *testing.T) {
	var out bytes.Buffer
	url := peer(t, false, func(w *bufio.Writer, r *http.Request) {
		agree(w, r)
		_, _ = w.WriteString(message(2, "") + message(2, "\x01") + message(2, "\x07what?") + message(9, "ping") + message(2, "\xff\x01") +
			"\x02\x03\x01he\x80\x03llo" + message(2, "\x03"+success))
	})
	d := &cristream.Dialer{Protocol: cristream.WebSocket}
	if err := d.Exec(t.Context(), cristream.At(url), cristream.Streams{Stdout: &out}); err != nil || out.String() != "hello" {
		t.Errorf("%v %q", err, &out)
	}
}

// A peer that never answers is given up with the context.
func TestPeerIsSilent(t *testing.T) {
	for _, p := range []cristream.Protocol{cristream.WebSocket, cristream.SPDY} {
		for name, say := range map[string]func(*bufio.Writer, *http.Request){
			"to the request": func(*bufio.Writer, *http.Request) {},
			"in the session": func(w *bufio.Writer, r *http.Request) { agree(w, r) },
		} {
			t.Run(fmt.Sprintf("%v %s", p, name), func(t *testing.T) {
				testkit.Watch(t)
				reached := make(chan struct{}, 2)
				d, open := &cristream.Dialer{Protocol: p}, cristream.At(peer(t, true, func(w *bufio.Writer, r *http.Request) {
					say(w, r)
					reached <- struct{}{}
				}))
				for _, one := range []func(context.Context) error{
					func(ctx context.Context) error {
						return d.Exec(ctx, open, cristream.Streams{Stdin: blocked{t.Context()}, Stdout: io.Discard})
					},
					func(ctx context.Context) error { return second(d.DialPort(ctx, open, 80)) },
				} {
					ctx, cancel := context.WithCancelCause(t.Context())
					result := make(chan error, 1)
					go func() { result <- one(ctx) }()
					soon(t, reached)
					cancel(errEnough)
					if err := soon(t, result); err != errEnough {
						t.Error(err)
					}
				}
			})
		}
	}
}

// A session with a peer that agrees and then says anything ends, in one way or another.
func FuzzPeer(f *testing.F) {
	for _, said := range []string{
		message(2, "\x01hi") + message(2, "\x03"+success) + message(8, "\x03\xe8"), "\x02\x02\x01h\x80\x01i", message(9, "ping") + message(10, ""), message(1, "\x02hi"),
		"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x82\x7e\x00\x03\x01hi", "\xc2\x00", "\x88\x01x", "",
	} {
		f.Add([]byte(said), false)
	}
	for _, said := range []string{
		"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x03", "\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00",
		"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01", "\x00\x00\x00\x01\x01\x00\x00\x02hi", "\x80\x03\x00\x02\x00\x00\x00\x04\x00\x00\x00\x01", "\x80\x03\x00\x01",
	} {
		f.Add([]byte(said), true)
	}
	f.Fuzz(func(t *testing.T, said []byte, spdy bool) {
		d := &cristream.Dialer{Protocol: cristream.WebSocket}
		if spdy {
			d.Protocol = cristream.SPDY
		}
		var serving sync.WaitGroup
		defer serving.Wait()
		d.Dial = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			serving.Go(func() {
				from := bufio.NewReader(there)
				r, err := http.ReadRequest(from)
				if err != nil {
					return
				}
				serving.Go(func() { _, _ = io.Copy(io.Discard, from) })
				agree(there, r)
				_, _ = there.Write(said)
				_ = there.Close()
			})
			return here, nil
		}
		open := cristream.At("http://peer/")
		if err := d.Exec(t.Context(), open, cristream.Streams{Stdout: io.Discard, Stderr: io.Discard}); err == nil && !strings.Contains(string(said), "uccess") {
			t.Errorf("%q is a success", said)
		}
		if c, err := d.DialPort(t.Context(), open, 80); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	})
}
