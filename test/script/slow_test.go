package script

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// A slow registry is one behind which the script's stands. It brings half of
// each blob, and waits until it is released.
type slow struct {
	server   *httptest.Server
	released chan struct{}
}

func startSlow(registry string) *slow {
	s := &slow{released: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	proxy.FlushInterval = -1 // at once
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method == http.MethodGet && strings.Contains(r.Request.URL.Path, "/blobs/") && r.ContentLength > 1<<16 {
			rest := r.Body
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(rest, r.ContentLength/2), s, rest), rest}
		}
		return nil
	}
	s.server = httptest.NewServer(proxy)
	return s
}

// Read waits, and has nothing to read.
func (s *slow) Read([]byte) (int, error) {
	<-s.released
	return 0, io.EOF
}

func (s *slow) release() {
	select {
	case <-s.released:
	default:
		close(s.released)
	}
}

// slowRegistry is the command slow.
func slowRegistry(ts *testscript.TestScript, _ bool, args []string) {
	s := of(ts)
	switch strings.Join(args, " ") {
	case "start":
		s.slow = startSlow(s.registry.Host)
		ts.Defer(func() {
			s.slow.release()
			s.slow.server.Close()
		})
		ts.Setenv("SLOW", strings.TrimPrefix(s.slow.server.URL, "http://"))
	case "release":
		s.slow.release()
	default:
		ts.Fatalf("usage: slow start|release")
	}
}
