package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Config says where and how to serve.
type Config struct {
	// Address is "host:port"; with port 0 the kernel chooses one. The host stands
	// in URLs as it is given, but for a wildcard, whose URLs name the loopback.
	Address string // empty: "127.0.0.1:0"
	// CertFile and KeyFile are PEM files, read again when they change. Without them: no TLS.
	CertFile, KeyFile string
	IdleTimeout       time.Duration // of a connection without a byte; 0: 4 h
	Log               *slog.Logger
}

const (
	defaultAddress     = "127.0.0.1:0"
	defaultIdleTimeout = 4 * time.Hour
	// createTimeout is how long a SPDY client may take to open a session's streams.
	createTimeout = remotecommand.DefaultStreamCreationTimeout
	// cutGrace is how long sessions may take to end once they are cut.
	cutGrace = 2 * time.Second
)

// stopGrace is how long sessions may go on when davitd stops.
var stopGrace = time.Second

// A Server serves sessions. Its methods may be called at the same time.
type Server struct {
	config   Config
	base     string // of URLs, without a slash at the end
	listener net.Listener
	http     *http.Server
	tokens   tokens
	conns    conns

	mu       sync.Mutex
	closing  bool
	sessions sync.WaitGroup
}

// Listen listens; Serve serves. Invalid for a bad address, Unavailable if it
// cannot be had.
func Listen(c Config) (*Server, error) {
	if c.Address == "" {
		c.Address = defaultAddress
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "address %q: %w", c.Address, err)
	}
	s := &Server{config: c}
	scheme := "http"
	var config *tls.Config
	if c.CertFile != "" {
		pair, err := readCertificate(c.CertFile, c.KeyFile, c.Log)
		if err != nil {
			return nil, fault.New(fault.Invalid, "", "certificate: %w", err)
		}
		// A connection that changes its protocol cannot be one of HTTP/2.
		scheme = "https"
		config = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: pair.get}
	}
	inner, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "", "%w", err)
	}
	port := inner.Addr().(*net.TCPAddr).Port
	s.base = scheme + "://" + net.JoinHostPort(reachable(host), strconv.Itoa(port))
	s.listener = listener{inner, &s.conns}
	if config != nil {
		s.listener = tls.NewListener(s.listener, config)
	}
	mux := http.NewServeMux()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" /{kind}/{token}", s.open)
	}
	s.http = &http.Server{
		Handler:           mux,
		ConnContext:       withConn,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       10 * time.Second, // between requests
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// reachable is host, or the loopback address where host stands for all.
func reachable(host string) string {
	address, err := netip.ParseAddr(host)
	switch {
	case host == "" || err == nil && address.IsUnspecified() && address.Is4():
		return "127.0.0.1"
	case err == nil && address.IsUnspecified():
		return "::1"
	}
	return host
}

// URL is what the URLs of all sessions begin with.
func (s *Server) URL() string { return s.base }

// Serve serves until ctx ends or the listener fails. Sessions may then go on
// for a moment; none is left when Serve returns.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	var err error
	select {
	case err = <-served:
		s.Close()
	case <-ctx.Done():
		s.Close()
		err = <-served
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends all sessions and stops listening.
func (s *Server) Close() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	_ = s.http.Close() // not the sessions' connections, of which it knows nothing
	_ = s.listener.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.sessions.Wait()
	}()
	wait := func(d time.Duration) bool {
		select {
		case <-ended:
			return true
		case <-time.After(d):
			return false
		}
	}
	done := wait(stopGrace)
	for _, c := range s.conns.all() {
		c.cut()
	}
	if !done && !wait(cutGrace) {
		s.config.Log.Warn("sessions do not end; they are left behind", "after", stopGrace+cutGrace)
	}
}

// enter notes the begin of something that Close waits for. It reports false
// when it is too late to begin anything.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.sessions.Add(1)
	return true
}

// open begins the session whose token the URL has.
func (s *Server) open(w http.ResponseWriter, r *http.Request) {
	one, ok := s.tokens.take(r.PathValue("token"))
	if !ok || one.kind() != r.PathValue("kind") {
		http.Error(w, fmt.Sprintf("no such session: a URL is good for one, and for %v", tokenLife), http.StatusNotFound)
		return
	}
	if !s.enter() {
		http.Error(w, "davitd is stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.Done()
	ctx, cancel := whileConnected(r.Context())
	defer cancel()
	begun := time.Now()
	one.serve(w, r.WithContext(ctx), s)
	one.log(s.config.Log.With("took", time.Since(begun).Round(time.Millisecond)))
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		// The library leaves connections open whose client opens no streams.
		time.AfterFunc(linger, func() { _ = c.Close() })
	}
}

// offer returns the URL of a session.
func (s *Server) offer(one session) (string, error) {
	token, err := s.tokens.add(one)
	if err != nil {
		return "", err
	}
	return s.base + "/" + one.kind() + "/" + token, nil
}
