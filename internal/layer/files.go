package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/mount"
)

// files keeps each layer as a file, <root>/<id>.erofs, see trailer.go, and
// mounts those that are used, each once, at <mounts>/<id>.
type files struct {
	root, staging, mounts string
	way                   mount.Way
	limit                 int64

	mu     sync.Mutex
	points map[string]*point
}

// path returns the file of a layer.
func (f *files) path(id string) string { return filepath.Join(f.root, nameOf(id)+suffix) }

// has reports whether a layer is a file.
func (f *files) has(id string) bool {
	var st unix.Stat_t
	return unix.Lstat(f.path(id), &st) == nil
}

// unpack implements Store.Unpack.
func (f *files) unpack(ctx context.Context, id string, blob Blob, stream io.Reader) (Info, error) {
	r := newRecipe(f.staging)
	defer r.close()
	return f.build(id, func(out *output) (*trailer, error) {
		made, err := erofs.Build(ctx, stream, out, erofs.Options{Limit: f.limit, Recipe: r, UUID: uuidOf(id)})
		if err != nil {
			return nil, err
		}
		t := &trailer{ID: id, Blob: blob, ImageBytes: made.Bytes, Sum: made.Sum, Info: Info{Inodes: 1, Implicit: made.Implicit}}
		t.RecipeBytes, t.RecipeSum, err = r.finish(io.NewOffsetWriter(out, made.Bytes))
		return t, err
	})
}

// uuidOf returns an image's UUID, which overlayfs wants to differ.
func uuidOf(id string) [16]byte {
	sum := sha256.Sum256([]byte(id))
	return [16]byte(sum[:])
}

// adoptImage implements Store.Adopt. What the kernel does not mount is refused.
func (f *files) adoptImage(ctx context.Context, id string, blob Blob, stream io.Reader) (Info, error) {
	if f.way == mount.None {
		return Info{}, fault.New(fault.Unimplemented, "", "layer %s is an EROFS image, which cannot be mounted here", id)
	}
	return f.build(id, func(out *output) (*trailer, error) {
		size, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(out, 0)}, &untilDone{ctx, stream}, make([]byte, 1<<20))
		if err != nil {
			return nil, err
		}
		image, err := erofs.Open(out, size)
		if err != nil {
			return nil, err
		}
		if err := image.Check(ctx); err != nil {
			return nil, fault.New(fault.KindOf(err), "", "layer %s: %w", id, err)
		}
		if err := f.try(out.self(), image.Features()); err != nil {
			return nil, fault.New(fault.KindOf(err), "", "layer %s: %w", id, err)
		}
		sum, err := erofs.Sum(ctx, out, size)
		t := &trailer{ID: id, Blob: blob, Native: true, Features: image.Features(), ImageBytes: size, Sum: sum, Info: Info{Inodes: 1}}
		return t, err
	})
}

// An untilDone is a reader until ctx ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// build lets fill write a file, ends it with a trailer, and puts it, on the
// disk whole, in its place. Its name is on the disk after Sync.
func (f *files) build(id string, fill func(*output) (*trailer, error)) (Info, error) {
	out, err := f.create()
	if err != nil {
		return Info{}, classify(err)
	}
	info, err := f.write(id, out, fill)
	return info, classify(errors.Join(err, out.discard()))
}

func (f *files) write(id string, out *output, fill func(*output) (*trailer, error)) (Info, error) {
	t, err := fill(out)
	if err != nil {
		return Info{}, err
	}
	first := make([]byte, blockBytes)
	if _, err := out.ReadAt(first, 0); err != nil {
		return Info{}, readError(err)
	}
	t.First = checksum(first)
	size := align(t.ImageBytes) + t.RecipeBytes
	tail, err := t.encode(size)
	if err != nil {
		return Info{}, err
	}
	if _, err := out.WriteAt(tail, size); err != nil {
		return Info{}, err
	}
	if err := out.Sync(); err != nil {
		return Info{}, fmt.Errorf("write layer %s to the disk: %w", id, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(out.Fd()), &st); err != nil {
		return Info{}, err
	}
	t.Info.Bytes = uint64(st.Blocks) * 512
	return t.Info, f.place(id, out)
}

// place gives a file its name. What is mounted of an older one goes.
func (f *files) place(id string, out *output) error {
	p := f.take(id)
	defer f.drop(id, p)
	p.hold.Lock()
	defer p.hold.Unlock()
	if err := f.unmount(id, p); err != nil {
		return err
	}
	if err := out.publish(f.path(id)); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}

// An output is a file without a name, or none of those that count. It begins
// to write to the disk early, so that there is little left to wait for.
type output struct {
	*os.File
	staging string
	named   bool  // it has a name in staging
	dirty   int64 // bytes since the last time
}

const writeback = 8 << 20 // bytes

func (f *files) create() (*output, error) {
	fd, err := unix.Open(f.root, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &output{File: os.NewFile(uintptr(fd), filepath.Join(f.root, "a new layer")), staging: f.staging}, nil
	}
	file, err := os.CreateTemp(f.staging, "") // not every file system has such files
	return &output{File: file, staging: f.staging, named: true}, err
}

// WriteAt implements io.WriterAt.
func (o *output) WriteAt(p []byte, at int64) (int, error) {
	n, err := o.File.WriteAt(p, at)
	if o.dirty += int64(n); o.dirty >= writeback {
		o.dirty = 0
		_ = unix.SyncFileRange(int(o.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return n, err
}

// publish gives the file its name, which another file may have.
func (o *output) publish(path string) error {
	if o.named {
		return os.Rename(o.Name(), path)
	}
	self := o.self()
	err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// No link replaces another.
	between := filepath.Join(o.staging, filepath.Base(path))
	_ = os.Remove(between)
	if err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, between, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	return os.Rename(between, path)
}

// self is a path of the file while it has no name.
func (o *output) self() string { return "/proc/self/fd/" + strconv.Itoa(int(o.Fd())) }

// discard closes the file, which is gone then unless it was published.
func (o *output) discard() error {
	if o.named {
		if err := os.Remove(o.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errors.Join(err, o.Close())
		}
	}
	return o.Close()
}

// remove implements Store.Remove.
func (f *files) remove(id string) error {
	if err := os.Remove(f.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p := f.take(id)
	defer f.drop(id, p)
	p.hold.Lock()
	defer p.hold.Unlock()
	return f.unmount(id, p)
}
