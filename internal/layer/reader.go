package layer

import (
	"bufio"
	"bytes"
	"errors"
	"hash"
	"io"
	"io/fs"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/inflate"
	"github.com/davit-runtime/davit/internal/unzstd"
)

// NewReader decompresses a layer's blob (gzip, zstd or plain, told by its first
// bytes) into its tar stream. The stream ends with io.EOF only if its digest is
// diffID and the blob ended with io.EOF, too, having been read to its end. It
// holds at most limit bytes.
func NewReader(blob io.Reader, diffID digest.Digest, limit int64) (io.ReadCloser, error) {
	if err := diffID.Validate(); err != nil {
		return nil, fault.New(fault.Unknown, "", "diff ID %.100q: %w", diffID, err)
	}
	src := &source{r: blob}
	magic := make([]byte, 4)
	n, err := io.ReadFull(src, magic)
	if err != nil && src.err != nil {
		return nil, src.err
	}
	magic = magic[:n]
	r := &reader{src: src, blob: io.MultiReader(bytes.NewReader(magic), src), diffID: diffID, hash: diffID.Algorithm().Hash(), limit: limit}
	if !bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) { // else it is read in bits and pieces
		r.blob = bufio.NewReaderSize(r.blob, 128<<10)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := inflate.NewReader(r.blob)
		if err != nil {
			return nil, r.explain(err)
		}
		r.stream, r.stop = z, func() {}
	case isZstd(magic):
		z := decoders.Get().(unzstd.Reader)
		r.stream, r.stop = z, func() { freeDecoder(z) }
		if err := z.Reset(r.blob); err != nil {
			freeDecoder(z)
			return nil, r.explain(err)
		}
	default:
		r.stream, r.stop = r.blob, func() {}
	}
	return r, nil
}

// isZstd tells by the first bytes whether a blob is of zstd: a frame of it, or
// one to skip, as some compressors begin with (RFC 8878, 3.1.1 and 3.1.2).
func isZstd(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.HasPrefix(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// decoders are used again, since each has a window of many MiB. That frames'
// own checksums are not looked at is no loss: the diff ID covers the same bytes.
var decoders = sync.Pool{New: func() any { return unzstd.NewReader(128 << 20) }}

// freeDecoder is for one that nobody uses any more.
func freeDecoder(z unzstd.Reader) {
	_ = z.Reset(nil)
	decoders.Put(z)
}

type reader struct {
	src    *source
	blob   io.Reader // all of it
	stream io.Reader
	stop   func()
	diffID digest.Digest
	hash   hash.Hash
	read   int64
	limit  int64
	err    error
}

// A source remembers the blob's own error, which decompressors may dress up.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.stream.Read(p)
	r.hash.Write(p[:n])
	if r.read += int64(n); r.read > r.limit {
		r.err = fault.New(fault.Exhausted, "", "layer %s unpacks to more than the %d bytes that are allowed", r.diffID, r.limit)
		return 0, r.err
	}
	switch {
	case errors.Is(err, io.EOF):
		_ = r.Close() // while what was read is still being written, others may need it
		r.err = r.verify()
		err = r.err
	case err != nil:
		r.err = r.explain(err)
		err = r.err
	}
	return n, err
}

func (r *reader) verify() error {
	if _, err := io.Copy(io.Discard, r.blob); err != nil {
		return r.explain(err)
	}
	if got := digest.NewDigest(r.diffID.Algorithm(), r.hash); got != r.diffID {
		return fault.New(fault.Unknown, "", "layer %s unpacks to other content: its digest is %s", r.diffID, got)
	}
	return io.EOF
}

func (r *reader) explain(err error) error {
	if r.src.err != nil {
		return r.src.err
	}
	return fault.New(fault.Unknown, "", "layer %s cannot be decompressed: %w", r.diffID, err)
}

// Close frees the decompressor. It does not close the blob.
func (r *reader) Close() error {
	r.stop()
	r.stop, r.err = func() {}, fs.ErrClosed // others have the decompressor from now on
	return nil
}
