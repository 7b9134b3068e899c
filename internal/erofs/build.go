package erofs

import (
	"context"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
)

// File is what Build writes an image to, such as an *os.File. It is read where
// something has to be changed in what was written long ago (hard links).
type File interface {
	io.WriterAt
	io.ReaderAt
}

// Options are how an image is made.
type Options struct {
	// Limit is how many bytes of file content the layer may have, holes
	// included; Exhausted above it.
	Limit int64

	// Recipe, if not nil, gets what Rebuild needs, as it grows. It is not
	// compressed, and compresses well: it has the stream's tar headers.
	Recipe io.Writer

	// UUID is the image's. Overlayfs wants those of layers to differ.
	UUID [16]byte
}

// A Summary is what became of a layer.
type Summary struct {
	Bytes    int64    // of the image, a multiple of 4096, holes included
	Inodes   uint64   // that can be reached
	Implicit []string // directories without an entry of their own, sorted: "etc/x", "." for the root
	Sum      string   // of the image, as Sum returns it
}

// Build reads a tar stream to its end and writes an EROFS image of it to out,
// which is empty. An error of stream, also where io.EOF is due, is returned,
// so that a stream can be one that verifies itself. The superblock is written
// last, after all else is written; Build does not sync.
//
// An error leaves out with anything in it, but without a superblock.
func Build(ctx context.Context, stream io.Reader, out File, o Options) (Summary, error) {
	return Summary{}, fault.New(fault.Unimplemented, "erofs.Build", "not yet")
}

// Sum reads the first size bytes of r, an image, and returns what Build
// returned as its Summary's Sum if not a bit of it has changed. Errors are
// those of r.
func Sum(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	return "", fault.New(fault.Unimplemented, "erofs.Sum", "not yet")
}

// Rebuild writes the tar stream to w that the image was built from: recipe is
// what Build wrote to Options.Recipe, image begins with the image. The stream's
// digest is the caller's to check; a recipe that is none is an error of kind
// Unknown.
func Rebuild(ctx context.Context, recipe io.Reader, image io.ReaderAt, w io.Writer) error {
	return fault.New(fault.Unimplemented, "erofs.Rebuild", "not yet")
}
