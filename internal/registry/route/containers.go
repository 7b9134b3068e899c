package route

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/davit-runtime/davit/internal/fault"
)

// confEndpoint is what registries.conf says of one place.
type confEndpoint struct {
	Location       string `toml:"location"`
	Insecure       bool   `toml:"insecure"`
	Proxy          string `toml:"proxy"`
	PullFromMirror string `toml:"pull-from-mirror"` // all, digest-only or tag-only; of mirrors
}

// confTable is one [[registry]].
type confTable struct {
	Prefix             string         `toml:"prefix"`
	Location           string         `toml:"location"`
	Insecure           bool           `toml:"insecure"`
	Proxy              string         `toml:"proxy"`
	PullFromMirror     string         `toml:"pull-from-mirror"` // not allowed here
	Blocked            bool           `toml:"blocked"`
	MirrorByDigestOnly bool           `toml:"mirror-by-digest-only"`
	Mirrors            []confEndpoint `toml:"mirror"`

	doc   *document
	place []string // of the table in it
}

// confFile is one file, of version 2 or of version 1.
//
// containers-registries.conf(5).
type confFile struct {
	Registry    []confTable       `toml:"registry"`
	Unqualified []string          `toml:"unqualified-search-registries"`
	Mode        string            `toml:"short-name-mode"`
	Aliases     map[string]string `toml:"aliases"`

	V1 struct {
		Search   confList `toml:"search"`
		Insecure confList `toml:"insecure"`
		Block    confList `toml:"block"`
	} `toml:"registries"`
}

type confList struct {
	Registries []string `toml:"registries"`
}

// conf is registries.conf with what registries.conf.d makes of it.
type conf struct {
	tables map[string]*confTable // by prefix
	names  names
}

func readConf(file string) (*conf, error) {
	c := &conf{tables: map[string]*confTable{}, names: names{aliases: map[string]Setting{}}}
	if file == "" {
		return c, nil
	}
	if err := c.add(file, true); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(file + ".d") // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Precondition, "", "%w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() || filepath.Ext(entry.Name()) != ".conf" {
			continue
		}
		if err := c.add(filepath.Join(file+".d", entry.Name()), false); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// add reads one more file, whose tables replace those of the same prefix. One
// that is not there, or went just now, has nothing.
func (c *conf) add(file string, main bool) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Precondition, "", "%w", err)
	}
	var f confFile
	doc, err := decode(file, data, &f)
	if err != nil {
		return err
	}
	if err := f.upgrade(doc, main); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i := range f.Registry {
		t := &f.Registry[i]
		if t.place == nil {
			t.place = []string{"registry", element(i)}
		}
		t.doc = doc
		if err := t.check(); err != nil {
			return err
		}
		if seen[t.Prefix] {
			continue // the first counts
		}
		seen[t.Prefix] = true
		c.tables[t.Prefix] = t
	}
	return c.names.add(&f, doc)
}

// upgrade makes version 2 of a file of version 1, which has no tables.
func (f *confFile) upgrade(doc *document, main bool) error {
	v1 := f.V1.Search.Registries != nil || f.V1.Insecure.Registries != nil || f.V1.Block.Registries != nil
	if !v1 {
		return nil
	}
	if !main || f.Registry != nil || f.Unqualified != nil {
		return doc.bad("is of version 1, which goes with nothing of version 2", nil, "registries")
	}
	at := map[string]int{}
	table := func(location, list string) *confTable {
		i, ok := at[location]
		if !ok {
			i = len(f.Registry)
			at[location] = i
			f.Registry = append(f.Registry, confTable{Location: location, place: []string{"registries", list, "registries"}})
		}
		return &f.Registry[i]
	}
	for _, location := range f.V1.Block.Registries {
		table(location, "block").Blocked = true
	}
	for _, location := range f.V1.Insecure.Registries {
		table(location, "insecure").Insecure = true
	}
	f.Unqualified = f.V1.Search.Registries
	return nil
}

// at returns where a key of the table stands, else where the table does.
func (t *confTable) at(key ...string) string {
	for n := len(key); n >= 0; n-- {
		if here := slices.Concat(t.place, key[:n]); t.doc.lines[path(here...)] > 0 {
			return t.doc.at(here...)
		}
	}
	return t.doc.file
}

func (t *confTable) bad(format string, args ...any) error { return t.doc.bad(format, args, t.place...) }

