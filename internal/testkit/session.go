package testkit

import (
	"crypto/tls"
	"net/http"
	"testing"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// DialSPDY opens the session of a URL as kubelets do, until the test's end.
func DialSPDY(t testing.TB, url, protocol string, config *tls.Config) httpstream.Connection {
	t.Helper()
	rt, err := spdy.NewRoundTripper(config)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// OpenStream opens a stream of a kind ("stdin", "data", …), with more headers:
// name, value and so on.
func OpenStream(t testing.TB, conn httpstream.Connection, kind string, more ...string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	h.Set("streamType", kind)
	for i := 0; i < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	s, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
