package layer

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// A recipe takes what erofs.Build says about how to make a tar stream again,
// and compresses it, until the image is complete and it can go behind it. It
// is in memory up to inMemory bytes, then in a file without a name: a hostile
// layer can have headers of any length.
type recipe struct {
	zstd  *zstd.Encoder
	dir   string
	early bytes.Buffer
	late  *os.File // nil: all is in early
	sum   uint32
	size  int64
}

const inMemory = 4 << 20

func newRecipe(dir string) (*recipe, error) {
	r := &recipe{dir: dir}
	var err error
	r.zstd, err = zstd.NewWriter((*spool)(r), zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(recipeWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	return r, err
}

// recipeWindow bounds the memory that it takes to compress and to read again.
const recipeWindow = 256 << 10

// Write implements io.Writer.
func (r *recipe) Write(p []byte) (int, error) { return r.zstd.Write(p) }

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
	if err := r.zstd.Close(); err != nil {
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
	_ = r.zstd.Close()
	if r.late != nil {
		_ = r.late.Close()
	}
}

// readRecipe decompresses a recipe.
func readRecipe(r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(1<<20))
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
