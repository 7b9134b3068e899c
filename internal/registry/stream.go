package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// A connection that breaks is replaced as long as those of a stream bring
// perConnection bytes on average, after the first few.
const (
	freeConnections = 16
	perConnection   = 256 << 10
)

var (
	errStalled  = errors.New("the transfer stalled")
	errNoRanges = errors.New("the registry sends no ranges")
)

// A stream reads the bytes from offset to end of a blob, in order; a connection
// that breaks or stalls on the way is replaced by another one from there on, to
// the same endpoint or the next.
type stream struct {
	repo   *Repository
	ctx    context.Context
	want   imagespec.Descriptor
	offset int64 // of the next byte
	end    int64
	exact  bool // a server that does not send just this range is an error
	turn   bool // wait for one of the host's slots

	endpoint    int // index of the one being asked
	used        map[int]bool
	failures    int // in a row, without getting on
	gained      int64
	waited      time.Duration // for those
	connections int
	total       int64 // bytes that all connections brought

	connection
}

// A connection is what a stream reads from now.
type connection struct {
	body   io.ReadCloser // nil if there is none
	cancel context.CancelCauseFunc
	slot   chan struct{} // of the host; nil if none is held
	excess int64         // bytes to come that are before the offset
}

// next moves on to the next endpoint that may be asked; false if there is none.
func (s *stream) next(from int) bool {
	may := func(i int) bool { return s.repo.may(i, s.want.Digest) }
	for i := from; i < len(s.repo.endpoints); i++ {
		if may(i) && s.repo.passOver(i, may) == nil {
			s.endpoint = i
			return true
		}
	}
	return false
}

// open connects for the first time.
func (s *stream) open() error {
	s.used = map[int]bool{}
	if !s.next(0) {
		return fault.New(fault.Precondition, "", "no endpoint for %s is left that may be asked for blob %s: %s", s.repo.named, s.want.Digest, s.repo.sources())
	}
	return s.connect()
}

// read reads something, and nothing but an error if it cannot get it.
func (s *stream) read(p []byte) (int, error) {
	if rest := s.end - s.offset; int64(len(p)) > rest {
		p = p[:rest]
	}
	for {
		if s.body == nil {
			if err := s.connect(); err != nil {
				return 0, err
			}
		}
		n, err := s.readOn(p)
		if err != nil && s.offset < s.end {
			s.close()
			if err := s.retry(err); err != nil {
				return n, err
			}
		}
		if n > 0 || s.offset >= s.end {
			return n, nil
		}
	}
}

// readOn is readSome, and keeps the accounts. What comes although it was not
// asked for is passed over; that is no progress, but no stall either.
func (s *stream) readOn(p []byte) (int, error) {
	if s.excess > 0 {
		p = make([]byte, min(s.excess, 64<<10))
	}
	n, err := s.readSome(p)
	s.gained += int64(n)
	enough := s.gained >= s.enough()
	if enough {
		s.gained, s.waited = 0, 0
	}
	if s.excess > 0 {
		s.excess -= int64(n)
		return 0, err
	}
	if enough {
		s.failures = 0
	}
	s.offset += int64(n)
	s.total += int64(n)
	return n, err
}

// patience is how long a connection may take for enough bytes.
func (s *stream) patience() time.Duration { return s.repo.client.config.Stall / tries }

func (s *stream) enough() int64 {
	return max(1, int64(float64(s.repo.client.config.MinRate)*s.patience().Seconds()))
}

// readSome is one Read of the body that ends when the stall limit is reached.
func (s *stream) readSome(p []byte) (int, error) {
	limit := s.patience()
	start := time.Now()
	cancel := s.cancel // of this connection, also if the timer is late
	stall := time.AfterFunc(limit-s.waited, func() { cancel(errStalled) })
	n, err := s.body.Read(p)
	stall.Stop()
	s.waited += time.Since(start)
	if err != nil && s.waited >= limit {
		err = fmt.Errorf("%w: %d bytes in %s, %d of %d in all", errStalled, s.gained+int64(n), s.waited.Round(time.Second), s.offset+int64(n), s.want.Size)
		s.waited = 0
	}
	return n, err
}

