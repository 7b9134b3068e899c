package registry

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http/httpproxy"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// Config says how to reach registries. The zero value works.
type Config struct {
	Route route.Config // which files say where to ask

	// Stall is how long a registry may bring next to nothing before the next
	// endpoint is asked, or the pull fails; 60 s if zero.
	Stall time.Duration
	// MinRate is how many bytes a second are not next to nothing; 2048 if zero.
	MinRate int64
	// Parallel is how many blobs one host is asked for at a time, 3 if zero.
	Parallel int
	// Ahead is how many pieces of large blobs are fetched ahead of what is read
	// at a time, each with a connection and 4 MiB of its own; 4 if zero, none
	// if negative.
	Ahead int
	// UserAgent is sent with each request, "davit" if empty.
	UserAgent string
	// Proxy says through which proxy to go; as the environment does if nil.
	Proxy func(*url.URL) (*url.URL, error)
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
	files      *route.Files
	retryDelay time.Duration // before the first retry; doubles
	retryLimit time.Duration // the longest Retry-After that is obeyed
	piece      int64         // bytes that are fetched ahead with one request
	large      int64         // bytes from which on a blob is fetched so
	ahead      chan struct{} // one for each piece being fetched or kept
	buffers    sync.Pool     // of *[]byte, for those

	mu    sync.Mutex
	hosts map[string]*host // by address and how it is spoken to
	slots map[string]chan struct{}
}

// New returns a client. It opens no connection and reads no file: what is
// wrong with one is an error of the pull that needs it.
func New(config Config) *Client {
	if config.Stall == 0 {
		config.Stall = time.Minute
	}
	if config.MinRate == 0 {
		config.MinRate = 2 << 10
	}
	if config.Parallel == 0 {
		config.Parallel = 3
	}
	if config.Ahead == 0 {
		config.Ahead = 4
	}
	if config.UserAgent == "" {
		config.UserAgent = "davit"
	}
	if config.Proxy == nil {
		config.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	}
	return &Client{
		config:     config,
		files:      route.New(config.Route),
		retryDelay: 250 * time.Millisecond,
		retryLimit: time.Minute,
		piece:      4 << 20,
		large:      32 << 20,
		ahead:      make(chan struct{}, max(config.Ahead, 0)),
		hosts:      map[string]*host{},
		slots:      map[string]chan struct{}{},
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

// Names returns the full names that ref may mean, each with a tag or a digest,
// by the files as they were at the last pull. More than one are the candidates
// for a short name, in order.
func (c *Client) Names(ref string) ([]reference.Named, error) { return c.files.Names(ref) }

// Find returns the repository that ref means, "busybox" say. For a short name
// that several registries may have they are asked, in order, and the first that
// has it is meant. Its Named is the name in full.
func (c *Client) Find(ctx context.Context, ref string, auth Auth) (*Repository, error) {
	routes, err := c.files.Routes(ref)
	if err != nil {
		return nil, err
	}
	var before []string
	for i, r := range routes {
		repo, err := c.repository(r, auth)
		if err == nil && len(routes) > 1 {
			what, _ := wanted(r.Named)
			_, err = repo.Manifest(ctx, what)
		}
		if err == nil {
			return repo, nil
		}
		last := i == len(routes)-1
		if last && len(before) > 0 {
			err = fault.New(fault.KindOf(err), "", "%w; the short name %q was searched for before: %s", err, ref, strings.Join(before, "; "))
		}
		if last || ctx.Err() != nil {
			return nil, err
		}
		before = append(before, err.Error())
	}
	return nil, fault.New(fault.NotFound, "", "%q means nothing", ref)
}

// Repository returns the repository that named is in.
func (c *Client) Repository(named reference.Named, auth Auth) (*Repository, error) {
	r, err := c.files.Route(named)
	if err != nil {
		return nil, err
	}
	return c.repository(r, auth)
}

func (c *Client) repository(r route.Route, auth Auth) (*Repository, error) {
	if r.Blocked != nil {
		return nil, fault.New(fault.Precondition, "", "pulling %s is blocked: %s", r.Named, r.Blocked.Source)
	}
	// Who gave credentials with a short name took it to be of Docker Hub, as
	// kubelets do; they are for nobody else.
	if r.Short != nil && reference.Domain(r.Named) != "docker.io" {
		auth = Auth{}
	}
	repo := &Repository{client: c, auth: auth, named: r.Named, lies: map[lie]bool{}, foreign: map[digest.Digest]*Repository{}}
	for i := range r.Endpoints {
		e := &endpoint{Endpoint: r.Endpoints[i]}
		e.token.busy = make(chan struct{}, 1)
		h, err := c.host(&e.Endpoint)
		if err != nil {
			return nil, err
		}
		e.host = h
		repo.endpoints = append(repo.endpoints, e)
	}
	return repo, nil
}

// proxy is that of a request: the endpoint's own, else the environment's.
func (c *Client) proxy(own *url.URL) func(*http.Request) (*url.URL, error) {
	if own != nil {
		return http.ProxyURL(own)
	}
	return func(req *http.Request) (*url.URL, error) { return c.config.Proxy(req.URL) }
}
