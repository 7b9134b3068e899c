package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A recipe takes what erofs.Build says about how to make a tar stream again,
// and compresses it, until the image is complete and it can go behind it. It
// is in memory up to inMemory bytes, then in a file without a name: a hostile
// layer can have headers of any length.
type recipe struct {
	packer *s2.Writer
	dir    string
	early  bytes.Buffer
	late   *os.File // nil: all is in early
	sum    uint32
	size   int64
}

const inMemory = 4 << 20

func newRecipe(dir string) *recipe {
	r := &recipe{packer: packers.Get().(*s2.Writer), dir: dir}
	r.packer.Reset((*spool)(r))
	return r
}

// packers are used again. S2, since its tables are small: those of an encoder
// for zstd drive what the layer is read with out of the processor's cache.
var packers = sync.Pool{New: func() any {
	return s2.NewWriter(nil, s2.WriterConcurrency(1), s2.WriterBlockSize(recipeBlock))
}}

// recipeBlock bounds the memory that it takes to compress and to read again.
const recipeBlock = 256 << 10

// Write implements io.Writer.
func (r *recipe) Write(p []byte) (int, error) { return r.packer.Write(p) }

// A spool is where the compressed recipe goes.
type spool recipe

func (s *spool) Write(p []byte) (int, error) {
	s.sum = crc32.Update(s.sum, castagnoli, p)
	s.size += int64(len(p))
	if s.late == nil && s.early.Len()+len(p) <= inMemory {
		return s.early.Write(p)
	}
	if s.late == nil {
		f, err := os.CreateTemp(s.dir, "")
		if err != nil {
			return 0, err
		}
		s.late = f
		if err := os.Remove(f.Name()); err != nil {
			return 0, err
		}
	}
	return s.late.Write(p)
}

// finish writes all of it to w.
func (r *recipe) finish(w io.Writer) (size int64, sum uint32, err error) {
	if err := r.packer.Close(); err != nil {
		return 0, 0, err
	}
	if _, err := w.Write(r.early.Bytes()); err != nil {
		return 0, 0, err
	}
	if r.late != nil {
		if _, err := r.late.Seek(0, io.SeekStart); err != nil {
			return 0, 0, err
		}
		if _, err := io.Copy(w, r.late); err != nil {
			return 0, 0, err
		}
	}
	return r.size, r.sum, nil
}

// close frees what finish may not have reached.
func (r *recipe) close() {
	r.packer.Reset(nil)
	packers.Put(r.packer)
	if r.late != nil {
		_ = r.late.Close()
	}
}

// readRecipe decompresses a recipe: of S2, or of zstd, as they were first.
func readRecipe(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReader(r)
	if magic, err := in.Peek(4); err != nil || !isZstd(magic) {
		return io.NopCloser(s2.NewReader(in, s2.ReaderMaxBlockSize(recipeBlock))), nil
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(1<<20))
	if err != nil {
		return nil, damaged("its recipe: %w", err)
	}
	return z.IOReadCloser(), nil
}

// checkRecipe reads a recipe and compares it with its checksum.
func checkRecipe(r io.Reader, want uint32) error {
	h := crc32.New(castagnoli)
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, 64<<10)); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return damaged("it ends too soon")
		}
		return err
	}
	if h.Sum32() != want {
		return damaged("the checksum of its recipe is another")
	}
	return nil
}

// A script is a tar stream on its way into a directory. It writes down how the
// stream is made again of that: the content of which files, and all that is
// between them. Its recipe is another one than that of a file: each step is
// scriptText, a length and as many bytes; scriptCopy, the length of a name, the
// name and a size; or scriptEnd, the last. Numbers are varints.
//
// A file that a later entry of the same layer takes away cannot be copied any
// more; that shows by the stream's digest.
type script struct {
	stream  io.Reader
	recipe  *recipe
	to      *bufio.Writer // recipe
	text    []byte        // read, not written yet
	content bool          // of a file is what is read now
}

const (
	scriptText = iota
	scriptCopy
	scriptEnd
)

// scriptFile is what it is called, beside the directory.
const scriptFile = "recipe"

const maxText = 64 << 10 // of one step

