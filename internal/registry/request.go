package registry

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// tries is how often one thing is asked for without getting any further;
// patientTries where the answer is that there were too many questions.
const (
	tries        = 3
	patientTries = 6
)

// A request is for something below the repository.
type request struct {
	method string // GET if empty
	path   string
	what   string // for errors
	header http.Header
	once   bool // no second try
}

// do sends a request and returns the answer if it is a success: it gets
// authorization where asked to, and asks again when the connection breaks, the
// registry is out of order, or says when to come back. ctx covers the reading
// of the body as well.
func (r *Repository) do(ctx context.Context, e *endpoint, q request) (*http.Response, error) {
	var authorized int
	for try := 1; ; {
		if err := e.host.wait(ctx); err != nil {
			return nil, err
		}
		req, used, err := r.request(ctx, e, q)
		if err != nil {
			return nil, err
		}
		limit := tries
		resp, err := e.host.http.Do(req)
		switch {
		case err != nil && e.downgrade(ctx, err):
			continue
		case err != nil:
			err = transportError(ctx, e.Address, err)
			if ctx.Err() != nil {
				return nil, err
			}
			if q.once || permanent(err) || try >= limit || isRefused(err) && e != r.endpoints[len(r.endpoints)-1] {
				e.down.Store(&err)
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
		case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
			if resp.StatusCode == http.StatusTooManyRequests {
				limit = patientTries
			}
			if q.once || try >= limit {
				err := r.statusError(e, q.what, resp)
				e.down.Store(&err)
				return nil, err
			}
			drain(resp)
		default:
			return nil, r.statusError(e, q.what, resp)
		}
		if err := r.pause(ctx, e, try, resp); err != nil {
			return nil, err
		}
		try++
	}
}

func (r *Repository) request(ctx context.Context, e *endpoint, q request) (*http.Request, *string, error) {
	method := q.method
	if method == "" {
		method = http.MethodGet
	}
	address := e.exact
	if address == "" {
		address = e.URL(e.scheme(), q.path)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "registry", "address of %s at %s: %w", q.what, e.Address, errors.Unwrap(err))
	}
	maps.Copy(req.Header, e.Header)
	maps.Copy(req.Header, q.header)
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", r.client.config.UserAgent)
	}
	return req, e.token.set(req), nil
}

// scheme is the one that is spoken now.
func (e *endpoint) scheme() string {
	if e.plain.Load() {
		return "http"
	}
	return e.Scheme
}

// downgrade goes over to http where that is allowed and https did not work.
func (e *endpoint) downgrade(ctx context.Context, err error) bool {
	if ctx.Err() != nil || !e.Plain || e.scheme() == "http" || !(errors.Is(err, http.ErrSchemeMismatch) || permanent(err) || isRefused(err)) {
		return false
	}
	return e.plain.CompareAndSwap(false, true)
}

// pause waits before something is asked for again.
func (r *Repository) pause(ctx context.Context, e *endpoint, try int, resp *http.Response) error {
	wait := r.client.retryDelay << (try - 1)
	if resp != nil {
		if resp.StatusCode == http.StatusTooManyRequests {
			wait *= 4
		}
		if asked, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
			if asked > r.client.retryLimit {
				err := unavailable("%s asks to be left alone for %s (%s)", e.Address, asked, resp.Status)
				e.down.Store(&err)
				return err
			}
			wait = max(asked, r.client.retryDelay)
			e.host.leaveAlone(asked)
		}
	}
	return sleep(ctx, wait+rand.N(min(wait/2, time.Second)+1))
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
	_ = beginning(resp, 16<<10)
	_ = resp.Body.Close()
}

// beginning returns the first bytes of an answer that is not worth waiting for.
func beginning(resp *http.Response, limit int64) []byte {
	patience := time.AfterFunc(5*time.Second, func() { _ = resp.Body.Close() })
	defer patience.Stop()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, limit))
	return data
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