func (t *confTable) check() error {
	t.Prefix, t.Location = strings.TrimRight(t.Prefix, "/"), strings.TrimRight(t.Location, "/")
	wild := strings.HasPrefix(t.Prefix, "*.")
	if t.Prefix == "" {
		t.Prefix = t.Location
	}
	switch {
	case t.Prefix == "":
		return t.bad("has neither a prefix nor a location")
	case t.Location == "" && !wild:
		return t.bad("has no location; only a prefix as *.example.com goes without")
	case wild && strings.ContainsAny(t.Prefix, "/@:"):
		return t.bad("prefix %q: one with a * is as *.example.com", t.Prefix)
	case t.PullFromMirror != "":
		return t.bad("pull-from-mirror belongs to a mirror")
	}
	if err := t.checkEndpoint(confEndpoint{Location: t.Location, Proxy: t.Proxy}); err != nil {
		return err
	}
	for i := range t.Mirrors {
		m := &t.Mirrors[i]
		m.Location = strings.TrimRight(m.Location, "/")
		if err := t.checkEndpoint(*m); err != nil {
			return err
		}
		switch m.PullFromMirror {
		case "", "all", "digest-only", "tag-only":
		default:
			return t.bad("pull-from-mirror %q is not one of all, digest-only, tag-only", m.PullFromMirror)
		}
		if m.Location == "" {
			return t.bad("has a mirror without a location")
		}
		if t.MirrorByDigestOnly && m.PullFromMirror != "" {
			return t.bad("has both mirror-by-digest-only and pull-from-mirror")
		}
	}
	return nil
}

func (t *confTable) checkEndpoint(e confEndpoint) error {
	if strings.Contains(e.Location, "://") {
		return t.bad("a location is without http:// or https://")
	}
	if _, err := proxyURL(e.Proxy); err != nil {
		return t.bad("the proxy is not as http://proxy.example:3128")
	}
	return nil
}

func proxyURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return nil, errors.New("no proxy")
	}
	return u, nil
}

// find returns the table that an image's name falls under: that with the
// longest prefix. nil if there is none.
func (c *conf) find(named reference.Named) *confTable {
	var best *confTable
	for prefix, t := range c.tables {
		if matched(named.String(), prefix) >= 0 && (best == nil || len(prefix) > len(best.Prefix)) {
			best = t
		}
	}
	return best
}

// matched returns how much of a name a prefix is, -1 if it is none. It ends
// where a part of the name does.
func matched(name, prefix string) int {
	n := len(prefix)
	if rest, wild := strings.CutPrefix(prefix, "*"); wild {
		host, _, _ := strings.Cut(name, "/")
		i := strings.Index(host, rest)
		if i < 0 {
			return -1
		}
		n = i + len(rest)
	} else if !strings.HasPrefix(name, prefix) {
		return -1
	}
	if n == len(name) || strings.IndexByte(":/@", name[n]) >= 0 {
		return n
	}
	return -1
}

// endpoints returns the mirrors that are for such a reference, and the
// location at last.
func (t *confTable) endpoints(named reference.Named) ([]Endpoint, error) {
	_, digested := named.(reference.Digested)
	var all []Endpoint
	for i, m := range t.Mirrors {
		if t.MirrorByDigestOnly && !digested || m.PullFromMirror == "digest-only" && !digested || m.PullFromMirror == "tag-only" && digested {
			continue
		}
		e, err := t.endpoint(named, m, "mirror", element(i))
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	last := confEndpoint{Location: t.Location, Insecure: t.Insecure, Proxy: t.Proxy}
	e, err := t.endpoint(named, last)
	return append(all, e), err
}

func (t *confTable) endpoint(named reference.Named, c confEndpoint, at ...string) (Endpoint, error) {
	name := named.String()
	there := name
	if c.Location != "" {
		there = c.Location + name[matched(name, t.Prefix):]
	}
	moved, err := reference.ParseNamed(there)
	if err != nil {
		return Endpoint{}, t.bad("makes %q of %s: %w", there, name, err)
	}
	if _, what, _ := strings.Cut(moved.String(), moved.Name()); !strings.HasSuffix(name, what) || what == "" {
		return Endpoint{}, t.bad("makes another tag of %s, %q", name, there)
	}
	domain := reference.Domain(moved)
	e := Endpoint{
		Address: addressOf(domain), Path: "/v2", Repository: reference.Path(moved),
		Home: means(reference.Domain(named), domain), Pull: true, Resolve: true, Plain: c.Insecure,
	}
	e.TLS.SkipVerify = c.Insecure
	note := func(key, value string) {
		e.Settings = append(e.Settings, Setting{Key: key, Value: value, Source: t.at(append(slices.Clone(at), key)...)})
	}
	key := "location"
	if len(at) > 0 {
		key = "mirror location"
	}
	value := c.Location
	if value == "" {
		value = t.Prefix
	}
	e.Settings = append(e.Settings, Setting{Key: key, Value: value, Source: t.at(append(slices.Clone(at), "location")...)})
	if c.Insecure {
		note("insecure", "true")
	}
	if c.PullFromMirror != "" {
		note("pull-from-mirror", c.PullFromMirror)
	}
	if e.Proxy, _ = proxyURL(c.Proxy); e.Proxy != nil {
		note("proxy", shown(e.Proxy))
	}
	return e, nil
}
