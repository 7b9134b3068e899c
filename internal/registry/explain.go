package registry

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/registry/route"
)

// An Explanation says how one full name of an image would be pulled.
type Explanation struct {
	Name      string         // in full
	Short     *route.Setting // what made this of a short name; nil if it was none
	Blocked   *route.Setting // what forbids it; nil if nothing does
	Endpoints []Explained    // in the order in which they are asked
}

// Explained is one endpoint. Nothing in it is secret.
type Explained struct {
	URL       string // of the repository there: "https://host/v2/library/busybox"
	Plain     bool   // http if https is not spoken there
	Home      bool   // the registry that the name means: credentials go there
	Pull      bool   // may be asked for what has a digest
	Resolve   bool   // may be asked what a tag means
	Namespace string // whose images a mirror is told to be asked for
	Proxy     string // that is gone through, without its credentials; empty: none
	Settings  []route.Setting
	Answer    *Answer // nil: it was not asked
}

// An Answer is what an endpoint says of the image.
type Answer struct {
	Digest string // of what the name stands for there; empty if it is not there
	Err    string // why it cannot be pulled from there; empty if it can
	URL    string // that was asked
	Took   time.Duration
}

// Explain reads the files and says how ref would be pulled. With probe it asks
// each endpoint for the manifest, by HEAD and once, as a pull would.
func (c *Client) Explain(ctx context.Context, ref string, auth Auth, probe bool) ([]Explanation, error) {
	routes, err := c.files.Routes(ref)
	if err != nil {
		return nil, err
	}
	var all []Explanation
	var asking sync.WaitGroup
	for _, r := range routes {
		x := Explanation{Name: r.Named.String(), Short: r.Short, Blocked: r.Blocked, Endpoints: make([]Explained, len(r.Endpoints))}
		for i := range r.Endpoints {
			e := &r.Endpoints[i]
			x.Endpoints[i] = Explained{
				URL: e.Scheme + "://" + e.Address + e.Path + "/" + e.Repository, Plain: e.Plain, Home: e.Home,
				Pull: e.Pull, Resolve: e.Resolve, Namespace: e.Namespace, Settings: e.Settings, Proxy: c.proxyOf(e),
			}
			if probe {
				asking.Go(func() { x.Endpoints[i].Answer = c.probe(ctx, r, i, auth) })
			}
		}
		all = append(all, x)
	}
	asking.Wait()
	return all, nil
}

func (c *Client) proxyOf(e *route.Endpoint) string {
	req, err := http.NewRequest(http.MethodHead, e.URL(e.Scheme, ""), nil)
	if err != nil {
		return ""
	}
	u, err := c.proxy(e.Proxy)(req)
	if err != nil || u == nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// probe asks one endpoint of a route.
func (c *Client) probe(ctx context.Context, r route.Route, i int, auth Auth) *Answer {
	a := &Answer{}
	start := time.Now()
	one := r
	one.Endpoints = r.Endpoints[i : i+1]
	repo, err := c.repository(one, auth)
	if err != nil {
		a.Err = err.Error()
		return a
	}
	e := repo.endpoints[0]
	want, byDigest := wanted(r.Named)
	if !e.Pull || !byDigest && !e.Resolve {
		a.Err = "it is not asked for this: its capabilities do not allow it"
		return a
	}
	limit := c.config.Stall
	ctx, cancel := context.WithTimeoutCause(ctx, limit, unavailable("%s takes longer than %s", e.Address, limit))
	defer cancel()
	resp, err := repo.do(ctx, e, request{
		method: http.MethodHead, path: "manifests/" + want, what: "manifest " + want,
		header: http.Header{"Accept": acceptManifests}, once: true,
	})
	a.URL, a.Took = e.URL(e.scheme(), "manifests/"+want), time.Since(start)
	if err != nil {
		a.Err = err.Error()
		return a
	}
	_ = resp.Body.Close()
	if d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest")); err == nil {
		a.Digest = d.String()
	}
	return a
}

// wanted is what a name asks a repository for.
func wanted(named reference.Named) (what string, byDigest bool) {
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String(), true
	}
	if t, ok := named.(reference.Tagged); ok {
		return t.Tag(), false
	}
	return "latest", false
}
