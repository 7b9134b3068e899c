package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."     // AUFS's own, of no meaning to others, but for
	whiteoutOpaque = ".wh..wh..opq" // this one
)

// An unpacker fills a tree from one tar stream.
type unpacker struct {
	*tree
	limit   int64
	written int64
	buf     []byte
	times   []dirTime
	script  *script // is what the stream is read through
}

// A dirTime is set last, since making entries in a directory changes it.
type dirTime struct {
	name string
	time time.Time
}

func (u *unpacker) run(ctx context.Context, stream io.Reader) error {
	u.buf = make([]byte, 256<<10)
	in := tar.NewReader(stream)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return streamError(err)
		}
		if err := u.entry(h, in); err != nil {
			return err
		}
	}
	// What follows the end of the archive belongs to the digest.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, stream, u.buf); err != nil {
		return streamError(err)
	}
	for _, d := range u.times {
		if dir, base, ok := u.directory(d.name); ok {
			setTime(dir, base, d.time)
		}
	}
	return nil
}

// streamError keeps the stream's own errors and names tar's.
func streamError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return fault.New(fault.Unknown, "", "the layer is no whole tar archive: %w", err)
	}
	return err
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return u.rootEntry(h)
	}
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(name, dir, base)
	}
	if h.Typeflag == tar.TypeDir {
		return u.makeDir(h, name, dir, base)
	}
	if err := u.make(h, content, dir, base); err != nil {
		if fault.KindOf(err) != fault.Internal {
			return err
		}
		return broken(name, err)
	}
	return nil
}

// cleanName returns a relative name without "." and "..". A leading slash
// means nothing; a name that leads out of the archive is refused.
func cleanName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fault.New(fault.Unknown, "", "layer entry %.200q leads out of the layer", name)
	}
	return clean, nil
}

func (u *unpacker) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return broken(h.Name, errors.New("the root is no directory"))
	}
	delete(u.implicit, ".")
	u.times = append(u.times, dirTime{".", h.ModTime})
	if err := u.note("."); err != nil {
		return err
	}
	return broken(".", u.attributes(h, u.root, "."))
}

// whiteout hides what lower layers have. What this layer has itself stays,
// whichever entry comes first (image-spec: layer.md, "Whiteouts").
func (u *unpacker) whiteout(name string, dir int, base string) error {
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case base == whiteoutOpaque:
		return u.makeOpaque(dir, ".")
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case hidden == "" || hidden == "." || hidden == "..":
		return broken(name, errors.New("hides nothing that can be"))
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, hidden, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return u.makeOpaque(dir, hidden)
		}
		return nil
	}
	return broken(name, unix.Mknodat(dir, hidden, unix.S_IFCHR, 0))
}

func (u *unpacker) makeDir(h *tar.Header, name string, dir int, base string) error {
	err := unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = u.replaceByDir(dir, base)
		}
	}
	if err != nil {
		return broken(name, err)
	}
	if len(u.implicit) > 0 {
		real, err := u.realPath(dir, base)
		if err != nil {
			return err
		}
		delete(u.implicit, real)
	}
	u.times = append(u.times, dirTime{name, h.ModTime})
	if err := u.note(name); err != nil {
		return err
	}
	return broken(name, u.attributes(h, dir, base))
}

func (u *unpacker) replaceByDir(dir int, base string) error {
	hidden, err := u.clearWhiteout(dir, base)
	if err != nil {
		return err
	}
	if err := u.clear(dir, base); err != nil {
		return err
	}
	if err := unix.Mkdirat(dir, base, 0o700); err != nil || !hidden {
		return err
	}
	return u.makeOpaque(dir, base)
}

// make makes what is no directory, in place of whatever is there.
func (u *unpacker) make(h *tar.Header, content io.Reader, dir int, base string) error {
	err := u.makeNew(h, content, dir, base)
	if errors.Is(err, unix.EEXIST) {
		if h.Typeflag == tar.TypeLink && u.same(h, dir, base) {
			return nil
		}
		if err := u.clear(dir, base); err != nil {
			return err
		}
		err = u.makeNew(h, content, dir, base)
	}
	return err
}

func (u *unpacker) makeNew(h *tar.Header, content io.Reader, dir int, base string) error {
	var err error
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(h, content, dir, base)
	case tar.TypeLink:
		return u.hardLink(h, dir, base) // attributes are its target's
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeChar:
		err = u.device(h, unix.S_IFCHR, dir, base)
	case tar.TypeBlock:
		err = u.device(h, unix.S_IFBLK, dir, base)
	case tar.TypeFifo:
		err = unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0)
	default:
		err = errors.New("is of the unknown type " + strconv.QuoteRune(rune(h.Typeflag)))
	}
	if err != nil {
		return err
	}
	if err := u.attributes(h, dir, base); err != nil {
		return err
	}
	setTime(dir, base, h.ModTime)
	return nil
}

func (u *unpacker) device(h *tar.Header, kind uint32, dir int, base string) error {
	if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
		return errors.New("has no possible device number")
	}
	return unix.Mknodat(dir, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
}

func (u *unpacker) hardLink(h *tar.Header, dir int, base string) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	from, err := u.open(path.Dir(target))
	if err == nil {
		defer unix.Close(from)
		err = unix.Linkat(from, path.Base(target), dir, base, 0)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EPERM) {
		return broken(h.Name, errors.New("is a hard link to "+strconv.Quote(target)+", which is no file of this layer"))
	}
	return err
}

// same reports whether a hard link is there already.
func (u *unpacker) same(h *tar.Header, dir int, base string) bool {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return false
	}
	from, err := u.open(path.Dir(target))
	if err != nil {
		return false
	}
	defer unix.Close(from)
	var a, b unix.Stat_t
	return unix.Fstatat(dir, base, &a, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(from, path.Base(target), &b, unix.AT_SYMLINK_NOFOLLOW) == nil && a.Ino == b.Ino
}

func (u *unpacker) file(h *tar.Header, content io.Reader, dir int, base string) error {
	if u.written += h.Size; u.written > u.limit {
		return fault.New(fault.Exhausted, "", "the layer holds files of more than the %d bytes that are allowed", u.limit)
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	if err := u.fill(f, h, content); err != nil {
		return err
	}
	if h.Size >= 1<<20 {
		// Begin to write now what Sync waits for.
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	if err := u.attributes(h, dir, base); err != nil {
		return err
	}
	setTime(dir, base, h.ModTime)
	return nil
}

func (u *unpacker) fill(f *os.File, h *tar.Header, content io.Reader) error {
	if _, pax := h.PAXRecords["GNU.sparse.major"]; pax || h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.map"] != "" {
		w := &sparseWriter{f: f}
		if _, err := io.CopyBuffer(w, content, u.buf); err != nil {
			return streamError(err)
		}
		return f.Truncate(w.at)
	}
	done, err := u.script.file(h)
	if err != nil {
		return err
	}
	defer done()
	// Neither side may take short cuts past the buffer.
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{content}, u.buf)
	return streamError(err)
}

// A sparseWriter leaves holes where it is given zeros.
type sparseWriter struct {
	f  *os.File
	at int64
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	const block = 4096
	for done := 0; done < len(p); {
		part := p[done:min(done+block, len(p))]
		if !allZero(part) {
			if _, err := w.f.WriteAt(part, w.at); err != nil {
				return done, err
			}
		}
		w.at += int64(len(part))
		done += len(part)
	}
	return len(p), nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