// newScript returns a script of stream; dir is for what is too large for memory.
func newScript(stream io.Reader, dir string) *script {
	r := newRecipe(dir)
	return &script{stream: stream, recipe: r, to: bufio.NewWriterSize(r, maxText)}
}

// Read implements io.Reader.
func (s *script) Read(p []byte) (int, error) {
	n, err := s.stream.Read(p)
	if s.content {
		return n, err
	}
	s.text = append(s.text, p[:n]...)
	if len(s.text) >= maxText {
		if err := s.flush(); err != nil {
			return n, err
		}
	}
	return n, err
}

// flush writes down what was read.
func (s *script) flush() error {
	if len(s.text) == 0 {
		return nil
	}
	err := s.step(scriptText, s.text)
	s.text = s.text[:0]
	return err
}

func (s *script) step(kind byte, data []byte) error {
	_, err := s.to.Write(binary.AppendUvarint([]byte{kind}, uint64(len(data))))
	if err == nil {
		_, err = s.to.Write(data)
	}
	return err
}

// file says that what is read until done is called is the content of a file,
// all of it.
func (s *script) file(h *tar.Header) (done func(), err error) {
	if h.Size == 0 {
		return func() {}, nil
	}
	name, err := cleanName(h.Name)
	if err == nil {
		err = s.flush()
	}
	if err == nil {
		err = s.step(scriptCopy, []byte(name))
	}
	if err == nil {
		_, err = s.to.Write(binary.AppendUvarint(nil, uint64(h.Size)))
	}
	s.content = true
	return func() { s.content = false }, err
}

// save writes the recipe into a file, once the stream was read to its end.
func (s *script) save(path string) error {
	err := s.flush()
	if err == nil {
		err = s.to.WriteByte(scriptEnd)
	}
	if err == nil {
		err = s.to.Flush()
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, _, err = s.recipe.finish(f)
	return errors.Join(err, f.Close())
}

// stream implements Store.Stream.
func (d *dirs) stream(ctx context.Context, id string, w io.Writer) error {
	path, err := d.lower(id)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(d.dir(id), scriptFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unimplemented, "layer", "layer %s is a directory without a recipe, of which its tar stream cannot be made again", id)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := readRecipe(f)
	if err != nil {
		return err
	}
	defer z.Close()
	t, err := openTree(path)
	if err != nil {
		return err
	}
	defer t.close()
	hash := digest.Canonical.Hash()
	err = play(ctx, bufio.NewReader(z), t, io.MultiWriter(w, hash))
	if got := digest.NewDigest(digest.Canonical, hash).String(); err == nil && got != id && strings.HasPrefix(id, "sha256:") {
		err = damaged("its digest is %s now", got)
	}
	if err != nil {
		return fault.New(fault.KindOf(err), "layer", "the tar stream of layer %s cannot be made again: %w", id, err)
	}
	return nil
}

// play follows a recipe to its end.
func play(ctx context.Context, recipe *bufio.Reader, t *tree, w io.Writer) error {
	for ctx.Err() == nil {
		kind, err := recipe.ReadByte()
		if err != nil {
			return damaged("its recipe: %w", err)
		}
		if kind == scriptEnd {
			return nil
		}
		size, err := binary.ReadUvarint(recipe)
		if err != nil || size > 2*maxText && kind == scriptCopy {
			return damaged("its recipe has no step of kind %d with %d bytes", kind, size)
		}
		switch kind {
		case scriptText:
			_, err = io.CopyN(w, recipe, int64(size))
		case scriptCopy:
			name := make([]byte, size)
			if _, err := io.ReadFull(recipe, name); err != nil {
				return damaged("its recipe: %w", err)
			}
			if size, err = binary.ReadUvarint(recipe); err == nil {
				err = t.copyFile(string(name), int64(size), w)
			}
		default:
			return damaged("its recipe has a step of kind %d", kind)
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// copyFile writes the content of a file, which has to have that size.
func (t *tree) copyFile(name string, size int64, w io.Writer) error {
	dir, base, err := t.find(name, false)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return damaged("%q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return damaged("%q is no file of %d bytes", name, size)
	}
	_, err = io.CopyN(w, f, size)
	return err
}
