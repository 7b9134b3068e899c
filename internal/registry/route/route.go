package route

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"

	"github.com/davit-runtime/davit/internal/fault"
)

// Config names the files. The zero value reads none.
type Config struct {
	// File is davitd's own configuration, of which the table registries is
	// read; Hosts is that table for those who have no file.
	File  string
	Hosts map[string]Host

	// HostsDirs are directories as containerd's certs.d, the first first; what
	// HOST's directory in one of them is like is in containerd's docs/hosts.md.
	HostsDirs []string
	// Conf is registries.conf; files *.conf of the directory Conf+".d" change
	// it. containers-registries.conf(5), containers-registries.conf.d(5).
	Conf string
	// CertDirs are directories with certificates as containers-certs.d(5) has
	// them, for hosts that nothing else gives any.
	CertDirs []string
}

// A Host is how davitd's own configuration says that a registry, or a mirror,
// is spoken to.
type Host struct {
	// Endpoints are the registry's mirrors, asked in order before the registry
	// itself: "https://host[:port][/path]" or "host[:port]".
	Endpoints  []string `toml:"endpoints"`
	PlainHTTP  bool     `toml:"plain_http"`  // http; loopback hosts get it without being told
	SkipVerify bool     `toml:"skip_verify"` // https with any certificate
	CAFile     string   `toml:"ca_file"`     // PEM file of authorities trusted besides the system's
}

// A Setting is one value that counts, and where it comes from: "file:line", or
// "default".
type Setting struct {
	Key, Value, Source string
}

// A Route is what one full name of an image leads to.
type Route struct {
	Named     reference.Named // with a tag or a digest
	Short     *Setting        // what made this of a short name; nil if it was none
	Blocked   *Setting        // what forbids it; nil if nothing does
	Endpoints []Endpoint      // in the order in which they are asked
}

// An Endpoint is one place to ask.
type Endpoint struct {
	Scheme     string // "https" or "http"
	Plain      bool   // http where https is not spoken
	Address    string // host[:port]
	Path       string // of the API: "/v2", unless told otherwise
	Repository string // what the image is called there
	Namespace  string // of a mirror that is told whose images are wanted; else empty

	Home    bool // it is the registry that the name means: credentials go there
	Pull    bool // may be asked for what has a digest
	Resolve bool // may be asked what a tag means

	TLS    TLS
	Header http.Header   // sent with each request; mostly secret
	Dial   time.Duration // limit for connecting; 0: the usual one
	Proxy  *url.URL      // nil: as the environment says

	Settings []Setting // all that was said of it
}

// TLS is how a host is made sure of. The files are not read here.
type TLS struct {
	CAs        []string
	Pairs      [][2]string // certificates and keys of the client; a key may be in its certificate's file, and is "" then
	SkipVerify bool
}

func (t TLS) set() bool { return len(t.CAs) > 0 || len(t.Pairs) > 0 || t.SkipVerify }

// URL returns where a thing of the repository is, "manifests/latest" say.
func (e *Endpoint) URL(scheme, what string) string {
	u := scheme + "://" + e.Address + e.Path + "/" + e.Repository + "/" + what
	if e.Namespace != "" {
		u += "?ns=" + url.QueryEscape(e.Namespace)
	}
	return u
}

// Files answers from the files of a Config. Safe for concurrent use.
type Files struct {
	config Config
	short  atomic.Pointer[names]    // as last read
	own    atomic.Pointer[ownHosts] // as last read when it could be
}

// New returns Files. It reads nothing.
func New(config Config) *Files { return &Files{config: config} }

// Routes reads the files and returns what ref may mean, in order. It is one
// route, unless ref is a short name for which several registries are to be
// searched. A route that is blocked is among them, without endpoints.
func (f *Files) Routes(ref string) ([]Route, error) {
	s, err := f.read()
	if err != nil {
		return nil, err
	}
	f.short.Store(&s.conf.names)
	candidates, err := s.conf.names.candidates(ref)
	if err != nil {
		return nil, err
	}
	routes := make([]Route, 0, len(candidates))
	for _, c := range candidates {
		r, err := s.route(c.Named)
		if err != nil {
			return nil, err
		}
		r.Short = c.From
		routes = append(routes, r)
	}
	return routes, nil
}

// Route is Routes for a full name.
func (f *Files) Route(named reference.Named) (Route, error) {
	s, err := f.read()
	if err != nil {
		return Route{}, err
	}
	f.short.Store(&s.conf.names)
	return s.route(named)
}

// Names returns what ref may mean, by the files as they were when they were
// last read. It is for looking things up that are there: short names that the
// files no longer explain are taken as Docker takes them.
func (f *Files) Names(ref string) ([]reference.Named, error) {
	short := f.short.Load()
	if short == nil {
		short = &names{}
		if s, err := f.read(); err == nil {
			short = &s.conf.names
		}
		f.short.CompareAndSwap(nil, short)
	}
	candidates, err := short.candidates(ref)
	if err != nil {
		named, parseErr := parse(ref)
		if parseErr != nil {
			return nil, parseErr
		}
		return []reference.Named{named}, nil
	}
	all := make([]reference.Named, 0, len(candidates))
	for _, c := range candidates {
		all = append(all, c.Named)
	}
	return all, nil
}

