package inside

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// wholeBytes is up to which size files are read before their size is told:
// that of files in /proc and /sys is no size at all.
const wholeBytes = 1 << 20

// Pack writes what path leads to, and all that is below it, as a tar stream in
// which it is called as. Users and groups are those of the tree. LeftOut is
// told of what is neither file, directory nor link.
func (t *Tree) Pack(ctx context.Context, path, as string, to io.Writer, leftOut func(name string)) error {
	f, err := t.open(path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	p := &packer{ctx: ctx, tree: t, tar: tar.NewWriter(to), leftOut: leftOut, linked: map[inode]string{}}
	if err := p.add(f, &st, as); err != nil {
		return err
	}
	return p.tar.Close()
}

type inode struct{ device, number uint64 }

// A packer is one Pack under way.
type packer struct {
	ctx     context.Context
	tree    *Tree
	tar     *tar.Writer
	leftOut func(string)
	linked  map[inode]string // files with several names, by the first of them
}

func (p *packer) add(f *os.File, st *unix.Stat_t, as string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	h := &tar.Header{
		Name: as, Mode: int64(st.Mode & 0o7777), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
		Uid: int(p.tree.users.toInside(int64(st.Uid))), Gid: int(p.tree.groups.toInside(int64(st.Gid))),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, as+"/"
		if err := p.tar.WriteHeader(h); err != nil {
			return err
		}
		return p.addAll(f, as)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", target)
		if err != nil {
			return fmt.Errorf("%s: %w", as, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(target[:n])
		return p.tar.WriteHeader(h)
	case unix.S_IFREG:
		h.Typeflag = tar.TypeReg
		if st.Nlink > 1 {
			key := inode{uint64(st.Dev), st.Ino}
			if first := p.linked[key]; first != "" {
				h.Typeflag, h.Linkname = tar.TypeLink, first
				return p.tar.WriteHeader(h)
			}
			p.linked[key] = as
		}
		if err := p.addFile(f, h, st.Size); err != nil {
			return fmt.Errorf("%s: %w", as, err)
		}
		return nil
	}
	p.leftOut(as)
	return nil
}

// addAll adds what is in a directory, by name. What vanishes meanwhile was
// never there.
func (p *packer) addAll(dir *os.File, as string) error {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", as, err)
	}
	reading := os.NewFile(uintptr(fd), as)
	names, err := reading.Readdirnames(-1)
	if err := errors.Join(err, reading.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		f, st, err := below(dir, name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path.Join(as, name), err)
		}
		err = p.add(f, st, path.Join(as, name))
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// addFile adds as much of a file as it had when it was looked at.
func (p *packer) addFile(f *os.File, h *tar.Header, size int64) error {
	file, err := reopen(f, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	var content io.Reader = file
	if h.Size = size; size <= wholeBytes {
		whole, err := io.ReadAll(io.LimitReader(file, wholeBytes))
		if err != nil {
			return err
		}
		h.Size, content = int64(len(whole)), bytes.NewReader(whole)
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(p.tar, content, h.Size)
	if errors.Is(err, io.EOF) {
		return errors.New("it became shorter while it was read")
	}
	return err
}
