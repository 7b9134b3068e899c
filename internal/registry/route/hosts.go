package route

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/net/http/httpguts"

	"github.com/davit-runtime/davit/internal/fault"
)

// A hostTable is what hosts.toml says of one host.
//
// containerd: docs/hosts.md; rewrite is what k3s and RKE2 add to it.
type hostTable struct {
	Capabilities []string          `toml:"capabilities"`
	CA           any               `toml:"ca"`     // string or []string
	Client       any               `toml:"client"` // string, []string or [][2]string
	SkipVerify   *bool             `toml:"skip_verify"`
	Header       map[string]any    `toml:"header"` // string or []string
	OverridePath bool              `toml:"override_path"`
	DialTimeout  string            `toml:"dial_timeout"`
	Rewrite      map[string]string `toml:"rewrite"` // from regular expressions of repositories
}

type hostsFile struct {
	hostTable
	Server string               `toml:"server"`
	Host   map[string]hostTable `toml:"host"`
}

// hostPaths returns where a host's directory is in one like certs.d: "_port_"
// is for systems that have no ":" in names.
func hostPaths(root, host string) []string {
	if root == "" {
		return nil
	}
	var all []string
	if name, port, err := net.SplitHostPort(host); err == nil {
		all = append(all, filepath.Join(root, name+"_"+port+"_"))
	}
	return append(all, filepath.Join(root, host), filepath.Join(root, "_default"))
}

// hostDir finds the directory about a host: the first of its own, else the
// first for all hosts. special says that it is of its own.
func hostDir(roots []string, host string) (dir string, special bool) {
	if host == "" || strings.ContainsRune(host, '/') || strings.HasPrefix(host, ".") {
		return "", false
	}
	for _, root := range roots {
		for _, d := range hostPaths(root, host) {
			if _, err := os.Stat(d); err != nil {
				continue
			}
			if filepath.Base(d) != "_default" {
				return d, true
			}
			if dir == "" {
				dir = d
			}
		}
	}
	return dir, false
}

// hostsEndpoints reads a host's directory. special says that it is about this
// registry alone, so that its "server" is this registry.
func hostsEndpoints(named reference.Named, domain, dir string, special bool) ([]Endpoint, error) {
	file := filepath.Join(dir, "hosts.toml")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		e := home(named, domain)
		err := certificates(&e, dir)
		return []Endpoint{e}, err
	}
	if err != nil {
		return nil, fault.New(fault.Precondition, "", "%w", err)
	}
	var f hostsFile
	doc, err := decode(file, data, &f)
	if err != nil {
		return nil, err
	}
	h := hosts{named: named, domain: domain, dir: dir, doc: doc}
	var all []Endpoint
	for _, server := range doc.keys("host") {
		e, err := h.endpoint(server, f.Host[server], "host", server)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	server := f.Server
	if server == "" {
		f.Capabilities = nil // the registry itself can do everything
		server = addressOf(domain)
	}
	e, err := h.endpoint(server, f.hostTable)
	if err != nil {
		return nil, err
	}
	e.Home = e.Home || special
	if f.Server == "" && !f.hostTable.tls() {
		e.Scheme = "" // as for registries of which nothing is said
	}
	return append(all, e), nil
}

func (t hostTable) tls() bool { return t.CA != nil || t.Client != nil || t.SkipVerify != nil }

// hosts is a table of a hosts.toml that is being read.
type hosts struct {
	named       reference.Named
	domain, dir string
	doc         *document
	at          []string // where the table is
	settings    []Setting
}

func (h *hosts) key(k ...string) []string { return append(h.at[:len(h.at):len(h.at)], k...) }

func (h *hosts) bad(key, format string, args ...any) error {
	return h.doc.bad(key+" "+format, args, h.key(key)...)
}

// note keeps a setting to show it.
func (h *hosts) note(value string, key ...string) {
	if _, ok := h.doc.lines[path(h.key(key...)...)]; ok {
		h.settings = append(h.settings, Setting{Key: strings.Join(key, "."), Value: value, Source: h.doc.at(h.key(key...)...)})
	}
}

// endpoint makes one of a table.
func (h hosts) endpoint(server string, t hostTable, at ...string) (Endpoint, error) {
	h.at, h.settings = at, nil
	if !strings.HasPrefix(server, "http") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		where := at
		if len(at) == 0 {
			where = []string{"server"}
		}
		return Endpoint{}, h.doc.bad("the server is not as https://mirror.example/path", nil, where...)
	}
	e := Endpoint{
		Scheme: u.Scheme, Address: addressOf(u.Host), Path: apiPath(u.Path, t.OverridePath), Repository: reference.Path(h.named),
		Home: means(h.domain, u.Host), Pull: true, Resolve: true,
	}
	if !e.Home {
		e.Namespace = h.domain
	}
	switch _, named := h.doc.lines["server"]; {
	case len(at) > 0:
		h.settings = append(h.settings, Setting{Key: "host", Value: shown(u), Source: h.doc.at(at...)})
	case named:
		h.note(shown(u), "server")
	default:
		h.settings = append(h.settings, Setting{Key: "server", Value: e.Address, Source: "default"})
	}
	for _, read := range []func(*Endpoint, hostTable) error{h.abilities, h.header, h.tls, h.rewrite} {
		if err := read(&e, t); err != nil {
			return Endpoint{}, err
		}
	}
	e.Settings = h.settings
	return e, nil
}

