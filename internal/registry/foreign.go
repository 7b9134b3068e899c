package registry

import (
	"context"
	"io"
	"net/url"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// maxForeign is how many places of those that a blob's descriptor names are asked.
const maxForeign = 4

// openForeign opens a blob that the registry has not got, for why, at the places
// that its descriptor names: layers that must not be distributed are there. No
// credentials go there, and no header of the configuration's. From then on the
// blob is sought there only.
//
// image-spec: descriptor.md, "urls".
func (r *Repository) openForeign(ctx context.Context, d imagespec.Descriptor, turn bool, why error) (io.ReadCloser, error) {
	f := &Repository{client: r.client, named: r.named, lies: map[lie]bool{}}
	for _, text := range d.URLs[:min(len(d.URLs), maxForeign)] {
		e, err := r.client.foreign(text, r.path())
		if err != nil {
			return nil, fault.New(fault.KindOf(err), "", "%w; before that: %w", err, why)
		}
		f.endpoints = append(f.endpoints, e)
	}
	r.mu.Lock()
	if other := r.foreign[d.Digest]; other != nil {
		f = other
	} else {
		r.foreign[d.Digest] = f
	}
	r.mu.Unlock()
	d.URLs = nil
	blob, err := f.open(ctx, d, turn)
	if err != nil {
		err = fault.New(fault.KindOf(err), "", "%w; before that: %w", err, why)
	}
	return blob, err
}

// elsewhere returns who is asked for a blob: others than this repository if the
// registry has not got it.
func (r *Repository) elsewhere(d digest.Digest) *Repository {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.foreign[d]; f != nil {
		return f
	}
	return r
}

// foreign is the endpoint that has one blob, of the repository, at a URL. As
// with redirects, what has a digest may come from anywhere, but not without TLS
// where nothing allows that.
func (c *Client) foreign(text, repository string) (*endpoint, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		where := "no URL"
		if err == nil {
			where = u.Scheme + "://" + u.Host // the rest may be secret
		}
		return nil, fault.New(fault.Unknown, "", "the manifest names an unusable place for a layer: %.100q", where)
	}
	at, err := c.files.Foreign(u.Host)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "http" && at.Scheme != "http" {
		return nil, fault.New(fault.Unknown, "", "the manifest names a place for a layer at %s without TLS: refused, unless plain_http is set for that host", u.Host)
	}
	at.Scheme, at.Repository, at.Pull = u.Scheme, repository, true
	e := &endpoint{Endpoint: at, exact: u.String()}
	e.token.busy = make(chan struct{}, 1)
	e.host, err = c.host(&e.Endpoint)
	return e, err
}
