package cristream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// A Protocol is how a session's streams share one connection.
type Protocol int

const (
	// Auto is WebSocket, and SPDY if the peer does not agree to that.
	Auto Protocol = iota
	WebSocket
	SPDY
)

func (p Protocol) String() string {
	return [...]string{"auto", "websocket", "spdy"}[p]
}

// ParseProtocol is the reverse of Protocol.String.
func ParseProtocol(name string) (Protocol, error) {
	for _, p := range []Protocol{Auto, WebSocket, SPDY} {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: want auto, websocket or spdy", name)
}

// An Opener returns the URL of a session. It is called once for each attempt,
// as URLs of runtimes are good for one: twice with Auto, if the peer refuses
// WebSocket; once for each connection to a port.
type Opener func(ctx context.Context) (url string, err error)

// At returns the Opener of a URL that is good for any number of attempts, as
// those of a kubelet.
func At(url string) Opener {
	return func(context.Context) (string, error) { return url, nil }
}

// A Dialer opens sessions. The zero value is ready; a Dialer is safe for
// concurrent use once its fields are set.
type Dialer struct {
	Protocol Protocol
	// TLS is for URLs with https. Nil: the system's authorities and no
	// certificate of the client's. (A kubelet does not verify its runtime.)
	TLS *tls.Config
	// Header is added to each request: Authorization, for instance.
	Header http.Header
	// Dial connects to "host:port". Nil: TCP, with probes that notice a peer
	// that has gone without a word within a minute.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

const (
	// handshakeTimeout bounds an attempt, from the URL to the first byte of the session.
	handshakeTimeout = 30 * time.Second
	// maxMessageBytes is as much as is read of what a peer says for people.
	maxMessageBytes = 64 << 10
)

// probes are those of TCP. Pings of WebSocket's would not do: a peer whose
// command does not read its standard input cannot answer them.
var probes = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 10 * time.Second, Count: 4}

// A link is a connection on which the peer agreed to a protocol.
type link struct {
	raw *watched
	ws  *websocket.Conn // nil with SPDY
	sub string          // the WebSocket's subprotocol
}

// connect opens a link by one of the WebSocket protocols, in the order of
// preference, or by SPDY with its one.
func (d *Dialer) connect(ctx context.Context, open Opener, webSocket []string, spdy string) (*link, error) {
	if d.Protocol == SPDY {
		return d.attempt(ctx, open, func(ctx context.Context, u *url.URL) (*link, error) { return d.overSPDY(ctx, u, spdy) })
	}
	l, err := d.attempt(ctx, open, func(ctx context.Context, u *url.URL) (*link, error) { return d.overWebSocket(ctx, u, webSocket) })
	var refused *UpgradeError
	if d.Protocol == WebSocket || !errors.As(err, &refused) || refused.Status == http.StatusUnauthorized {
		return l, err
	}
	l, second := d.attempt(ctx, open, func(ctx context.Context, u *url.URL) (*link, error) { return d.overSPDY(ctx, u, spdy) })
	var again *UpgradeError
	if errors.As(second, &again) && (again.Status != refused.Status || again.Message != refused.Message) {
		return nil, fmt.Errorf("%w; %w", second, err)
	}
	return l, second
}

// attempt bounds one attempt in time.
func (d *Dialer) attempt(ctx context.Context, open Opener, upgrade func(context.Context, *url.URL) (*link, error)) (*link, error) {
	text, err := open(ctx)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the session's URL %q is none of http or https", text)
	}
	limited, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, fmt.Errorf("%s did not begin a session within %v", u.Host, handshakeTimeout))
	defer cancel()
	l, err := upgrade(limited, u)
	if err != nil && limited.Err() != nil {
		return nil, context.Cause(limited)
	}
	return l, err
}

// dial connects to the host of u, by TLS if it says so. The connection is
// closed when ctx ends, unless release was called and reported true before.
func (d *Dialer) dial(ctx context.Context, u *url.URL) (raw *watched, release func() bool, err error) {
	dial := d.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAliveConfig: probes}).DialContext
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, nil, err
	}
	if u.Scheme == "https" {
		config := &tls.Config{}
		if d.TLS != nil {
			config = d.TLS.Clone()
		}
		if config.ServerName == "" {
			config.ServerName = u.Hostname()
		}
		config.NextProtos = []string{"http/1.1"} // a connection of HTTP/2 cannot change its protocol
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, nil, fmt.Errorf("connect to %s: %w", u.Host, err)
		}
		conn = secure
	}
	raw = watch(conn)
	return raw, context.AfterFunc(ctx, func() { _ = conn.Close() }), nil
}

