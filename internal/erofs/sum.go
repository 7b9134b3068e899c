package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
)

// Sum reads the first size bytes of r, an image, and returns what Build
// returned as its Summary's Sum if not a bit of it has changed. Errors are
// those of r; Unknown if r is shorter.
//
// The sum is one of the CRC-32C and the CRC-32 of each MiB, so that it can be
// made while the image is, whatever is written first, and costs next to nothing.
// It finds damage, not malice: whoever can change the image can change a sum
// beside it. That an image has the content of its layer proves Rebuild, by the
// digest of what it writes.
func Sum(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	if size < 0 {
		return "", fault.New(fault.Unknown, "", "an image of %d bytes", size)
	}
	var sums []chunkSum
	buf := make([]byte, chunkSize)
	for at := int64(0); at < size; at += chunkSize {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		p := buf[:min(chunkSize, size-at)]
		if n, err := r.ReadAt(p, at); n < len(p) {
			if errors.Is(err, io.EOF) {
				return "", fault.New(fault.Unknown, "", "the image ends after %d bytes of %d", at+int64(n), size)
			}
			return "", fmt.Errorf("read an image: %w", err)
		}
		sums = append(sums, sumOf(p))
	}
	return sumOfSums(sums), nil
}

// A chunkSum has two checksums of different polynomials, which together find
// what one of 64 bits would.
type chunkSum [8]byte

func sumOf(p []byte) chunkSum {
	var s chunkSum
	s.add(p)
	return s
}

// add makes the sum that of p behind what it is of.
func (s *chunkSum) add(p []byte) {
	for len(p) > 0 {
		q := p[:min(len(p), sumStep)]
		le.PutUint32(s[:], crc32.Update(le.Uint32(s[:]), castagnoli, q))
		le.PutUint32(s[4:], crc32.Update(le.Uint32(s[4:]), crc32.IEEETable, q))
		p = p[len(q):]
	}
}

// sumStep is what the second checksum finds in the processor's first cache.
const sumStep = 16 << 10

func sumOfSums(sums []chunkSum) string {
	h := sha256.New()
	for _, s := range sums {
		h.Write(s[:])
	}
	return "crc-mib:" + hex.EncodeToString(h.Sum(nil))
}
