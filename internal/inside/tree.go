package inside

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A Tree is a directory with all that is below it, beyond which no path and no
// link leads.
type Tree struct {
	dir           *os.File
	how           uint64 // RESOLVE_* of openat2(2)
	users, groups idMap  // nil: those of this node
}

// Local returns a directory of this node. A link in it that leads out of it is
// an error. The caller closes it.
func Local(dir string) (*Tree, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Tree{dir: f, how: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}, nil
}

// Close leaves the files as they are.
func (t *Tree) Close() error { return t.dir.Close() }

// Mode returns the type and mode of what path, with links followed, leads to.
func (t *Tree) Mode(path string) (fs.FileMode, error) {
	f, err := t.open(path, unix.O_PATH)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Mode(), nil
}

// open opens what path leads to. It must be opened by O_PATH, or as a directory.
func (t *Tree) open(path string, flags uint64) (*os.File, error) {
	if t.how&unix.RESOLVE_BENEATH == 0 {
		path = "/" + path
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: t.how}
	for {
		fd, err := unix.Openat2(int(t.dir.Fd()), path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR): // something was renamed meanwhile
			continue
		case errors.Is(err, unix.ENOSYS):
			err = errors.New("this needs Linux 5.6")
		case errors.Is(err, unix.EXDEV):
			err = errors.New("a link leads elsewhere")
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
}

// reopen opens for reading or writing the regular file that f, opened by
// O_PATH, is.
func reopen(f *os.File, flags int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
}

// below opens, by O_PATH, what is called name in a directory, be it a link.
func below(dir *os.File, name string) (*os.File, *unix.Stat_t, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, &st, nil
}

// becomeRoot makes the goroutine's thread, which it never leaves, make files
// as the root of the tree's user namespace: of who is nobody there the kernel
// takes none. What else the node's root may do stays.
//
// kernel: capabilities(7), "Effect of user ID changes": a file system user ID
// other than 0 takes capabilities away from those that are in effect, and they
// may be put into effect again.
func (t *Tree) becomeRoot() error {
	uid, hasUser := t.users.toHere(0)
	gid, hasGroup := t.groups.toHere(0)
	if !hasUser || !hasGroup {
		return errors.New("the container's user namespace has no root")
	}
	if t.users == nil || uid == 0 && gid == 0 {
		return nil
	}
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if err := errors.Join(unix.Setfsgid(gid), unix.Setfsuid(uid)); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}
