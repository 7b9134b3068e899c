package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// A Repository is one repository, seen with one caller's credentials. It holds
// the tokens got with them, so it should not outlive the call they came with.
// Safe for concurrent use.
type Repository struct {
	client    *Client
	auth      Auth
	named     reference.Named
	endpoints []*endpoint

	mu      sync.Mutex
	lies    map[lie]bool                  // who sent what it is not
	foreign map[digest.Digest]*Repository // blobs that are elsewhere only: where
}

type lie struct {
	endpoint int
	digest   digest.Digest
}

// An endpoint is a mirror, or the registry itself.
type endpoint struct {
	route.Endpoint
	host  *host
	exact string // the URL to ask, whatever is asked for; empty as a rule
	token authorization
	plain atomic.Bool           // https is not spoken there
	down  atomic.Pointer[error] // why it could not be used a moment ago
}

// Named is the full name that the repository was asked for by, with a tag or a
// digest.
func (r *Repository) Named() reference.Named { return r.named }

// Manifest fetches what a tag or a digest names. With a digest the content is
// verified; with a tag the result's Digest is computed from the content.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (*Manifest, error) {
	_, err := digest.Parse(tagOrDigest)
	byDigest := err == nil
	may := func(e *endpoint) bool { return e.Pull && (byDigest || e.Resolve) }
	var m *Manifest
	err = r.each(ctx, may, func(e *endpoint) (err error) {
		m, err = r.manifestFrom(ctx, e, tagOrDigest)
		return err
	})
	return m, err
}

func (r *Repository) manifestFrom(ctx context.Context, e *endpoint, tagOrDigest string) (*Manifest, error) {
	what := "manifest " + tagOrDigest
	limit := 2*r.client.config.Stall + r.client.retryLimit
	ctx, cancel := context.WithTimeoutCause(ctx, limit, unavailable("%s takes longer than %s to send %s", e.Address, limit, what))
	defer cancel()
	resp, err := r.do(ctx, e, request{path: "manifests/" + tagOrDigest, what: what, header: http.Header{"Accept": acceptManifests}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := r.readAll(ctx, e, resp.Body, what)
	if err != nil {
		return nil, err
	}
	if len(body) > maxManifest {
		return nil, fault.New(fault.Unknown, "", "%s: %s of repository %s is larger than %d bytes", e.Address, what, e.Repository, maxManifest)
	}
	got := digest.FromBytes(body)
	if want, err := digest.Parse(tagOrDigest); err == nil {
		if got = want.Algorithm().FromBytes(body); got != want {
			return nil, fault.New(fault.Unknown, "", "%s: manifest %s of repository %s has other content: its digest is %s", e.Address, want, e.Repository, got)
		}
	}
	return parseManifest(resp.Header.Get("Content-Type"), got, body)
}

// readAll reads a manifest, which has to come within the stall limit.
func (r *Repository) readAll(ctx context.Context, e *endpoint, body io.ReadCloser, what string) ([]byte, error) {
	limit := r.client.config.Stall
	stall := time.AfterFunc(limit, func() { _ = body.Close() })
	data, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if !stall.Stop() && err != nil && ctx.Err() == nil {
		return nil, unavailable("%s takes longer than %s to send %s", e.Address, limit, what)
	}
	if err != nil {
		return nil, transportError(ctx, e.Address, err)
	}
	return data, nil
}

// Config fetches a small blob whole, verified.
func (r *Repository) Config(ctx context.Context, d imagespec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fault.New(fault.Unknown, "", "the configuration %s of repository %s is larger than %d bytes", d.Digest, r.path(), maxConfig)
	}
	var data []byte
	for {
		blob, err := r.open(ctx, d, false)
		if err != nil {
			return nil, err
		}
		data, err = io.ReadAll(blob)
		_ = blob.Close()
		if err == nil || !r.Elsewhere(err, d.Digest) {
			return data, err
		}
	}
}

// path is the repository's name as the user knows it.
func (r *Repository) path() string { return reference.Path(r.named) }

// each asks the endpoints in order until one succeeds. The error is the last
// one's, which is the registry itself as a rule, with those of the others behind
// it.
func (r *Repository) each(ctx context.Context, may func(*endpoint) bool, ask func(*endpoint) error) error {
	var all []*endpoint
	var before []string
	for i, e := range r.endpoints {
		if !may(e) {
			continue
		}
		if why := r.passOver(i, func(j int) bool { return may(r.endpoints[j]) }); why != nil {
			before = append(before, why.Error())
			continue
		}
		all = append(all, e)
	}
	if all == nil {
		return fault.New(fault.Precondition, "", "no endpoint for %s has the capability to be asked for it: %s", r.named, r.sources())
	}
	for i, e := range all {
		err := ask(e)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if i == len(all)-1 {
			return after(err, before)
		}
		before = append(before, err.Error())
	}
	return nil
}

// passOver says why an endpoint is not worth asking: it was down a moment ago. The
// last one that may be asked is asked all the same.
func (r *Repository) passOver(i int, may func(int) bool) error {
	why := r.endpoints[i].down.Load()
	for j := i + 1; why != nil && j < len(r.endpoints); j++ {
		if may(j) {
			return *why
		}
	}
	return nil
}

// after adds to an error those of the endpoints that were asked before.
func after(err error, before []string) error {
	if len(before) == 0 {
		return err
	}
	return fault.New(fault.KindOf(err), "", "%w; before that its mirrors: %s", err, strings.Join(before, "; "))
}

// sources says where the endpoints come from.
func (r *Repository) sources() string {
	var all []string
	for _, e := range r.endpoints {
		for _, s := range e.Settings {
			all = append(all, fmt.Sprintf("%s (%s)", s.Key, s.Source))
		}
	}
	return strings.Join(all, ", ")
}

// errOtherContent marks the error of a blob that is not what it should be.
var errOtherContent = errors.New("other content")

// lied notes that the content of a digest from these endpoints was another.
func (r *Repository) lied(d digest.Digest, endpoints map[int]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range endpoints {
		r.lies[lie{i, d}] = true
	}
}

// may reports whether an endpoint may be asked for a blob.
func (r *Repository) may(i int, d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.endpoints[i].Pull && !r.lies[lie{i, d}]
}

// Elsewhere reports whether err, of a blob that was read, is that it had other
// content than its digest says, and there is an endpoint left that may have the
// right one: Blob would ask that one.
func (r *Repository) Elsewhere(err error, d digest.Digest) bool {
	r = r.elsewhere(d)
	if !errors.Is(err, errOtherContent) {
		return false
	}
	for i := range r.endpoints {
		if r.may(i, d) {
			return true
		}
	}
	return false
}

// Again reports whether it is worth asking again for a blob that could not be
// used, for err: whether its content is another than its digest says, which it
// reads on to see, and there is an endpoint left that may have the right one.
func (r *Repository) Again(blob io.Reader, d digest.Digest, err error) bool {
	r = r.elsewhere(d)
	others := 0
	for i := range r.endpoints {
		if r.may(i, d) {
			others++
		}
	}
	if others < 2 || !fault.Is(err, fault.Unknown) {
		return r.Elsewhere(err, d)
	}
	_, readErr := io.Copy(io.Discard, blob)
	return r.Elsewhere(readErr, d)
}
