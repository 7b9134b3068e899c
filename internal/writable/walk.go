package writable

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A walk adds up what a directory tree takes on disk, as du does: blocks, and
// each inode once. A container may change the tree meanwhile, and may want it
// to be walked wrongly: no symbolic link is followed, no other file system
// entered, and however deep the tree and large its directories, no more than
// maxOpen descriptors and a piece of each directory on the way are held.
type walk struct {
	pause func(busy time.Duration) error // called every now and then; an error ends the walk

	device  uint64
	blocks  uint64
	inodes  uint64
	linked  map[uint64]bool // inodes seen that have several names
	stack   []level
	entries int
	since   time.Time
	buf     [8 << 10]byte // a piece of a directory
}

// A level is a directory between the root of the tree and where the walk is.
type level struct {
	fd      int   // -1: closed, to be opened again through ".."
	offset  int64 // then, where reading it goes on
	inode   uint64
	subdirs []string // of what was read, still to be entered
	read    bool     // to its end
}

const (
	maxOpen    = 32
	pauseEvery = 256 // entries
	maxLinked  = 1 << 16
)

// errMoved ends a walk too early: the way back is gone.
var errMoved = errors.New("a directory was moved while it was counted")

// measure walks the tree at root.
func (w *walk) measure(root string) (blocks, inodes uint64, err error) {
	w.linked, w.since = map[uint64]bool{}, time.Now()
	defer func() {
		for _, l := range w.stack {
			if l.fd >= 0 {
				_ = unix.Close(l.fd)
			}
		}
	}()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: root, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return 0, 0, err
	}
	w.device = st.Dev
	w.count(&st)
	w.enter(fd, st.Ino)
	for len(w.stack) > 0 {
		if err := w.step(); errors.Is(err, errMoved) {
			break // what was seen is more than nothing
		} else if err != nil {
			return 0, 0, err
		}
	}
	return w.blocks, w.inodes, nil
}

// step enters the next directory below the deepest level, reads on in that, or
// leaves it.
func (w *walk) step() error {
	top := &w.stack[len(w.stack)-1]
	switch {
	case len(top.subdirs) > 0:
	case top.read:
		return w.leave()
	default:
		return w.readOn(top)
	}
	name := top.subdirs[len(top.subdirs)-1]
	top.subdirs = top.subdirs[:len(top.subdirs)-1]
	fd, err := unix.Openat(top.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return changed(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Dev != w.device {
		_ = unix.Close(fd)
		return err
	}
	w.enter(fd, st.Ino)
	return nil
}

// changed excuses what comes of a tree that changes.
func changed(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

// enter makes a directory the deepest level, and closes the one maxOpen above it.
func (w *walk) enter(fd int, inode uint64) {
	w.stack = append(w.stack, level{fd: fd, inode: inode})
	far := len(w.stack) - maxOpen
	if far <= 0 {
		return
	}
	if l := &w.stack[far-1]; l.fd >= 0 {
		l.offset, _ = unix.Seek(l.fd, 0, unix.SEEK_CUR) // a directory has one
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}

// readOn counts what is in the next piece of a directory.
func (w *walk) readOn(top *level) error {
	n, err := unix.ReadDirent(top.fd, w.buf[:])
	if n <= 0 {
		top.read = true
		return changed(err)
	}
	_, _, names := unix.ParseDirent(w.buf[:n], -1, nil)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(top.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // gone meanwhile
		}
		if st.Dev != w.device {
			continue
		}
		w.count(&st)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			top.subdirs = append(top.subdirs, name)
		}
	}
	return w.rest(len(names))
}

// leave goes back up one level.
func (w *walk) leave() error {
	n := len(w.stack)
	top := w.stack[n-1]
	defer unix.Close(top.fd)
	w.stack = w.stack[:n-1]
	if n == 1 || w.stack[n-2].fd >= 0 {
		return w.rest(1)
	}
	above := &w.stack[n-2]
	fd, err := unix.Openat(top.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != above.inode || st.Dev != w.device {
		_ = unix.Close(fd)
		return errMoved
	}
	if _, err := unix.Seek(fd, above.offset, unix.SEEK_SET); err != nil {
		_ = unix.Close(fd)
		return err
	}
	above.fd = fd
	return w.rest(1)
}

func (w *walk) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if w.linked[st.Ino] {
			return
		}
		if len(w.linked) < maxLinked { // beyond, some count twice
			w.linked[st.Ino] = true
		}
	}
	w.blocks += uint64(st.Blocks)
	w.inodes++
}

// rest lets others work after some entries.
func (w *walk) rest(entries int) error {
	if w.entries += entries; w.entries < pauseEvery || w.pause == nil {
		return nil
	}
	w.entries = 0
	err := w.pause(time.Since(w.since))
	w.since = time.Now()
	return err
}

// Measure returns what the tree at root takes on disk, in bytes and inodes,
// counted at once. None there is nothing.
func Measure(ctx context.Context, root string) (bytes, inodes uint64, err error) {
	w := walk{pause: func(time.Duration) error { return context.Cause(ctx) }}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, 0, nil
		}
		return 0, 0, &os.PathError{Op: "stat", Path: root, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return uint64(st.Blocks) * 512, 1, nil
	}
	blocks, inodes, err := w.measure(root)
	return blocks * 512, inodes, err
}
