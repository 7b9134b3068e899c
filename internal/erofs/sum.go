package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/minio/crc64nvme"

	"github.com/davit-runtime/davit/internal/fault"
)

// Sums are of two kinds, told by how they begin.
const (
	sumCRC64 = "crc64-mib:" // of the CRC-64/NVME of each MiB
	sumCRC32 = "crc-mib:"   // of the CRC-32C and the CRC-32 of each MiB, as Build once made it
)

// Sum reads the first size bytes of r, an image, and returns what Build
// returned as its Summary's Sum if not a bit of it has changed. Errors are
// those of r; Unknown if r is shorter.
//
// The sum is one of checksums of each MiB, so that it can be made while the
// image is, whatever is written first, and costs next to nothing. It finds
// damage, not malice: whoever can change the image can change a sum beside it.
// That an image has the content of its layer proves Rebuild, by the digest of
// what it writes.
func Sum(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	return SumLike(ctx, r, size, sumCRC64)
}

// SumLike is Sum by the kind of an earlier sum, to be compared with it.
// Precondition if it is of a kind that is not known here.
func SumLike(ctx context.Context, r io.ReaderAt, size int64, earlier string) (string, error) {
	kind, _, _ := strings.Cut(earlier, ":")
	kind += ":"
	of, known := map[string]func([]byte) chunkSum{sumCRC64: sumOf, sumCRC32: sumCRC32Of}[kind]
	if !known {
		return "", fault.New(fault.Precondition, "", "an image with a checksum of the unknown kind %.20q", kind)
	}
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
		sums = append(sums, of(p))
	}
	return kind + sumOfSums(sums), nil
}

// A chunkSum is the checksum of a chunk, or of what came of it so far.
type chunkSum uint64

func sumOf(p []byte) chunkSum { return chunkSum(crc64nvme.Checksum(p)) }

// add makes the sum that of p behind what it is of.
func (s *chunkSum) add(p []byte) { *s = chunkSum(crc64nvme.Update(uint64(*s), p)) }

// sumCRC32Of is two checksums of different polynomials, which together find what
// one of 64 bits does.
func sumCRC32Of(p []byte) chunkSum {
	return chunkSum(crc32.Checksum(p, castagnoli)) | chunkSum(crc32.ChecksumIEEE(p))<<32
}

func sumOfSums(sums []chunkSum) string {
	h := sha256.New()
	for _, s := range sums {
		h.Write(le.AppendUint64(nil, uint64(s)))
	}
	return hex.EncodeToString(h.Sum(nil))
}
