package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/inflate"
)

// OpenDir opens an OCI layout, or an unpacked docker-archive, in a directory.
func OpenDir(dir string) (*Archive, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	a, err := find(directory{root})
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	a.close = root.Close
	return a, nil
}

// A directory is a tree.
type directory struct{ root *os.Root }

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Unknown, "", "%s is no file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// Read reads an archive to its end: a tar stream, maybe compressed by gzip or
// zstd. What is in it is kept in a file without a name in the directory spool
// until the archive is closed.
//
// Exhausted if it does not fit there; Invalid if it is no archive of images.
func Read(ctx context.Context, stream io.Reader, spool string) (*Archive, error) {
	f, err := unnamed(spool)
	if err != nil {
		return nil, classify(err)
	}
	a, err := read(ctx, stream, f)
	if err != nil {
		return nil, errors.Join(classify(err), f.Close())
	}
	a.close = f.Close
	return a, nil
}

func read(ctx context.Context, stream io.Reader, f *os.File) (*Archive, error) {
	plain, done, err := decompress(&interruptible{ctx: ctx, r: stream})
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, plain, make([]byte, 256<<10)); err != nil {
		return nil, err
	}
	t, err := index(f)
	if err != nil {
		return nil, err
	}
	return find(t)
}

// unnamed makes a file in a directory that goes when it is closed.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/archive"), nil
	}
	f, err := os.CreateTemp(dir, "archive-") // not every file system has the other
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// interruptible is a reader that ends with ctx, and keeps its error, which
// decompressors dress up.
type interruptible struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (i *interruptible) Read(p []byte) (n int, err error) {
	if i.ctx.Err() != nil {
		err = context.Cause(i.ctx)
	} else {
		n, err = i.r.Read(p)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		i.err = err
	}
	return n, err
}

// compression tells by its first bytes how a stream is compressed: "gzip",
// "zstd" or "".
func compression(r *bufio.Reader) string {
	magic, _ := r.Peek(4) // too short: not compressed
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	}
	return ""
}

// decompress returns what a stream is when it is decompressed. done frees the
// decompressor. An error that is not the stream's own is of kind Invalid.
func decompress(stream *interruptible) (plain io.Reader, done func(), err error) {
	r := bufio.NewReaderSize(stream, 128<<10)
	done = func() {}
	switch compression(r) {
	case "gzip":
		plain, err = inflate.NewReader(r)
	case "zstd":
		var z *zstd.Decoder
		z, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		plain, done = z, z.Close
	default:
		return r, done, stream.err
	}
	if err != nil {
		return nil, nil, stream.explain(err)
	}
	return &decompressed{plain, stream}, done, nil
}

func (i *interruptible) explain(err error) error {
	if i.err != nil {
		return i.err
	}
	return fault.New(fault.Invalid, "", "the archive cannot be decompressed: %w", err)
}

type decompressed struct {
	r    io.Reader
	from *interruptible
}

func (d *decompressed) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.from.explain(err)
	}
	return n, err
}

// A tarTree is a tar file as a tree.
type tarTree struct {
	f     *os.File
	files map[string]extent
	links map[string]string
}

// An extent is where a file's content is.
type extent struct{ offset, size int64 }

// index looks where everything is in a tar file.
func index(f *os.File) (*tarTree, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	t := &tarTree{f: f, files: map[string]extent{}, links: map[string]string{}}
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "", "this is no whole tar archive: %w", err)
		}
		if len(t.files)+len(t.links) > maxImages {
			return nil, fault.New(fault.Invalid, "", "the archive has more than %d files", maxImages)
		}
		name := clean(h.Name)
		delete(t.files, name)
		delete(t.links, name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			t.files[name] = extent{at, h.Size}
		case tar.TypeSymlink:
			t.links[name] = clean(path.Join(path.Dir(name), h.Linkname))
		case tar.TypeLink:
			t.links[name] = clean(h.Linkname)
		}
	}
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (t *tarTree) open(name string) (io.ReadCloser, int64, error) {
	at := clean(name)
	for range 8 { // old archives have layers only once, and links to them
		if e, ok := t.files[at]; ok {
			return io.NopCloser(io.NewSectionReader(t.f, e.offset, e.size)), e.size, nil
		}
		next, ok := t.links[at]
		if !ok {
			break
		}
		at = next
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// classify gives an unclassified error about a full disk its kind.
func classify(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Exhausted, "", "no space left for an archive: %w", err)
	}
	return err
}