// shown is a URL without what may be secret in it.
func shown(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

func (h *hosts) abilities(e *Endpoint, t hostTable) error {
	if len(t.Capabilities) > 0 {
		e.Pull, e.Resolve = false, false
		for _, c := range t.Capabilities {
			switch strings.ToLower(c) {
			case "pull":
				e.Pull = true
			case "resolve":
				e.Resolve = true
			case "push", "referrers": // which davit does not do
			default:
				return h.bad("capabilities", "%q is not one of pull, resolve, push, referrers", c)
			}
		}
		h.note(strings.Join(t.Capabilities, ", "), "capabilities")
	}
	if t.OverridePath {
		h.note("true", "override_path")
	}
	if t.DialTimeout != "" {
		d, err := time.ParseDuration(t.DialTimeout)
		if err != nil || d <= 0 {
			return h.bad("dial_timeout", "%q is not a time as 30s", t.DialTimeout)
		}
		e.Dial = d
		h.note(t.DialTimeout, "dial_timeout")
	}
	return nil
}

func (h *hosts) header(e *Endpoint, t hostTable) error {
	for _, name := range h.doc.keys(h.key("header")...) {
		values, ok := texts(t.Header[name])
		if !ok {
			return h.bad("header", "%q is neither a text nor a list of texts", name)
		}
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return h.bad("header", "%q, or its value, is none of HTTP", name)
		}
		if e.Header == nil {
			e.Header = http.Header{}
		}
		e.Header[http.CanonicalHeaderKey(name)] = values
		h.note("(not shown)", "header", name)
	}
	return nil
}

func (h *hosts) tls(e *Endpoint, t hostTable) error {
	if t.SkipVerify != nil {
		e.TLS.SkipVerify = *t.SkipVerify
		h.note(fmt.Sprint(*t.SkipVerify), "skip_verify")
	}
	if t.CA != nil {
		files, ok := texts(t.CA)
		if !ok {
			return h.bad("ca", "is neither a path nor a list of paths")
		}
		for _, f := range files {
			e.TLS.CAs = append(e.TLS.CAs, h.absolute(f))
		}
		h.note(strings.Join(e.TLS.CAs, ", "), "ca")
	}
	if t.Client != nil {
		pairs, ok := h.pairs(t.Client)
		if !ok {
			return h.bad("client", "is neither a path, nor a list of paths, nor a list of pairs of them")
		}
		e.TLS.Pairs = pairs
		h.note(showPairs(pairs), "client")
	}
	// As in containerd: with TLS settings, https is tried at a port that may be either.
	if _, port, _ := net.SplitHostPort(e.Address); e.Scheme == "http" && t.tls() && port != "80" {
		e.Scheme, e.Plain = "https", true
	}
	return nil
}

func showPairs(pairs [][2]string) string {
	var all []string
	for _, p := range pairs {
		all = append(all, strings.TrimSuffix(p[0]+" "+p[1], " "))
	}
	return strings.Join(all, ", ")
}

func (h *hosts) pairs(client any) ([][2]string, bool) {
	if file, ok := client.(string); ok {
		return [][2]string{{h.absolute(file), ""}}, true
	}
	list, ok := client.([]any)
	if !ok {
		return nil, false
	}
	var pairs [][2]string
	for _, entry := range list {
		files, ok := texts(entry)
		if _, single := entry.(string); !ok || !single && len(files) != 2 {
			return nil, false
		}
		pair := [2]string{h.absolute(files[0]), ""}
		if len(files) == 2 && files[1] != "" {
			pair[1] = h.absolute(files[1])
		}
		pairs = append(pairs, pair)
	}
	return pairs, true
}

// rewrite changes the repository by the first expression that it matches.
func (h *hosts) rewrite(e *Endpoint, t hostTable) error {
	for _, pattern := range h.doc.keys(h.key("rewrite")...) {
		here := h.key("rewrite", pattern)
		re, err := regexp.Compile(pattern)
		if err != nil {
			return h.doc.bad("rewrite: %w", []any{err}, here...)
		}
		if !re.MatchString(e.Repository) {
			continue
		}
		changed := re.ReplaceAllString(e.Repository, t.Rewrite[pattern])
		if _, err := reference.ParseNamed("registry.invalid/" + changed); err != nil {
			return h.doc.bad("rewrite makes %q of the repository %s, which is no name", []any{changed, e.Repository}, here...)
		}
		e.Repository = changed
		h.note(pattern+" → "+t.Rewrite[pattern], "rewrite", pattern)
		return nil
	}
	return nil
}

func (h *hosts) absolute(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(h.dir, file)
}

// texts reads a string, or a list of strings.
func texts(v any) ([]string, bool) {
	if s, ok := v.(string); ok {
		return []string{s}, true
	}
	list, ok := v.([]any)
	if !ok {
		return nil, false
	}
	all := make([]string, 0, len(list))
	for _, entry := range list {
		s, ok := entry.(string)
		if !ok {
			return nil, false
		}
		all = append(all, s)
	}
	return all, true
}

// certificates takes what lies in a host's directory in Docker's manner: *.crt
// are authorities, *.cert and *.key the client's. A directory that is not
// there has none.
func certificates(e *Endpoint, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
			return nil
		}
		return fault.New(fault.Precondition, "", "%w", err)
	}
	for _, entry := range entries {
		file := filepath.Join(dir, entry.Name())
		switch filepath.Ext(file) {
		case ".crt":
			e.TLS.CAs = append(e.TLS.CAs, file)
			e.Settings = append(e.Settings, Setting{Key: "ca", Value: file, Source: dir})
		case ".cert":
			pair := [2]string{file, ""}
			if key := strings.TrimSuffix(file, ".cert") + ".key"; exists(key) {
				pair[1] = key
			}
			e.TLS.Pairs = append(e.TLS.Pairs, pair)
			e.Settings = append(e.Settings, Setting{Key: "client", Value: showPairs([][2]string{pair}), Source: dir})
		}
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
