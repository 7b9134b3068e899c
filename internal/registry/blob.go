package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// stallBytes is what a connection has to bring within Config.Stall/tries, else
// another one is made; with 60 s that is 1.6 kB/s.
const stallBytes = 32 << 10

// A blob is read once, from the first byte to the last; a connection that
// breaks or stalls on the way is replaced by another one from there on.
type blob struct {
	repo     *Repository
	ctx      context.Context
	want     imagespec.Descriptor
	hash     hash.Hash
	offset   int64
	endpoint int // index of the one being asked
	failures int // in a row, without getting stallBytes further
	gained   int64
	waited   time.Duration // for those

	unslotted bool // small, fetched without waiting for a turn

	body   io.ReadCloser // nil if there is no connection
	cancel context.CancelCauseFunc
	slot   chan struct{} // of the host; nil if there is no connection
}

// Blob opens a blob. Reading it to its end returns io.EOF only if size and
// digest are right. At most Config.Parallel blobs of a host are open at a time;
// Blob waits for its turn. The caller closes it.
func (r *Repository) Blob(ctx context.Context, d imagespec.Descriptor) (io.ReadCloser, error) {
	return (&blob{repo: r, ctx: ctx, want: d}).open()
}

func (b *blob) open() (io.ReadCloser, error) {
	algorithm := b.want.Digest.Algorithm()
	if !algorithm.Available() {
		return nil, fault.New(fault.Unknown, "", "blob %s: unknown kind of digest", b.want.Digest)
	}
	b.hash = algorithm.Hash()
	if err := b.connect(); err != nil {
		b.disconnect()
		return nil, err
	}
	return b, nil
}

func (b *blob) Close() error {
	b.disconnect()
	return nil
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	if b.offset >= b.want.Size {
		return 0, b.verify()
	}
	if rest := b.want.Size - b.offset; int64(len(p)) > rest {
		p = p[:rest]
	}
	for {
		if b.body == nil {
			if err := b.connect(); err != nil {
				return 0, err
			}
		}
		n, err := b.readSome(p)
		b.offset += int64(n)
		b.gained += int64(n)
		b.hash.Write(p[:n])
		if b.gained >= stallBytes {
			b.gained, b.waited, b.failures = 0, 0, 0
		}
		if err != nil && b.offset < b.want.Size {
			b.disconnect()
			if err := b.retry(err); err != nil {
				return n, err
			}
		}
		if n > 0 {
			return n, nil
		}
		if b.offset >= b.want.Size {
			return 0, b.verify()
		}
	}
}

// readSome is one Read of the body that ends when the stall limit is reached.
func (b *blob) readSome(p []byte) (int, error) {
	limit := b.repo.client.config.Stall / tries
	start := time.Now()
	cancel := b.cancel // of this connection, also if the timer is late
	stall := time.AfterFunc(limit-b.waited, func() { cancel(errStalled) })
	n, err := b.body.Read(p)
	stall.Stop()
	b.waited += time.Since(start)
	if err != nil && b.waited >= limit {
		err = fmt.Errorf("%w: %d bytes in %s, %d of %d in all", errStalled, b.gained+int64(n), b.waited.Round(time.Second), b.offset+int64(n), b.want.Size)
		b.waited = 0
	}
	return n, err
}

var errStalled = errors.New("the transfer stalled")

// retry counts a failure and says whether to go on: nil, or the error to return.
func (b *blob) retry(err error) error {
	if cause := context.Cause(b.ctx); cause != nil {
		return cause
	}
	b.failures++
	if b.failures >= tries {
		if b.endpoint == len(b.repo.endpoints)-1 {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("ends after %d of %d bytes", b.offset, b.want.Size)
			}
			return unavailable("%s: blob %s of repository %s: %w", b.host().address, b.want.Digest, b.repo.path, plain(err))
		}
		b.failures = 0
		b.endpoint++
	}
	wait, _ := b.repo.delay(b.failures+1, nil)
	return sleep(b.ctx, wait)
}

// plain drops the prefix that unavailable adds, to add it once.
func plain(err error) error {
	if text, ok := strings.CutPrefix(err.Error(), "RegistryUnavailable: "); ok {
		return errors.New(text)
	}
	return err
}

func (b *blob) host() *host { return b.repo.endpoints[b.endpoint].host }

// connect asks for the blob from offset on, each endpoint in turn.
func (b *blob) connect() error {
	for {
		err := b.connectTo(b.repo.endpoints[b.endpoint])
		if err == nil {
			return nil
		}
		b.disconnect()
		if b.ctx.Err() != nil || b.endpoint == len(b.repo.endpoints)-1 {
			return err
		}
		b.endpoint++
	}
}

func (b *blob) connectTo(e *endpoint) error {
	if !b.unslotted {
		select {
		case e.host.slots <- struct{}{}:
			b.slot = e.host.slots
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	b.cancel = cancel
	header := http.Header{}
	if b.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
	}
	what := "blob " + b.want.Digest.String()
	resp, err := b.repo.get(ctx, e, "blobs/"+b.want.Digest.String(), what, header)
	if err != nil {
		return err
	}
	b.body = resp.Body
	from := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		from = rangeStart(resp.Header.Get("Content-Range"))
	}
	if resp.ContentLength >= 0 && from+resp.ContentLength != b.want.Size {
		return fault.New(fault.Unknown, "", "%s: %s of repository %s has %d bytes, but its manifest says %d",
			e.host.address, what, b.repo.path, from+resp.ContentLength, b.want.Size)
	}
	if from > b.offset || from < 0 {
		return unavailable("%s: %s: asked for bytes from %d on, got %q", e.host.address, what, b.offset, resp.Header.Get("Content-Range"))
	}
	return b.skip(b.offset - from)
}

// skip passes over what came although it was not asked for.
func (b *blob) skip(n int64) error {
	buf := make([]byte, min(n, 64<<10))
	for n > 0 {
		got, err := b.readSome(buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		if err != nil {
			return transportError(b.ctx, b.host().address, err)
		}
		b.waited = 0
	}
	return nil
}

// rangeStart reads "bytes 100-199/200"; -1 if it is something else.
func rangeStart(value string) int64 {
	first, _, _ := strings.Cut(strings.TrimPrefix(value, "bytes "), "-")
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return -1
	}
	return start
}

func (b *blob) disconnect() {
	if b.cancel != nil {
		b.cancel(context.Canceled)
	}
	if b.body != nil {
		_ = b.body.Close()
		b.body = nil
	}
	if b.slot != nil {
		<-b.slot
		b.slot = nil
	}
}

func (b *blob) verify() error {
	b.disconnect()
	if got := digest.NewDigest(b.want.Digest.Algorithm(), b.hash); got != b.want.Digest {
		return fault.New(fault.Unknown, "", "%s: blob %s of repository %s has other content: its digest is %s", b.host().address, b.want.Digest, b.repo.path, got)
	}
	return io.EOF
}

// permanent reports whether asking again at once is pointless.
func permanent(err error) bool {
	var dns *net.DNSError
	var cert x509.CertificateInvalidError
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return true // it had Config.Stall
	}
	return errors.As(err, &dns) || errors.As(err, &cert) || errors.As(err, &name) || errors.As(err, &authority)
}
