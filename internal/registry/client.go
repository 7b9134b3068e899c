package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"

	"github.com/davit-runtime/davit/internal/fault"
)

// Config says how to reach registries. The zero value works.
type Config struct {
	// Hosts is keyed by a registry's name as it stands in references
	// ("docker.io", "ghcr.io", "registry.local:5000"), or by a mirror's host.
	Hosts map[string]HostConfig

	// Stall is how long a registry may bring next to nothing before the next
	// endpoint is asked, or the pull fails; 60 s if zero.
	Stall time.Duration
	// Parallel is how many blobs one host is asked for at a time, 3 if zero.
	Parallel int
	// UserAgent is sent with each request, "davit" if empty.
	UserAgent string
}

// HostConfig is about one host. Its TLS settings hold for that host alone,
// whether it is asked as a registry or as somebody's mirror.
type HostConfig struct {
	// Endpoints are the registry's mirrors, asked in order before the registry
	// itself: "https://host[:port][/path]" or "host[:port]". They are never
	// sent the caller's credentials, which were given for the registry.
	Endpoints  []string
	PlainHTTP  bool   // http; loopback hosts get it without being told
	SkipVerify bool   // https with any certificate
	CAFile     string // PEM file of authorities trusted besides the system's
}

// Auth is a caller's credentials. The zero value is anonymous.
type Auth struct {
	Username, Password string
	IdentityToken      string // a refresh token
	RegistryToken      string // a bearer token, sent as it is
}

// A Client reaches registries. Safe for concurrent use.
type Client struct {
	config     Config
	retryDelay time.Duration // before the first retry; doubles
	retryLimit time.Duration // the longest Retry-After that is obeyed

	mu    sync.Mutex
	hosts map[string]*host
}

// A host is one scheme and address, with its connections and its download slots.
type host struct {
	scheme, address string
	http            *http.Client
	slots           chan struct{}
}

// New returns a client. It opens no connection and reads no file: a missing
// CAFile is an error of the pull that needs it.
func New(config Config) *Client {
	if config.Stall == 0 {
		config.Stall = time.Minute
	}
	if config.Parallel == 0 {
		config.Parallel = 3
	}
	if config.UserAgent == "" {
		config.UserAgent = "davit"
	}
	return &Client{
		config:     config,
		retryDelay: 250 * time.Millisecond,
		retryLimit: time.Minute,
		hosts:      map[string]*host{},
	}
}

// Close drops idle connections. Transfers under way go on.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.http.CloseIdleConnections()
	}
}

// endpoints returns where to ask for a repository, in order.
func (c *Client) endpoints(named reference.Named) ([]*endpoint, error) {
	domain := reference.Domain(named)
	address := domain
	if domain == "docker.io" || domain == "index.docker.io" {
		address = "registry-1.docker.io"
	}
	var all []*endpoint
	for _, mirror := range c.config.Hosts[domain].Endpoints {
		e, err := c.mirror(mirror)
		if err != nil {
			return nil, err
		}
		e.query = "?ns=" + url.QueryEscape(domain)
		all = append(all, e)
	}
	settings, ok := c.config.Hosts[address]
	if !ok {
		settings = c.config.Hosts[domain]
	}
	h, err := c.host(schemeOf(address, settings), address, settings)
	if err != nil {
		return nil, err
	}
	return append(all, &endpoint{host: h, registry: true}), nil
}

func (c *Client) mirror(text string) (*endpoint, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = "", text
	}
	address, prefix, _ := strings.Cut(rest, "/")
	if address == "" || (scheme != "" && scheme != "http" && scheme != "https") {
		return nil, fault.New(fault.Invalid, "registry", "mirror %q is not an http or https address", text)
	}
	settings := c.config.Hosts[address]
	if scheme == "" {
		scheme = schemeOf(address, settings)
	}
	prefix = strings.Trim(prefix, "/")
	if prefix == "v2" {
		prefix = ""
	}
	if prefix != "" {
		prefix = "/" + prefix
	}
	h, err := c.host(scheme, address, settings)
	return &endpoint{host: h, prefix: prefix}, err
}

// schemeOf returns http for hosts configured so, and for loopback hosts unless
// TLS settings say that they speak it.
func schemeOf(address string, settings HostConfig) string {
	name := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	ip := net.ParseIP(name)
	loopback := name == "localhost" || (ip != nil && ip.IsLoopback())
	tlsWanted := settings.SkipVerify || settings.CAFile != ""
	if settings.PlainHTTP || (loopback && !tlsWanted) {
		return "http"
	}
	return "https"
}

func (c *Client) host(scheme, address string, settings HostConfig) (*host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := scheme + "://" + address
	if h := c.hosts[key]; h != nil {
		return h, nil
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: c.config.Stall,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true, // digests are of the bytes as stored
		ForceAttemptHTTP2:     true,
	}
	if settings.SkipVerify || settings.CAFile != "" {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: settings.SkipVerify} // by the administrator's choice
	}
	if settings.CAFile != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := os.ReadFile(settings.CAFile)
		if err != nil {
			return nil, fault.New(fault.Precondition, "registry", "certificates for %s: %w", address, err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Precondition, "registry", "certificates for %s: no certificate in %s", address, settings.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	h := &host{
		scheme:  scheme,
		address: address,
		http:    &http.Client{Transport: t, CheckRedirect: checkRedirect},
		slots:   make(chan struct{}, c.config.Parallel),
	}
	c.hosts[key] = h
	return h, nil
}

// checkRedirect lets a redirect go anywhere but out of TLS, and credentials
// nowhere: net/http would send the header on to subdomains and to other ports,
// and a form to whoever is named.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("stopped after %d redirects", len(via))
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s refused", req.URL.Scheme)
	}
	if origin(req.URL) == origin(via[0].URL) {
		return nil
	}
	if req.Method != http.MethodGet {
		return fmt.Errorf("redirect of credentials to %s refused", req.URL.Host)
	}
	req.Header.Del("Authorization")
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
