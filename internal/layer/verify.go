package layer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
)

// openFile opens a layer's file and reads its trailer.
func (f *files) openFile(id string) (*os.File, *trailer, error) {
	file, err := os.Open(f.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fault.New(fault.NotFound, "layer", "layer %s: %w", id, err)
	}
	if err != nil {
		return nil, nil, err
	}
	t, err := readFile(file, id)
	if err != nil {
		return nil, nil, errors.Join(fault.New(fault.KindOf(err), "", "layer %s: %w", id, err), file.Close())
	}
	return file, t, nil
}

func readFile(file *os.File, id string) (*trailer, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	t, err := readTrailer(file, st.Size)
	if err != nil {
		return nil, err
	}
	if t.ID != id {
		return nil, damaged("it is of layer %.100q", t.ID)
	}
	t.Info.Bytes = uint64(st.Blocks) * 512
	return t, nil
}

// inspect reads what a layer's file tells of itself.
func (f *files) inspect(id string) (*trailer, error) {
	file, t, err := f.openFile(id)
	if err != nil {
		return nil, err
	}
	return t, file.Close()
}

// mountable implements Store.Inspect. Images that came as they are may have been
// mountable by the kernel that they came to, and not by this one.
func (f *files) mountable(id string) (*Info, error) {
	t, err := f.inspect(id)
	if err != nil {
		return nil, err
	}
	if len(t.Features) == 0 {
		return &t.Info, nil
	}
	p := f.take(id)
	defer f.drop(id, p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.mounted {
		err = f.try(f.path(id), t.Features)
	}
	if fault.Is(err, fault.Unimplemented) {
		err = fault.New(fault.Precondition, "layer", "layer %s: %w", id, err)
	}
	return &t.Info, err
}

// open opens a layer's image to look things up in it.
func (f *files) open(id string) (looker, func(), error) {
	file, t, err := f.openFile(id)
	if err != nil {
		return nil, nil, err
	}
	image, err := erofs.Open(file, t.ImageBytes)
	if err != nil {
		return nil, nil, errors.Join(fault.New(fault.KindOf(err), "", "layer %s: %w", id, err), file.Close())
	}
	return imageLooker{image.Finder()}, func() { _ = file.Close() }, nil
}

// An imageLooker looks things up in an image.
type imageLooker struct{ image erofs.Finder }

func (l imageLooker) look(name string) (kindOfFile, attributes, error) {
	e, err := l.image.Stat(name)
	switch {
	case fault.Is(err, fault.NotFound):
		return absent, attributes{}, nil
	case err != nil:
		return absent, attributes{}, err
	case e.Mode&unix.S_IFMT != unix.S_IFDIR:
		return other, attributes{}, nil
	}
	return directory, attributes{mode: e.Mode & 0o7777, uid: e.UID, gid: e.GID, time: e.Time, xattrs: e.Xattrs}, nil
}

// verify implements Store.Verify.
func (f *files) verify(ctx context.Context, id string, pace func(context.Context, int) error) error {
	file, t, err := f.openFile(id)
	if err != nil {
		return err
	}
	defer file.Close()
	r := &diskReader{ctx: ctx, pace: pace, at: -1, buf: alignedBuffer(chunk)}
	if r.file, err = os.OpenFile(f.path(id), os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
		r.file = file // not every file system can
	} else {
		defer r.file.Close()
	}
	sum, err := erofs.SumLike(ctx, r, t.ImageBytes, t.Sum)
	if err == nil && sum != t.Sum {
		err = damaged("its image has the checksum %s, not %s", sum, t.Sum)
	}
	if err == nil {
		err = checkRecipe(t.recipe(r), t.RecipeSum)
	}
	if err != nil {
		return fault.New(fault.KindOf(err), "", "layer %s: %w", id, err)
	}
	return nil
}

// A diskReader reads a file from the disk, past the page cache, which others
// need more and which may be whole where the disk is not. It reads chunk bytes
// at a time and keeps the last of them.
type diskReader struct {
	ctx  context.Context
	pace func(context.Context, int) error
	file *os.File
	buf  []byte
	at   int64 // of buf in the file; -1: nothing is in it
	n    int   // bytes in buf
}

const chunk = 1 << 20

// alignedBuffer returns a buffer that direct I/O takes.
func alignedBuffer(n int) []byte {
	buf := make([]byte, n+blockBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & (blockBytes - 1)
	return buf[skip : skip+n]
}

// ReadAt implements io.ReaderAt.
func (r *diskReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := (off + int64(n)) / chunk * chunk
		if at != r.at {
			if err := r.fill(at); err != nil {
				return n, err
			}
		}
		from := int(off + int64(n) - at)
		if from >= r.n {
			return n, io.EOF
		}
		n += copy(p[n:], r.buf[from:r.n])
	}
	return n, nil
}

func (r *diskReader) fill(at int64) error {
	r.at = -1
	n, err := r.file.ReadAt(r.buf, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if r.pace != nil {
		if err := r.pace(r.ctx, n); err != nil {
			return err
		}
	}
	r.at, r.n = at, n
	return nil
}

// stream implements Store.Stream.
func (f *files) stream(ctx context.Context, id string, w io.Writer) (native bool, err error) {
	want, err := digest.Parse(id)
	if err != nil {
		return false, fault.New(fault.Unimplemented, "layer", "layer %s was made here, of no stream", id)
	}
	file, t, err := f.openFile(id)
	if err != nil {
		return false, err
	}
	defer file.Close()
	h := want.Algorithm().Hash()
	out := io.MultiWriter(h, w)
	if t.Native {
		_, err = io.Copy(out, &untilDone{ctx, io.NewSectionReader(file, 0, t.ImageBytes)})
	} else {
		err = rebuild(ctx, t, file, out)
	}
	if err != nil {
		return t.Native, err
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return t.Native, fault.New(fault.Unknown, "", "layer %s: %w", id, damaged("the stream made of it has the digest %s", got))
	}
	return t.Native, nil
}

func rebuild(ctx context.Context, t *trailer, file *os.File, w io.Writer) error {
	r, err := readRecipe(t.recipe(file))
	if err != nil {
		return err
	}
	defer r.Close()
	return erofs.Rebuild(ctx, r, io.NewSectionReader(file, 0, t.ImageBytes), w)
}