// parse reads a reference as Docker does: "busybox" is
// docker.io/library/busybox:latest.
func parse(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "image reference %q: %w", ref, err)
	}
	return reference.TagNameOnly(named), nil
}

// A snapshot is what the files say now, save those of certs.d, which are read
// for the one host that is wanted.
type snapshot struct {
	config Config
	own    ownHosts
	conf   *conf
}

func (f *Files) read() (*snapshot, error) {
	s := &snapshot{config: f.config, own: f.readOwn()}
	var err error
	if s.conf, err = readConf(f.config.Conf); err != nil {
		return nil, err
	}
	return s, nil
}

// TLS returns what is configured for a host that is no endpoint: a token server.
func (f *Files) TLS(address string) (TLS, error) {
	e, err := f.Foreign(address)
	return e.TLS, err
}

// Foreign returns how a host is spoken to that is no endpoint, but may have a
// layer: its scheme is http only where that is configured, or on loopback.
func (f *Files) Foreign(address string) (Endpoint, error) {
	s := &snapshot{config: f.config, own: f.readOwn()}
	e := Endpoint{Address: address}
	err := s.secure(&e, "")
	e.Scheme = s.scheme(&e, "")
	return e, err
}

func (s *snapshot) route(named reference.Named) (Route, error) {
	r := Route{Named: reference.TagNameOnly(named)}
	table := s.conf.find(r.Named)
	if table != nil && table.Blocked {
		r.Blocked = &Setting{Key: "blocked", Value: "true", Source: table.at("blocked")}
		return r, nil
	}
	domain := reference.Domain(named)
	endpoints, err := s.choose(r.Named, domain, table)
	if err != nil {
		return Route{}, err
	}
	for i := range endpoints {
		e := &endpoints[i]
		if !e.TLS.set() {
			if err := s.secure(e, domain); err != nil {
				return Route{}, err
			}
		}
		if e.Scheme == "" {
			e.Scheme = s.scheme(e, domain)
		}
	}
	r.Endpoints = endpoints
	return r, nil
}

// choose is the order of precedence of the package's comment.
func (s *snapshot) choose(named reference.Named, domain string, table *confTable) ([]Endpoint, error) {
	if own := s.own.hosts[domain]; len(own.Endpoints) > 0 {
		return s.own.endpoints(named, domain)
	}
	dir, special := hostDir(s.config.HostsDirs, domain)
	if special {
		return hostsEndpoints(named, domain, dir, true)
	}
	if table != nil {
		return table.endpoints(named)
	}
	if dir != "" {
		return hostsEndpoints(named, domain, dir, false)
	}
	return []Endpoint{home(named, domain)}, nil
}

// home is the registry itself.
func home(named reference.Named, domain string) Endpoint {
	return Endpoint{
		Address: addressOf(domain), Path: "/v2", Repository: reference.Path(named), Home: true, Pull: true, Resolve: true,
		Settings: []Setting{{Key: "server", Value: addressOf(domain), Source: "default"}},
	}
}

var dockerHub = []string{"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// addressOf is where a registry is to be reached, by its name in references.
func addressOf(domain string) string {
	if domain == "docker.io" || domain == "index.docker.io" {
		return "registry-1.docker.io"
	}
	return domain
}

// means reports whether an address is that of the registry that a name means.
func means(domain, address string) bool {
	domain, address = strings.TrimSuffix(strings.ToLower(domain), ":443"), strings.TrimSuffix(strings.ToLower(address), ":443")
	return domain == address || slices.Contains(dockerHub, domain) && slices.Contains(dockerHub, address)
}

// scheme returns http for hosts configured so, and for loopback hosts unless
// TLS settings say that they speak it.
func (s *snapshot) scheme(e *Endpoint, domain string) string {
	name := e.Address
	if h, _, err := net.SplitHostPort(e.Address); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	ip := net.ParseIP(name)
	loopback := name == "localhost" || (ip != nil && ip.IsLoopback())
	own, _ := s.own.about(e, domain)
	if s.own.hosts[own].PlainHTTP || (loopback && !e.TLS.set() && !e.Plain) {
		return "http"
	}
	return "https"
}

// secure fills in the TLS settings that belong to the host itself.
func (s *snapshot) secure(e *Endpoint, domain string) error {
	if own, ok := s.own.about(e, domain); ok {
		s.own.secure(e, own)
	}
	if e.TLS.set() {
		return nil
	}
	for _, dir := range slices.Concat(s.config.HostsDirs, s.config.CertDirs) {
		for _, d := range hostPaths(dir, e.Address) {
			if err := certificates(e, d); err != nil || e.TLS.set() {
				return err
			}
		}
	}
	return nil
}