// overWebSocket asks for one of the protocols.
func (d *Dialer) overWebSocket(ctx context.Context, u *url.URL, protocols []string) (*link, error) {
	raw, release, err := d.dial(ctx, u)
	if err != nil {
		return nil, err
	}
	dialed := func(context.Context, string, string) (net.Conn, error) { return raw, nil }
	w := websocket.Dialer{NetDialContext: dialed, NetDialTLSContext: dialed, Subprotocols: protocols, ReadBufferSize: bufferBytes, WriteBufferSize: bufferBytes}
	to := *u
	to.Scheme = "ws" + strings.TrimPrefix(u.Scheme, "http")
	ws, response, err := w.DialContext(ctx, to.String(), d.Header.Clone())
	switch {
	case errors.Is(err, websocket.ErrBadHandshake):
		err = refusal(WebSocket, response)
	case err != nil:
		err = &LostError{err}
	case !slices.Contains(protocols, ws.Subprotocol()):
		err = &UpgradeError{WebSocket, response.StatusCode, fmt.Sprintf("it chose the protocol %q of %q", ws.Subprotocol(), protocols)}
	case !release():
		err = context.Cause(ctx)
	}
	if err != nil {
		release()
		_ = raw.Close()
		return nil, err
	}
	return &link{raw, ws, ws.Subprotocol()}, nil
}

// The headers by which SPDY is asked for.
// Kubernetes: k8s.io/streaming/pkg/httpstream.
const (
	spdyUpgrade     = "SPDY/3.1"
	protocolHeader  = "X-Stream-Protocol-Version"
	protocolsHeader = "X-Accepted-Stream-Protocol-Versions" // by which a peer says what it would take
)

// overSPDY asks for the protocol.
func (d *Dialer) overSPDY(ctx context.Context, u *url.URL, protocol string) (*link, error) {
	raw, release, err := d.dial(ctx, u)
	if err != nil {
		return nil, err
	}
	err = askSPDY(ctx, raw, u, d.Header, protocol)
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return &link{raw: raw}, nil
}

func askSPDY(ctx context.Context, raw *watched, u *url.URL, header http.Header, protocol string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return err
	}
	maps.Copy(request.Header, header)
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", spdyUpgrade)
	request.Header.Set(protocolHeader, protocol)
	if err := request.Write(raw); err != nil {
		return &LostError{err}
	}
	response, err := http.ReadResponse(raw.reader, request)
	if err != nil {
		return &LostError{err}
	}
	if response.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(response.Header.Get("Upgrade"), spdyUpgrade) {
		return refusal(SPDY, response)
	}
	if chosen := response.Header.Get(protocolHeader); chosen != protocol {
		return &UpgradeError{SPDY, response.StatusCode, fmt.Sprintf("it chose the protocol %q, not %q", chosen, protocol)}
	}
	return nil
}

// refusal is the error of a response that begins no session.
func refusal(p Protocol, r *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(r.Body, maxMessageBytes))
	return &UpgradeError{p, r.StatusCode, plainMessage(text)}
}

// A watched connection remembers why it ended.
type watched struct {
	net.Conn
	reader *bufio.Reader // of Conn

	mu  sync.Mutex
	err error // the first that Read or Write returned
}

func watch(c net.Conn) *watched { return &watched{Conn: c, reader: bufio.NewReader(c)} }

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.reader.Read(p)
	w.note(err)
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.note(err)
	return n, err
}

func (w *watched) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// Close succeeds again and again: spdystream waits where it does not.
func (w *watched) Close() error {
	_ = w.Conn.Close()
	return nil
}

// abort closes the connection at once. What the peer has not taken yet is
// dropped: behind it, the end would not reach one that reads nothing.
func (w *watched) abort() {
	c := w.Conn
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// ended reports whether the connection has.
func (w *watched) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

// lost is the error of a session that the peer did not end.
func (w *watched) lost() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil || errors.Is(w.err, io.EOF) || errors.Is(w.err, net.ErrClosed) {
		return &LostError{io.ErrUnexpectedEOF}
	}
	return &LostError{w.err}
}
