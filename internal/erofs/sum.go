package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
)

// Sum reads the first size bytes of r, an image, and returns what Build
// returned as its Summary's Sum if not a bit of it has changed. Errors are
// those of r; Unknown if r is shorter.
//
// The sum is the SHA-256 of the SHA-256s of each MiB, so that it can be made
// while the image is, whatever is written first.
func Sum(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	if size < 0 {
		return "", fault.New(fault.Unknown, "", "an image of %d bytes", size)
	}
	var sums [][sha256.Size]byte
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

var sumOfZeros = sha256.Sum256(make([]byte, chunkSize))

// sumOf is quick for a hole.
func sumOf(p []byte) [sha256.Size]byte {
	if len(p) == chunkSize && isZero(p) {
		return sumOfZeros
	}
	return sha256.Sum256(p)
}

func sumOfSums(sums [][sha256.Size]byte) string {
	h := sha256.New()
	for _, s := range sums {
		h.Write(s[:])
	}
	return "sha256-mib:" + hex.EncodeToString(h.Sum(nil))
}
