package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/idmap"
)

// An overlay is a mount of overlayfs.
type overlay struct {
	lowers      []string // topmost first; at least one, without upper at least two
	upper, work string   // empty: read-only
	label       string   // of all files; empty: those they have
}

// What the kernel turned out not to have: volatile is in Linux 5.10, lowerdir+
// in 6.5.
var noVolatile, noLowerAdd atomic.Bool

// prepare makes the writable side. The root of a merged tree shows the
// attributes of upper, so they are taken from the topmost layer, the owner as
// ids maps it.
func (o overlay) prepare(ids idmap.Map) error {
	if err := makeDir(o.work, 0o700); err != nil {
		return err
	}
	// Left by a volatile mount that a reboot ended; it would refuse the next.
	if err := os.RemoveAll(filepath.Join(o.work, "work", "incompat")); err != nil {
		return err
	}
	err := os.Mkdir(o.upper, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return classify(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(o.lowers[0], &st); err != nil {
		return err
	}
	uid, gid := ids.Host(st.Uid, st.Gid)
	if err := os.Lchown(o.upper, int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Chmod(o.upper, st.Mode&0o7777)
}

// mount mounts on target.
//
// index and metacopy stay off: with them, an upper layer is tied to its lowers'
// inodes, and depends on attributes that layers may not have. volatile spares
// the sync of all of upper at unmount; the layer is deleted right after it.
func (o overlay) mount(target string) error {
	if !noLowerAdd.Load() {
		err := o.mountNew(target)
		if err == nil || !(errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM)) {
			return err
		}
		if err := o.mountOld(target); err != nil {
			return err
		}
		noLowerAdd.Store(true)
		return nil
	}
	return o.mountOld(target)
}

// mountNew uses the mount API that takes lower layers one by one, however many
// and however long their names.
func (o overlay) mountNew(target string) error {
	if noVolatile.Load() || o.upper == "" {
		return o.tryNew(target, false)
	}
	err := o.tryNew(target, true)
	if errors.Is(err, unix.EINVAL) {
		if err = o.tryNew(target, false); err == nil {
			noVolatile.Store(true)
		}
	}
	return err
}

func (o overlay) tryNew(target string, volatile bool) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fsfd)
	short := &shortener{limit: 255}
	defer short.close()
	set := func(key, path string) {
		if err == nil {
			if path, err = short.name(path); err == nil {
				err = unix.FsconfigSetString(fsfd, key, path)
			}
		}
		if err != nil {
			err = fmt.Errorf("overlay option %s: %w", key, err)
		}
	}
	set("source", "overlay")
	for _, lower := range o.lowers {
		if err == nil {
			set("lowerdir+", lower)
		}
	}
	for _, option := range [][2]string{{"upperdir", o.upper}, {"workdir", o.work}, {"index", "off"}, {"metacopy", "off"}, {"context", o.label}} {
		if err == nil && option[1] != "" {
			set(option[0], option[1])
		}
	}
	if err == nil && volatile {
		err = unix.FsconfigSetFlag(fsfd, "volatile")
	}
	if err == nil && o.upper == "" {
		err = unix.FsconfigSetFlag(fsfd, "ro")
	}
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("overlay: %w%s", err, kernelSays(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// kernelSays returns the messages that wait in a file system context.
func kernelSays(fsfd int) string {
	var all strings.Builder
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			return all.String()
		}
		all.WriteString(" (" + strings.TrimSpace(string(buf[:n])) + ")")
	}
}

// mountOld is for kernels before 6.5. All options have to fit into a page, so
// with many layers each is named by a descriptor.
func (o overlay) mountOld(target string) error {
	if noVolatile.Load() || o.upper == "" {
		return o.tryOld(target, "")
	}
	err := o.tryOld(target, ",volatile")
	if errors.Is(err, unix.EINVAL) {
		if err = o.tryOld(target, ""); err == nil {
			noVolatile.Store(true)
		}
	}
	return err
}

func (o overlay) tryOld(target, more string) error {
	short := &shortener{}
	if total := len(strings.Join(o.lowers, ":")) + len(o.upper) + len(o.work); total < 3800 && !strings.ContainsAny(strings.Join(o.lowers, "")+o.upper+o.work, `,:\`) {
		short.limit = total
	}
	defer short.close()
	var paths []string
	paths = append(paths, o.lowers...)
	flags := uintptr(unix.MS_RDONLY)
	if o.upper != "" {
		paths, flags = append(paths, o.upper, o.work), 0
	}
	names := make([]string, 0, len(paths))
	for _, path := range paths {
		name, err := short.name(path)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	n := len(o.lowers)
	options := "lowerdir=" + strings.Join(names[:n], ":")
	if o.upper != "" {
		options += ",upperdir=" + names[n] + ",workdir=" + names[n+1]
	}
	if o.label != "" {
		more += `,context="` + o.label + `"` // it may have commas
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options+",index=off,metacopy=off"+more); err != nil {
		return fmt.Errorf("overlay of %d layers: %w", n, err)
	}
	return nil
}

// A shortener gives paths longer than limit the short name of a descriptor, as
// long as it is open.
type shortener struct {
	limit int
	fds   []int
}

func (s *shortener) name(path string) (string, error) {
	if len(path) <= s.limit {
		return path, nil
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	s.fds = append(s.fds, fd)
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

func (s *shortener) close() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
}
