package registry

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// A host is one address, spoken to in one way, with its connections.
type host struct {
	address string
	http    *http.Client
	slots   chan struct{} // of the address: for those who fetch blobs
	quiet   atomic.Int64  // until when it asked to be left alone, in Unix nanoseconds
}

// maxHosts is how many ways of speaking to hosts are kept; when certificates
// are changed, or hosts are named in their thousands, the rest is forgotten.
const maxHosts = 256

// host returns the host of an endpoint. Certificates are read each time: a new
// one counts for the next pull.
func (c *Client) host(e *route.Endpoint) (*host, error) {
	config, sum, err := tlsConfig(e.Address, e.TLS)
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%s %v %s %x", e.Address, e.Dial, e.Proxy, sum)
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[key]; h != nil {
		return h, nil
	}
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	if e.Dial > 0 {
		dialer.Timeout = e.Dial
	}
	slots := c.slots[e.Address]
	if slots == nil {
		slots = make(chan struct{}, c.config.Parallel)
		c.slots[e.Address] = slots
	}
	h := &host{
		address: e.Address,
		slots:   slots,
		http: &http.Client{CheckRedirect: checkRedirect, Transport: &http.Transport{
			Proxy:                  c.proxy(e.Proxy),
			DialContext:            dialer.DialContext,
			TLSClientConfig:        config,
			TLSHandshakeTimeout:    15 * time.Second,
			ResponseHeaderTimeout:  c.config.Stall,
			MaxResponseHeaderBytes: 256 << 10,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        30 * time.Second,
			DisableCompression:     true, // digests are of the bytes as stored
			ReadBufferSize:         64 << 10,
			// HTTP/1.1 only: with HTTP/2 all blobs of a host share one
			// connection, its window and its end.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}},
	}
	if len(c.hosts) >= maxHosts {
		for key, old := range c.hosts {
			old.http.CloseIdleConnections()
			delete(c.hosts, key)
		}
	}
	c.hosts[key] = h
	return h, nil
}

// tlsConfig reads the files of the TLS settings of a host; sum tells whether
// their content has changed.
func tlsConfig(address string, t route.TLS) (config *tls.Config, sum [sha256.Size]byte, err error) {
	config = &tls.Config{InsecureSkipVerify: t.SkipVerify} // by the administrator's choice
	hash := sha256.New()
	_, _ = fmt.Fprintf(hash, "%v\n", t)
	read := func(file string) []byte {
		data, readErr := os.ReadFile(file)
		if readErr != nil && err == nil {
			err = fault.New(fault.Precondition, "", "certificates for %s: %w", address, readErr)
		}
		_, _ = fmt.Fprintf(hash, "%d\n%s", len(data), data)
		return data
	}
	for _, file := range t.CAs {
		if config.RootCAs == nil {
			if config.RootCAs, _ = x509.SystemCertPool(); config.RootCAs == nil {
				config.RootCAs = x509.NewCertPool()
			}
		}
		if pem := read(file); !config.RootCAs.AppendCertsFromPEM(pem) && err == nil {
			err = fault.New(fault.Precondition, "", "certificates for %s: no certificate in %s", address, file)
		}
	}
	for _, pair := range t.Pairs {
		certificate, keyFile := read(pair[0]), pair[0]
		key := certificate
		if pair[1] != "" {
			keyFile = pair[1]
			key = read(keyFile)
		}
		both, pairErr := tls.X509KeyPair(certificate, key)
		if pairErr != nil && err == nil {
			err = fault.New(fault.Precondition, "", "certificates for %s: %s with the key of %s: %w", address, pair[0], keyFile, pairErr)
		}
		config.Certificates = append(config.Certificates, both)
	}
	if err != nil {
		return nil, sum, err
	}
	return config, [sha256.Size]byte(hash.Sum(nil)), nil
}

// leaveAlone remembers that a host asked for it.
func (h *host) leaveAlone(d time.Duration) { h.quiet.Store(time.Now().Add(d).UnixNano()) }

// wait waits until the host may be asked again.
func (h *host) wait(ctx context.Context) error {
	if d := time.Until(time.Unix(0, h.quiet.Load())); d > 0 {
		return sleep(ctx, d)
	}
	return nil
}

// checkRedirect lets a redirect go anywhere but out of TLS, and credentials
// nowhere: net/http would send the header on to subdomains and to other ports,
// and a form to whoever is named. Headers of the configuration are for the host
// that it names.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("stopped after %d redirects", len(via))
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %.20q refused", req.URL.Scheme)
	}
	if origin(req.URL) == origin(via[0].URL) {
		return nil
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return fmt.Errorf("redirect of credentials to %s refused", req.URL.Host)
	}
	for name := range req.Header {
		switch name {
		case "Accept", "Range", "User-Agent":
		default:
			req.Header.Del(name)
		}
	}
	return nil
}

// origin is who answers for a URL. RFC 6454, section 4.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
