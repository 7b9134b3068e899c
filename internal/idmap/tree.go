package idmap

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Tree is a copy of what is mounted at a place of the host, and below it.
type Tree struct {
	Source   string // a directory or file
	Users    *Users // by whose map it shows its files; nil: as they are
	ReadOnly bool   // all of it, also what is mounted below Source
	Slave    bool   // what is mounted below Source later is mounted in the tree, too
}

// Attach makes the tree and mounts it at a path, which it makes, with the
// directories above. Nothing done to the tree ever reaches Source.
//
// It returns Unimplemented where the kernel, or the file system of Source,
// has no such mounts. After any error Detach is due.
//
// kernel: open_tree(2), mount_setattr(2).
func (t Tree) Attach(at string) error {
	fd, err := t.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fault.New(fault.Internal, "", "%s: %w", t.Source, err)
	}
	if err := makePlace(at, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return fault.New(fault.Internal, "", "%w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fault.New(fault.Internal, "", "attach a copy of %s at %s: %w", t.Source, at, err)
	}
	return nil
}

// Try makes the tree and lets it go again.
func (t Tree) Try() error {
	fd, err := t.open()
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// open makes the tree, mounted nowhere.
func (t Tree) open() (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fault.New(kindOf(err), "", "copy the mounts of %s: %w", t.Source, err)
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if t.Slave {
		attr.Propagation = unix.MS_SLAVE
	}
	if t.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		err = fault.New(kindOf(err), "", "copy the mounts of %s: %w", t.Source, err)
	} else if t.Users != nil {
		err = t.mapTo(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mapTo maps the IDs of the tree, which is not attached yet. Where something
// mounted below its root cannot be mapped, the root alone is, as OCI runtimes
// do by default.
func (t Tree) mapTo(fd int) error {
	namespace, err := t.Users.open()
	if err != nil {
		return err
	}
	defer namespace.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(namespace.Fd())}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	}
	if err == nil {
		return nil
	}
	return fault.New(kindOf(err), "", "map the IDs of %s: the file system it is on, or this kernel, does not allow that: %w", t.Source, err)
}

func kindOf(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
		return fault.Unimplemented
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fault.Precondition
	}
	return fault.Internal
}

// makePlace makes something to mount on.
func makePlace(at string, directory bool) error {
	// Mapped users pass through on their way to what is mounted there.
	if err := os.MkdirAll(filepath.Dir(at), 0o711); err != nil {
		return err
	}
	if directory {
		err := os.Mkdir(at, 0o711)
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Detach unmounts what is mounted at a path, by Attach or otherwise and however
// often, and removes the path, if it is a file or an empty directory. It
// succeeds if there is nothing.
func Detach(at string) error {
	for {
		err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not, or no longer, a mount
		}
		if err != nil {
			return fault.New(fault.Internal, "", "unmount %s: %w", at, err)
		}
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Internal, "", "%w", err)
	}
	return nil
}

// DetachAll does so for all that is in a directory, and removes it.
func DetachAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Internal, "", "%w", err)
	}
	for _, e := range entries {
		if err := Detach(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return Detach(dir)
}
