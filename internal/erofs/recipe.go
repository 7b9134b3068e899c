package erofs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
)

// A recipe is a version, and then any number of pairs: the length of what
// stands in the recipe itself, and those bytes; and the length of what stands
// in the image, and if that is not 0 how far behind the end of the last such
// piece (backwards: negative) it begins. Numbers are those of encoding/binary.
const recipeVersion = 1

// maxLiteral is how much of the recipe is kept in memory.
const maxLiteral = 64 << 10

// A recorder reads the stream and writes the recipe of it. What is read
// becomes part of the recipe unless it goes into the image, or is claimed later.
type recorder struct {
	ctx    context.Context
	stream io.Reader
	recipe io.Writer // may be nil
	limit  int64     // of bytes in the recipe

	literal []byte // since what was copied last
	from    int64  // what is copied last: where in the image, and how much
	length  int64
	at      int64 // end of the piece before
	numbers []byte

	// What is read into target goes into the image at offset offset.
	target []byte
	offset int64
	silent bool // what is read is claimed later, by copied

	err error // of the recipe's writer
}

func newRecorder(ctx context.Context, stream io.Reader, o Options) *recorder {
	r := &recorder{ctx: ctx, stream: bufio.NewReaderSize(stream, 32<<10), recipe: o.Recipe, limit: max(o.Limit, o.Limit+1<<30)}
	if r.recipe != nil {
		r.literal = make([]byte, 0, maxLiteral+4096)
		r.put([]byte{recipeVersion})
	}
	return r
}

// Read implements io.Reader.
func (r *recorder) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.stream.Read(p)
	if r.recipe == nil || n == 0 {
		return n, err
	}
	if r.silent {
		return n, err
	}
	// A sparse file's reader reads only some of what it is asked for: which
	// part of target p is tells its capacity.
	if k := cap(r.target) - cap(p); r.target != nil && k >= 0 && k+n <= len(r.target) && &r.target[k] == &p[0] {
		r.copied(r.offset+int64(k), int64(n))
	} else {
		r.keep(p[:n])
	}
	if r.err != nil {
		return n, r.err
	}
	return n, err
}

// keep puts bytes of the stream into the recipe.
func (r *recorder) keep(p []byte) {
	if r.limit -= int64(len(p)); r.limit < 0 {
		// Headers take less than what they tell of; only rubbish takes more.
		r.fail(fault.New(fault.Exhausted, "", "the layer has more than the allowed size beside its files"))
		return
	}
	if r.length > 0 || len(r.literal)+len(p) > maxLiteral {
		r.flush()
	}
	r.literal = append(r.literal, p...)
}

// copied says that the stream's next n bytes are in the image.
func (r *recorder) copied(from, n int64) {
	if r.recipe == nil || n == 0 {
		return
	}
	if r.length > 0 && from != r.from+r.length {
		r.flush()
	}
	if r.length == 0 {
		r.from = from
	}
	r.length += n
}

// flush writes one pair.
func (r *recorder) flush() {
	r.numbers = binary.AppendUvarint(r.numbers[:0], uint64(len(r.literal)))
	r.put(r.numbers)
	r.put(r.literal)
	r.numbers = binary.AppendUvarint(r.numbers[:0], uint64(r.length))
	if r.length > 0 {
		r.numbers = binary.AppendVarint(r.numbers, r.from-r.at)
		r.at = r.from + r.length
	}
	r.put(r.numbers)
	r.literal, r.length = r.literal[:0], 0
}

func (r *recorder) put(p []byte) {
	if r.err != nil || len(p) == 0 {
		return
	}
	if _, err := r.recipe.Write(p); err != nil {
		r.fail(fmt.Errorf("write a layer's recipe: %w", err))
	}
}

func (r *recorder) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// finish writes what is left.
func (r *recorder) finish() error {
	if r.recipe != nil && (len(r.literal) > 0 || r.length > 0) {
		r.flush()
	}
	return r.err
}

// Rebuild writes the tar stream to w that the image was built from: recipe is
// what Build wrote to Options.Recipe, image begins with the image. The stream's
// digest is the caller's to check; a recipe that is none is an error of kind
// Unknown.
func Rebuild(ctx context.Context, recipe io.Reader, image io.ReaderAt, w io.Writer) error {
	in := bufio.NewReaderSize(recipe, 64<<10)
	if version, err := in.ReadByte(); err != nil || version != recipeVersion {
		return fault.New(fault.Unknown, "", "a layer's recipe of version %d: %w", version, err)
	}
	at, buf := int64(0), make([]byte, 256<<10)
	for ctx.Err() == nil {
		if _, err := in.Peek(1); errors.Is(err, io.EOF) {
			return nil
		}
		n, err := readLength(in)
		if err != nil {
			return err
		}
		if err := copyExactly(w, in, n, buf); err != nil {
			return err
		}
		if n, err = readLength(in); err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		move, err := binary.ReadVarint(in)
		if err != nil {
			return brokenRecipe(err)
		}
		if at += move; at < 0 || at+n < at {
			return brokenRecipe(fmt.Errorf("a piece of %d bytes at %d", n, at))
		}
		if err := copyPiece(ctx, w, io.NewSectionReader(image, at, n), n, buf); err != nil {
			return err
		}
		at += n
	}
	return context.Cause(ctx)
}

func readLength(in io.ByteReader) (int64, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return 0, brokenRecipe(err)
	}
	if n > 1<<62 {
		return 0, brokenRecipe(fmt.Errorf("a piece of %d bytes", n))
	}
	return int64(n), nil
}

func brokenRecipe(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fault.New(fault.Unknown, "", "a layer's recipe is damaged: %w", err)
}

// copyPiece is copyExactly that can be interrupted.
func copyPiece(ctx context.Context, w io.Writer, r io.Reader, n int64, buf []byte) error {
	const step = 64 << 20
	for ; n > 0; n -= min(n, step) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := copyExactly(w, r, min(n, step), buf); err != nil {
			return err
		}
	}
	return nil
}

func copyExactly(w io.Writer, r io.Reader, n int64, buf []byte) error {
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if _, err := io.ReadFull(r, p); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return brokenRecipe(io.ErrUnexpectedEOF)
		} else if err != nil {
			return fmt.Errorf("read a layer: %w", err)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}
