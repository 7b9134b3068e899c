package inside

import (
	"archive/tar"
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

// Unpack makes what a tar stream has, below the directory that dir leads to.
// Files that are there are written anew where they are, since they may be
// mounts; links are replaced, and directories kept. What is made is root's, the tree's, and
// runs as nobody else; or with owners whose the stream says. LeftOut is told
// of what is neither file, directory nor link.
//
// The goroutine must end with it: its thread may have come to be another user's.
func (t *Tree) Unpack(ctx context.Context, from io.Reader, dir string, owners bool, leftOut func(name string)) error {
	if err := t.becomeRoot(); err != nil {
		return err
	}
	u := &unpacker{tree: t, top: dir, owners: owners}
	defer u.enter(nil, "")
	for stream := tar.NewReader(from); ; {
		h, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		made, err := u.entry(h, stream)
		if err != nil {
			return fmt.Errorf("%s: %w", path.Join(dir, h.Name), err)
		}
		if !made {
			leftOut(h.Name)
		}
	}
}

// An unpacker is one Unpack under way.
type unpacker struct {
	tree   *Tree
	top    string
	owners bool

	parent *os.File // the directory of the last entry
	at     string   // its path
	made   []*tar.Header
}

func (u *unpacker) enter(dir *os.File, at string) {
	if u.parent != nil {
		_ = u.parent.Close()
	}
	u.parent, u.at = dir, at
}

// clean is an entry's path below the directory: "/" is that itself.
func clean(name string) string { return path.Clean("/" + name) }

// in opens a directory below the top, and makes it if it is not there.
func (u *unpacker) in(dir string) (*os.File, error) {
	f, err := u.tree.open(path.Join(u.top, dir), unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) || dir == "/" {
		return f, err
	}
	above, err := u.in(path.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if err := unix.Mkdirat(int(above.Fd()), path.Base(dir), 0o755); err != nil {
		return nil, err
	}
	return u.tree.open(path.Join(u.top, dir), unix.O_PATH|unix.O_DIRECTORY)
}

// entry makes one; made is false if it is of no kind that is made.
func (u *unpacker) entry(h *tar.Header, content io.Reader) (made bool, err error) {
	name := clean(h.Name)
	if name == "/" {
		return true, nil
	}
	if at := path.Dir(name); u.parent == nil || u.at != at {
		dir, err := u.in(at)
		if err != nil {
			return false, err
		}
		u.enter(dir, at)
	}
	fd, base := int(u.parent.Fd()), path.Base(name)
	switch h.Typeflag {
	case tar.TypeDir:
		return true, u.directory(h, base)
	case tar.TypeReg:
		return true, u.file(h, base, content)
	case tar.TypeSymlink:
		if err := u.clear(base); err != nil {
			return false, err
		}
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return false, err
		}
		return true, u.attributes(h, base)
	case tar.TypeLink:
		target := clean(h.Linkname)
		if target == name {
			return true, nil
		}
		dir, err := u.in(path.Dir(target))
		if err != nil {
			return false, err
		}
		defer dir.Close()
		if err := u.clear(base); err != nil {
			return false, err
		}
		return true, unix.Linkat(int(dir.Fd()), path.Base(target), fd, base, 0)
	}
	return false, nil
}

// directory makes one. Its mode and time are set in the end: until then files
// are made in it.
func (u *unpacker) directory(h *tar.Header, base string) error {
	err := unix.Mkdirat(int(u.parent.Fd()), base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		there, err := u.tree.open(path.Join(u.top, clean(h.Name)), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		return there.Close()
	}
	if err == nil {
		u.made = append(u.made, h)
	}
	return err
}

func (u *unpacker) file(h *tar.Header, base string, content io.Reader) error {
	f, err := u.create(base)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return u.attributes(h, base)
}

// create opens a regular file to be written, which is there or is made.
func (u *unpacker) create(base string) (*os.File, error) {
	there, st, err := below(u.parent, base)
	if err == nil {
		defer there.Close()
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			f, err := reopen(there, os.O_WRONLY|os.O_TRUNC)
			if !errors.Is(err, unix.ETXTBSY) { // that of a program that runs is replaced
				return f, err
			}
		}
		if err := u.clear(base); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	fd, err := unix.Openat(int(u.parent.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

// clear removes a file or link, if there is one. A mount is not removed: the
// kernel would take it from the container.
func (u *unpacker) clear(base string) error {
	f, st, err := below(u.parent, base)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	_ = f.Close()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
	case unix.S_IFDIR:
		return errors.New("a directory is there")
	default:
		return errors.New("a device, pipe or socket is there")
	}
	fd, err := unix.Openat2(int(u.parent.Fd()), base, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV})
	if err != nil {
		return fmt.Errorf("a mount is there: %w", err)
	}
	_ = unix.Close(fd)
	return unix.Unlinkat(int(u.parent.Fd()), base, 0)
}

// finish gives directories their modes and times, those below others first.
func (u *unpacker) finish() error {
	for _, h := range slices.Backward(u.made) {
		name := clean(h.Name)
		dir, err := u.in(path.Dir(name))
		if err != nil {
			return err
		}
		u.enter(dir, "")
		if err := u.attributes(h, path.Base(name)); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return nil
}

// attributes sets owner, mode and time of what was made.
func (u *unpacker) attributes(h *tar.Header, base string) error {
	f, st, err := below(u.parent, base)
	if err != nil {
		return err
	}
	defer f.Close()
	mode := uint32(h.Mode) & 0o7777
	if u.owners {
		uid, hasUser := u.tree.users.toHere(int64(h.Uid))
		gid, hasGroup := u.tree.groups.toHere(int64(h.Gid))
		if !hasUser || !hasGroup {
			return fmt.Errorf("the container has no user %d or no group %d", h.Uid, h.Gid)
		}
		if err := unix.Fchownat(int(f.Fd()), "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	} else {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mode); err != nil {
			return err
		}
	}
	when := unix.NsecToTimespec(h.ModTime.UnixNano())
	now := unix.NsecToTimespec(time.Now().UnixNano())
	return unix.UtimesNanoAt(int(u.parent.Fd()), base, []unix.Timespec{now, when}, unix.AT_SYMLINK_NOFOLLOW)
}
