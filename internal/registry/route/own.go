package route

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/distribution/reference"

	"github.com/davit-runtime/davit/internal/fault"
)

// ownHosts is the table registries of davitd's own configuration.
type ownHosts struct {
	hosts map[string]Host
	doc   *document // nil if it is not from a file
}

// readOwn returns what the file says. While it is broken that is what it said
// before: so it is with all else that davitd takes from it.
func (f *Files) readOwn() ownHosts {
	o := ownHosts{hosts: f.config.Hosts}
	if f.config.File == "" {
		return o
	}
	data, err := os.ReadFile(f.config.File)
	if errors.Is(err, fs.ErrNotExist) {
		return o
	}
	var file struct {
		Registries map[string]Host `toml:"registries"`
	}
	if err == nil {
		o.doc, err = decode(f.config.File, data, &file)
	}
	if err != nil {
		if last := f.own.Load(); last != nil {
			return *last
		}
		return o
	}
	o.hosts = file.Registries
	f.own.Store(&o)
	return o
}

func (o ownHosts) at(keys ...string) string {
	if o.doc == nil {
		return "registries"
	}
	return o.doc.at(append([]string{"registries"}, keys...)...)
}

func (o ownHosts) endpoints(named reference.Named, domain string) ([]Endpoint, error) {
	var all []Endpoint
	for _, mirror := range o.hosts[domain].Endpoints {
		from := o.at(domain, "endpoints")
		scheme, rest, found := strings.Cut(mirror, "://")
		if !found {
			scheme, rest = "", mirror
		}
		address, prefix, _ := strings.Cut(rest, "/")
		if at := strings.LastIndexByte(address, '@'); at >= 0 || address == "" || (found && scheme != "http" && scheme != "https") {
			return nil, fault.New(fault.Precondition, "", "%s: a mirror of %s is not as https://mirror.example/path or mirror.example:5000", from, domain)
		}
		all = append(all, Endpoint{
			Scheme: scheme, Address: address, Path: apiPath(prefix, false), Repository: reference.Path(named), Namespace: domain,
			Home: means(domain, address), Pull: true, Resolve: true,
			Settings: []Setting{{Key: "endpoints", Value: mirror, Source: from}},
		})
	}
	return append(all, home(named, domain)), nil
}

// about returns by which name an endpoint's host stands in the table: by its
// own, or by that of the registry that it is.
func (o ownHosts) about(e *Endpoint, domain string) (key string, ok bool) {
	if _, ok := o.hosts[e.Address]; ok {
		return e.Address, true
	}
	_, ok = o.hosts[domain]
	return domain, ok && means(domain, e.Address)
}

// secure fills in what is said of a host.
func (o ownHosts) secure(e *Endpoint, host string) {
	own := o.hosts[host]
	note := func(key, value string) {
		e.Settings = append(e.Settings, Setting{Key: key, Value: value, Source: o.at(host, key)})
	}
	if own.PlainHTTP {
		note("plain_http", "true")
	}
	if own.SkipVerify {
		e.TLS.SkipVerify = true
		note("skip_verify", "true")
	}
	if own.CAFile != "" {
		e.TLS.CAs = []string{own.CAFile}
		note("ca_file", own.CAFile)
	}
}

// apiPath is the path of an API: what is configured, with "/v2" behind it
// unless it says that it is whole.
func apiPath(configured string, whole bool) string {
	p := strings.Trim(configured, "/")
	if p != "" {
		p = "/" + p
	}
	if whole || p == "/v2" || strings.HasSuffix(p, "/v2") {
		return p
	}
	return p + "/v2"
}
