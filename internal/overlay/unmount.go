package overlay

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unmount unmounts all that is mounted on a directory, and removes it.
func Unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case errors.Is(err, unix.EINVAL):
			err := os.Remove(target)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return err
		}
	}
}

// IsMount reports whether something is mounted on a directory.
func IsMount(path string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Lstat(path, &here); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(path), &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}