// retry counts a failure and says whether to go on: nil, or the error to return.
func (s *stream) retry(err error) error {
	if cause := context.Cause(s.ctx); cause != nil {
		return cause
	}
	s.failures++
	spent := int64(s.connections) > freeConnections+s.total/perConnection
	if s.failures >= tries || spent {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("ends after %d of %d bytes", s.offset, s.want.Size)
		}
		if spent {
			err = fmt.Errorf("%w; the connection broke %d times for %d bytes", plain(err), s.connections, s.total)
		}
		if !s.next(s.endpoint + 1) {
			return unavailable("%s: blob %s of repository %s: %w", s.at().Address, s.want.Digest, s.at().Repository, plain(err))
		}
		s.failures, s.connections, s.total = 0, 0, 0
		return nil
	}
	return s.repo.pause(s.ctx, s.at(), s.failures, nil)
}

func (s *stream) at() *endpoint { return s.repo.endpoints[s.endpoint] }

// connect asks for the rest, each endpoint in turn.
func (s *stream) connect() error {
	var before []string
	for {
		err := s.connectTo(s.at())
		if err == nil {
			return nil
		}
		s.close()
		if s.ctx.Err() != nil || s.exact || !s.next(s.endpoint+1) {
			return after(err, before)
		}
		before = append(before, err.Error())
		s.failures, s.connections, s.total = 0, 0, 0
	}
}

func (s *stream) connectTo(e *endpoint) error {
	if s.turn {
		select {
		case e.host.slots <- struct{}{}:
			s.slot = e.host.slots
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	s.cancel = cancel
	what := "blob " + s.want.Digest.String()
	q := request{path: "blobs/" + s.want.Digest.String(), what: what, header: http.Header{}}
	whole := s.offset == 0 && s.end == s.want.Size
	switch {
	case s.end < s.want.Size:
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.offset, s.end-1))
	case !whole:
		q.header.Set("Range", fmt.Sprintf("bytes=%d-", s.offset))
	}
	resp, err := s.repo.do(ctx, e, q)
	if err != nil {
		return err
	}
	s.connections++
	s.used[s.endpoint] = true
	s.body = resp.Body
	from, err := s.check(e, resp, whole)
	if err != nil {
		return err
	}
	s.excess = s.offset - from
	return nil
}

// check looks at what an answer says of itself and returns where it begins.
func (s *stream) check(e *endpoint, resp *http.Response, whole bool) (from int64, err error) {
	lie := func(format string, args ...any) (int64, error) {
		return 0, fault.New(fault.Unknown, "", "%s: blob %s of repository %s "+format, append([]any{e.Address, s.want.Digest, e.Repository}, args...)...)
	}
	total := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		r, ok := parseRange(resp.Header.Get("Content-Range"))
		if !ok || whole || r.from > s.offset || r.to < s.offset || s.exact && (r.from != s.offset || r.to != s.end-1) {
			return lie("was asked for from byte %d on; the answer is of %.60q", s.offset, resp.Header.Get("Content-Range"))
		}
		if length := r.to - r.from + 1; resp.ContentLength >= 0 && resp.ContentLength != length {
			return lie("comes with %d bytes, but says %.60q", resp.ContentLength, resp.Header.Get("Content-Range"))
		}
		from, total = r.from, r.total
	} else if s.exact {
		return 0, errNoRanges
	}
	if total >= 0 && total != s.want.Size {
		return lie("has %d bytes, but its manifest says %d", total, s.want.Size)
	}
	return from, nil
}

// A byteRange is the value of Content-Range; total is -1 if it is not told.
//
// RFC 9110, section 14.4.
type byteRange struct{ from, to, total int64 }

func parseRange(value string) (r byteRange, ok bool) {
	value, ok = strings.CutPrefix(value, "bytes ")
	span, total, found := strings.Cut(value, "/")
	first, last, dash := strings.Cut(span, "-")
	if !ok || !found || !dash {
		return r, false
	}
	number := func(s string) int64 {
		n, err := strconv.ParseUint(s, 10, 62)
		if err != nil {
			ok = false
		}
		return int64(n)
	}
	r.from, r.to, r.total = number(first), number(last), -1
	if total != "*" {
		r.total = number(total)
	}
	return r, ok && r.from <= r.to && (r.total < 0 || r.to < r.total)
}

// close gives the connection up. The stream can go on with another one.
func (s *stream) close() {
	if s.cancel != nil {
		s.cancel(context.Canceled)
	}
	if s.body != nil {
		_ = s.body.Close()
	}
	if s.slot != nil {
		<-s.slot
	}
	s.connection = connection{}
}
