// Package mount mounts EROFS images that are files, read-only, in whichever way
// the kernel has: from the file itself (Linux 6.12), or through a loop device.
//
// It owns no state: what is mounted is the kernel's to remember, and a loop
// device goes with its mount. Package layer calls it.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Way is how images are mounted.
type Way uint8

// The ways. None is that there is none.
const (
	None Way = iota
	File     // the kernel reads the file itself
	Loop     // through a loop device, which ends with the mount
)

// String returns what users are told.
func (w Way) String() string { return [...]string{"not at all", "from files", "by loop devices"}[w] }

// Mount mounts the image in file at target, a directory. The file may be
// unlinked as long as it is mounted. Bytes behind the image do no harm.
func (w Way) Mount(file, target string) error {
	source := file
	if w == Loop {
		device, err := attachLoop(file)
		if err != nil {
			return fault.New(fault.Internal, "", "loop device for %s: %w", file, err)
		}
		defer device.Close() // by then the mount holds it
		source = device.Name()
	}
	if err := unix.Mount(source, target, "erofs", unix.MS_RDONLY, ""); err != nil {
		return fault.New(fault.Internal, "", "mount the EROFS image %s: %w", file, err)
	}
	return nil
}

// Unmount unmounts whatever is mounted at target, however often. What has files
// open there keeps them. It succeeds if there is nothing.
func Unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// Is reports whether an EROFS image is mounted at target.
func Is(target string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(target, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	// The directory that it would be mounted on may be on EROFS, too.
	if err != nil || uint64(st.Type) != unix.EROFS_SUPER_MAGIC_V1 {
		return false, err
	}
	var here, above unix.Stat_t
	if err := errors.Join(unix.Lstat(target, &here), unix.Lstat(filepath.Dir(target), &above)); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

// Probe finds the first way that works for images in dir, by one that it writes
// there, mounts at a directory below at, shows to check, and stacks under
// overlayfs. Nothing stays. why says what the kernel said to the ways before the
// one that works, nil if that is the first; Exhausted if the image could not be
// written.
func Probe(image []byte, dir, at string, check func(root string) error) (way Way, why error) {
	file, err := os.CreateTemp(dir, ".probe-")
	if err == nil {
		defer func() {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}()
		_, err = file.Write(image)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return None, fault.New(fault.Exhausted, "", "write an image to try: %w", err)
	}
	if err != nil {
		return None, err
	}
	return Try(file.Name(), at, check)
}

// Try is Probe by an image that is there.
func Try(file, at string, check func(root string) error) (way Way, why error) {
	dir, err := os.MkdirTemp(at, ".probe-")
	if err != nil {
		return None, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, way := range []Way{File, Loop} {
		err := way.tryIn(file, dir, check)
		if err == nil {
			return way, why
		}
		why = errors.Join(why, fmt.Errorf("%s: %w", way, err))
	}
	return None, why
}

// Try mounts an image, at a directory below at, with an overlay on it, and
// unmounts it. The error is the kernel's.
func (w Way) Try(file, at string) error {
	dir, err := os.MkdirTemp(at, ".probe-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return w.tryIn(file, dir, func(string) error { return nil })
}

// tryIn mounts an image and an overlay on it, below a directory.
func (w Way) tryIn(file, dir string, check func(root string) error) (err error) {
	lower, bottom, merged := filepath.Join(dir, "lower"), filepath.Join(dir, "bottom"), filepath.Join(dir, "merged")
	for _, d := range []string{lower, bottom, merged} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := w.Mount(file, lower); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, Unmount(lower)) }()
	if err := check(lower); err != nil {
		return err
	}
	// The kernel bounds how deep file systems are stacked: with the store in a
	// container, or in a file of another file system, this may be too deep.
	below, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(below)
	short := "/proc/self/fd/" + strconv.Itoa(below) // a path may have colons
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+short+"/lower:"+short+"/bottom"); err != nil {
		return fmt.Errorf("overlayfs on it: %w", err)
	}
	return Unmount(merged)
}
