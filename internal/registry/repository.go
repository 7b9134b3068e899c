package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// tries is how often one thing is asked for without getting any further.
const tries = 3

// A Repository is one repository, seen with one caller's credentials. It holds
// the tokens got with them, so it should not outlive the call they came with.
// Safe for concurrent use.
type Repository struct {
	client    *Client
	auth      Auth
	domain    string // as in the reference
	path      string
	endpoints []*endpoint
}

// An endpoint is a mirror, or the registry itself.
type endpoint struct {
	host     *host
	prefix   string // of the path, without "/v2"
	query    string // appended to each URL
	registry bool   // the one that credentials are for
	token    authorization
}

// Repository returns the repository that named is in.
func (c *Client) Repository(named reference.Named, auth Auth) (*Repository, error) {
	endpoints, err := c.endpoints(named)
	if err != nil {
		return nil, err
	}
	for _, e := range endpoints {
		e.token.busy = make(chan struct{}, 1)
	}
	return &Repository{
		client:    c,
		auth:      auth,
		domain:    reference.Domain(named),
		path:      reference.Path(named),
		endpoints: endpoints,
	}, nil
}

// Manifest fetches what a tag or a digest names. With a digest the content is
// verified; with a tag the result's Digest is computed from the content.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (*Manifest, error) {
	var m *Manifest
	err := r.each(ctx, func(e *endpoint) (err error) {
		m, err = r.manifestFrom(ctx, e, tagOrDigest)
		return err
	})
	return m, err
}

func (r *Repository) manifestFrom(ctx context.Context, e *endpoint, tagOrDigest string) (*Manifest, error) {
	header := http.Header{"Accept": acceptManifests}
	what := "manifest " + tagOrDigest
	limit := 2 * r.client.config.Stall
	ctx, cancel := context.WithTimeoutCause(ctx, limit, unavailable("%s takes longer than %s to send %s", e.host.address, limit, what))
	defer cancel()
	resp, err := r.get(ctx, e, "manifests/"+tagOrDigest, what, header)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, transportError(ctx, e.host.address, err)
	}
	if len(body) > maxManifest {
		return nil, fault.New(fault.Unknown, "", "%s: %s of repository %s is larger than %d bytes", e.host.address, what, r.path, maxManifest)
	}
	got := digest.FromBytes(body)
	if want, err := digest.Parse(tagOrDigest); err == nil {
		if got = want.Algorithm().FromBytes(body); got != want {
			return nil, fault.New(fault.Unknown, "", "%s: manifest %s of repository %s has other content: its digest is %s", e.host.address, want, r.path, got)
		}
	}
	return parseManifest(resp.Header.Get("Content-Type"), got, body)
}

// Config fetches a small blob whole, verified.
func (r *Repository) Config(ctx context.Context, d imagespec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fault.New(fault.Unknown, "", "the configuration %s of repository %s is larger than %d bytes", d.Digest, r.path, maxConfig)
	}
	blob, err := (&blob{repo: r, ctx: ctx, want: d, unslotted: true}).open()
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

// each asks the endpoints in order until one succeeds. The error is the last
// one's, the registry's own, with those of the mirrors behind it.
func (r *Repository) each(ctx context.Context, ask func(*endpoint) error) error {
	var mirrors []string
	for _, e := range r.endpoints {
		err := ask(e)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if e.registry {
			if len(mirrors) > 0 {
				return fault.New(fault.KindOf(err), "", "%w; before that its mirrors: %s", err, strings.Join(mirrors, "; "))
			}
			return err
		}
		mirrors = append(mirrors, err.Error())
	}
	panic("a repository without a registry")
}

// get sends a GET for a path below the repository and returns the answer if it
// is a success: it gets authorization where asked to, and asks again when the
// connection breaks, the registry is out of order, or says when to come back.
// ctx covers the reading of the body as well.
func (r *Repository) get(ctx context.Context, e *endpoint, path, what string, header http.Header) (*http.Response, error) {
	var authorized int
	for try := 1; ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(r.path, path), nil)
		if err != nil {
			return nil, fault.New(fault.Invalid, "registry", "address of %s at %s: %w", what, e.host.address, errors.Unwrap(err))
		}
		for key, values := range header {
			req.Header[key] = values
		}
		req.Header.Set("User-Agent", r.client.config.UserAgent)
		used := e.token.set(req)

		resp, err := e.host.http.Do(req)
		switch {
		case err != nil:
			err = transportError(ctx, e.host.address, err)
			if ctx.Err() != nil || permanent(err) || try >= tries {
				return nil, err
			}
		case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
			return resp, nil
		case resp.StatusCode == http.StatusUnauthorized && authorized < 2:
			authorized++
			drain(resp)
			if err := r.authorize(ctx, e, resp.Header.Values("Www-Authenticate"), used); err != nil {
				return nil, err
			}
			continue
		case try < tries && (resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests):
			drain(resp)
		default:
			return nil, r.statusError(e, what, resp)
		}
		wait, ok := r.delay(try, resp)
		if !ok {
			return nil, unavailable("%s asks to be left alone for %s (%s)", e.host.address, wait, resp.Status)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		try++
	}
}

func (e *endpoint) url(repository, path string) string {
	return fmt.Sprintf("%s://%s%s/v2/%s/%s%s", e.host.scheme, e.host.address, e.prefix, repository, path, e.query)
}

// delay returns how long to wait before asking again, and whether that is
// short enough to do.
func (r *Repository) delay(try int, resp *http.Response) (time.Duration, bool) {
	if resp != nil {
		if wait, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
			return wait, wait <= r.client.retryLimit
		}
	}
	wait := r.client.retryDelay << (try - 1)
	return wait + rand.N(wait/2+1), true
}

// retryAfter reads the header of that name. RFC 9110, section 10.2.3.
func retryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// drain lets the connection be used again, if that is cheap.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10)
	_ = resp.Body.Close()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
