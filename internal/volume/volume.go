// Package volume makes the volumes that images ask for.
package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Make makes a directory below dir for each of an image's VOLUMEs that
// no mount of the container's covers, fills it with the image's content there,
// and returns how to mount them.
func Make(names map[string]struct{}, covered []*runtimeapi.Mount, rootfs, dir string) ([]*runtimeapi.Mount, error) {
	taken := map[string]bool{"/": true}
	for _, m := range covered {
		taken[path.Clean("/"+m.ContainerPath)] = true
	}
	var all []*runtimeapi.Mount
	for _, name := range slices.Sorted(maps.Keys(names)) {
		at := path.Clean("/" + name)
		if taken[at] {
			continue
		}
		taken[at] = true
		source, err := securejoin.SecureJoin(rootfs, at)
		if err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", name, err)
		}
		target := filepath.Join(dir, strconv.Itoa(len(all)))
		if err := fillVolume(source, target); err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", name, err)
		}
		all = append(all, &runtimeapi.Mount{ContainerPath: at, HostPath: target})
	}
	return all, nil
}

func fillVolume(source, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(source)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	// Directories get their mode and times last: filling them needs and changes both.
	var dirs []string
	err = filepath.WalkDir(source, func(from string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, from)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			dirs = append(dirs, rel)
			if rel == "." {
				return nil
			}
			return os.Mkdir(filepath.Join(target, rel), 0o700)
		}
		return copyFile(from, filepath.Join(target, rel))
	})
	if err != nil {
		return err
	}
	for _, rel := range slices.Backward(dirs) {
		if err := copyAttributes(filepath.Join(source, rel), filepath.Join(target, rel)); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies anything but a directory.
func copyFile(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = copyContent(from, to)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	return copyAttributes(from, to)
}

func copyContent(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// copyAttributes gives to the owner, mode and times of from.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimes", Path: to, Err: err}
	}
	return nil
}
