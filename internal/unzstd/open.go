package unzstd

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

// A Reader decompresses frames, one after the other, to the end of the input.
// Errors of the input are passed on as they are; one that ends early gives
// io.ErrUnexpectedEOF.
type Reader interface {
	io.Reader
	// Reset has the Reader begin anew with src, from which it reads in small
	// pieces, too. If that is nil there is nothing to be read.
	Reset(src io.Reader) error
}

// newLibrary returns the reader for processors that this package has no
// assembly for.
func newLibrary(maxWindow int) Reader {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(maxWindow)), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
	if err != nil {
		panic(err) // of the options
	}
	return z
}
