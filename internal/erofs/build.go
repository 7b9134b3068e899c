package erofs

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/tape"
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
	b := &builder{
		ctx: ctx, in: newRecorder(ctx, stream, o), space: newSpace(out), tree: newTree(),
		left: o.Limit, limit: o.Limit, uuid: o.UUID, scratch: make([]byte, blockSize), contents: map[content]int64{},
	}
	defer b.space.discard(func(*chunk) bool { return true })
	b.tree.readLink = b.space.readLink
	if err := b.read(); err != nil {
		return Summary{}, err
	}
	return b.finish()
}

// A builder makes one image.
type builder struct {
	ctx    context.Context
	in     *recorder
	space  *space
	tree   *tree
	shared shared
	limit  int64 // bytes of content that are allowed
	left   int64 // and still are
	uuid   [16]byte

	scratch  []byte            // of a block
	contents map[content]int64 // where the first with them are

	dirName string // of the directory that was looked up last
	dir     uint32
	dirGood bool
}

// read makes a tree of the stream, and puts into the image what is in files.
func (b *builder) read() error {
	archive := tape.NewReader(b.in)
	for {
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return streamError(err)
		}
		if err := b.entry(h, archive); err != nil {
			return err
		}
	}
	// What follows the end of the archive belongs to the digest.
	buf := make([]byte, 64<<10)
	for b.ctx.Err() == nil {
		_, err := b.in.Read(buf)
		if errors.Is(err, io.EOF) {
			return b.in.finish()
		}
		if err != nil {
			return streamError(err)
		}
	}
	return context.Cause(b.ctx)
}

// streamError keeps the stream's own errors and names tar's.
func streamError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return fault.New(fault.Unknown, "", "the layer is no whole tar archive: %w", err)
	}
	return err
}
