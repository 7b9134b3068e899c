package registry

import (
	"context"
	"hash"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// A blob is read once, from the first byte to the last. It comes by one
// connection as a rule. Of a large one, pieces are fetched ahead by connections
// of their own while it is the network that is waited for and not the reader:
// behind a proxy or a content network each connection has its own limit.
type blob struct {
	repo   *Repository
	ctx    context.Context
	cancel context.CancelFunc // of the pieces
	want   imagespec.Descriptor
	hash   hash.Hash
	offset int64
	used   map[int]bool // endpoints that it came from

	direct *stream  // reads at offset; it may be without a connection
	window []*piece // what comes after that, without gaps; the first one may be at offset
	alone  bool     // no pieces: too small, or the registry has no ranges
	err    error    // that Read returned
	plan   plan
}

// A plan is what was measured since pieces were last thought about.
type plan struct {
	next   int64 // offset at which to think again
	since  time.Time
	waited time.Duration // for the network
	width  int           // how many pieces are wanted
}

// Blob opens a blob. Reading it to its end returns io.EOF only if size and
// digest are right; an error of other content says Repository.Elsewhere what to
// do about it. A blob that the registry has not got is sought where the
// descriptor says besides. At most Config.Parallel blobs of a host are open at a time; Blob
// waits for its turn. The caller closes it.
func (r *Repository) Blob(ctx context.Context, d imagespec.Descriptor) (io.ReadCloser, error) {
	if f := r.elsewhere(d.Digest); f != r {
		d.URLs = nil
		return f.open(ctx, d, true)
	}
	return r.open(ctx, d, true)
}

func (r *Repository) open(outer context.Context, d imagespec.Descriptor, turn bool) (io.ReadCloser, error) {
	algorithm := d.Digest.Algorithm()
	if !algorithm.Available() {
		return nil, fault.New(fault.Unknown, "", "blob %s: unknown kind of digest", d.Digest)
	}
	ctx, cancel := context.WithCancel(outer)
	b := &blob{
		repo: r, ctx: ctx, cancel: cancel, want: d, hash: algorithm.Hash(), used: map[int]bool{},
		direct: &stream{repo: r, ctx: ctx, want: d, end: d.Size, turn: turn},
		alone:  d.Size < r.client.large || cap(r.client.ahead) == 0,
		plan:   plan{next: r.client.piece, since: time.Now()},
	}
	if err := b.direct.open(); err != nil {
		_ = b.Close()
		if fault.Is(err, fault.NotFound) && len(d.URLs) > 0 {
			return r.openForeign(outer, d, turn, err)
		}
		return nil, err
	}
	return b, nil
}

// Close ends all transfers. What was read stays read.
func (b *blob) Close() error {
	b.cancel()
	b.drop()
	b.direct.close()
	return nil
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.offset >= b.want.Size {
		b.err = b.verify()
		return 0, b.err
	}
	if !b.alone && b.offset >= b.plan.next {
		b.think()
	}
	start := time.Now()
	n, err := b.read(p)
	b.plan.waited += time.Since(start)
	b.offset += int64(n)
	b.hash.Write(p[:n])
	b.err = err
	return n, err
}

func (b *blob) read(p []byte) (int, error) {
	limit := b.want.Size
	if len(b.window) > 0 {
		first := b.window[0]
		if limit = first.from; limit <= b.offset {
			n, err := b.readPiece(first, p)
			if n > 0 || err != nil {
				return n, err
			}
			return b.read(p) // the window is another one now, and not for the better
		}
	}
	if b.direct.offset != b.offset {
		b.direct.close()
		b.direct.offset = b.offset
	}
	return b.direct.read(p[:min(int64(len(p)), limit-b.offset)])
}

// readPiece reads from the first piece. If that cannot be, the window is given
// up and the connection that there is goes on; it is neither data nor an error.
func (b *blob) readPiece(first *piece, p []byte) (int, error) {
	err := first.answered(b.ctx)
	if err == nil {
		b.direct.close()
		var n int
		n, err = first.read(b.ctx, p)
		if n > 0 && first.from+int64(first.taken) == first.to {
			b.window = b.window[1:]
			b.release(first)
			if len(b.window) > 0 {
				return n, nil
			}
			b.plan.next = b.offset // think again at once, or it is the direct stream's turn
		}
		if n > 0 {
			return n, nil
		}
	}
	if cause := context.Cause(b.ctx); cause != nil {
		return 0, cause
	}
	b.alone = true
	b.drop()
	_ = err // the connection that there is meets it, too, if it is one of the blob
	return 0, nil
}

// think decides how many pieces are to be fetched ahead: more when half of the
// time went into waiting for the network, fewer when next to none did.
func (b *blob) think() {
	c := b.repo.client
	busy := time.Since(b.plan.since)
	width := b.plan.width
	switch {
	case b.plan.waited*2 >= busy:
		width = min(max(2, width+1), cap(c.ahead))
	case b.plan.waited*5 < busy:
		width = max(width-1, 0)
	}
	b.plan = plan{next: b.offset + c.piece, since: time.Now(), width: width}
	for len(b.window) < width {
		from := b.offset + c.piece
		if n := len(b.window); n > 0 {
			from = b.window[n-1].to
		}
		if from >= b.want.Size {
			return
		}
		select {
		case c.ahead <- struct{}{}:
		default:
			return // others have them all
		}
		b.window = append(b.window, b.fetch(from, min(from+c.piece, b.want.Size)))
	}
}

// drop gives up the pieces.
func (b *blob) drop() {
	for _, p := range b.window {
		p.stop()
	}
	for _, p := range b.window {
		b.release(p)
	}
	b.window = nil
}

func (b *blob) verify() error {
	b.direct.close()
	if got := digest.NewDigest(b.want.Digest.Algorithm(), b.hash); got != b.want.Digest {
		for i := range b.direct.used {
			b.used[i] = true
		}
		b.repo.lied(b.want.Digest, b.used)
		e := b.direct.at()
		return fault.New(fault.Unknown, "", "%s: blob %s of repository %s has %w: its digest is %s", e.Address, b.want.Digest, e.Repository, errOtherContent, got)
	}
	return io.EOF
}
