package stream

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelPrefix begins the names of the WebSocket protocols that carry SPDY.
// Kubernetes: k8s.io/apimachinery/pkg/util/portforward, WebsocketsSPDYTunnelingPrefix.
const tunnelPrefix = "SPDY/3.1+"

// serveTunnel serves SPDY inside of a WebSocket, the only way that clients of
// today forward ports by WebSocket, to a handler of SPDY.
func serveTunnel(w http.ResponseWriter, r *http.Request, handle http.HandlerFunc) {
	websocket.Server{
		Handshake: chooseTunnel,
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			handle(&upgraded{ws: ws, header: http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// chooseTunnel is a handshake that takes the one protocol there is. It does
// not ask where a page came from: the URL is known to its receiver only.
func chooseTunnel(config *websocket.Config, _ *http.Request) error {
	for _, protocol := range config.Protocol {
		if name, ok := strings.CutPrefix(protocol, tunnelPrefix); ok && name == portforward.ProtocolV1Name {
			config.Protocol = []string{protocol}
			return nil
		}
	}
	return fmt.Errorf("none of the protocols %q is known", config.Protocol)
}

// upgraded is the response to a request inside of a WebSocket: whatever its
// headers are, the protocol has changed already.
type upgraded struct {
	ws     *websocket.Conn
	header http.Header
}

func (u *upgraded) Header() http.Header         { return u.header }
func (u *upgraded) WriteHeader(int)             {}
func (u *upgraded) Write(p []byte) (int, error) { return len(p), nil }

func (u *upgraded) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return inner{u.ws}, bufio.NewReadWriter(bufio.NewReader(u.ws), bufio.NewWriter(u.ws)), nil
}

// An inner connection can be closed again and again, as a conn can.
type inner struct{ *websocket.Conn }

func (i inner) Close() error {
	_ = i.Conn.Close()
	return nil
}
