// Package overlay mounts overlayfs: layers under a writable one or, read-only,
// under none, as any kernel from 5.4 on can, also shown by the map of a user
// namespace. It knows directories and nothing of images, whose package calls it.
package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
)

// A Mount is one of overlayfs.
type Mount struct {
	Lowers      []string // topmost first; at least one, without Upper at least two
	Upper, Work string   // empty: read-only
	Label       string   // of all files; empty: those they have
}

// Old is set once the kernel turned out not to have lowerdir+, which is in
// Linux 6.5; tests set it.
var Old atomic.Bool

// noVolatile likewise, for what is in Linux 5.10.
var noVolatile atomic.Bool

// Prepare makes the writable side. The root of a merged tree shows the
// attributes of Upper, so they are taken from the topmost layer, the owner as
// ids maps it.
func (m Mount) Prepare(ids idmap.Map) error {
	if err := os.Mkdir(m.Work, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return classify(err)
	}
	// Left by a volatile mount that a reboot ended; it would refuse the next.
	if err := os.RemoveAll(filepath.Join(m.Work, "work", "incompat")); err != nil {
		return err
	}
	err := os.Mkdir(m.Upper, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return classify(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(m.Lowers[0], &st); err != nil {
		return err
	}
	uid, gid := ids.Host(st.Uid, st.Gid)
	if err := os.Lchown(m.Upper, int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Chmod(m.Upper, st.Mode&0o7777)
}

// On mounts on target.
//
// index and metacopy stay off: with them, an upper layer is tied to its lowers'
// inodes, and depends on attributes that layers may not have. volatile spares
// the sync of all of Upper at unmount; the layer is deleted right after it.
func (m Mount) On(target string) error {
	if !Old.Load() {
		err := m.mountNew(target)
		if err == nil || !(errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM)) {
			return err
		}
		if err := m.mountOld(target); err != nil {
			return err
		}
		Old.Store(true)
		return nil
	}
	return m.mountOld(target)
}

// mountNew uses the mount API that takes lower layers one by one, however many
// and however long their names.
func (m Mount) mountNew(target string) error {
	if noVolatile.Load() || m.Upper == "" {
		return m.tryNew(target, false)
	}
	err := m.tryNew(target, true)
	if errors.Is(err, unix.EINVAL) {
		if err = m.tryNew(target, false); err == nil {
			noVolatile.Store(true)
		}
	}
	return err
}

func (m Mount) tryNew(target string, volatile bool) error {
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
	for _, lower := range m.Lowers {
		if err == nil {
			set("lowerdir+", lower)
		}
	}
	for _, option := range [][2]string{{"upperdir", m.Upper}, {"workdir", m.Work}, {"index", "off"}, {"metacopy", "off"}, {"context", m.Label}} {
		if err == nil && option[1] != "" {
			set(option[0], option[1])
		}
	}
	if err == nil && volatile {
		err = unix.FsconfigSetFlag(fsfd, "volatile")
	}
	if err == nil && m.Upper == "" {
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
func (m Mount) mountOld(target string) error {
	if noVolatile.Load() || m.Upper == "" {
		return m.tryOld(target, "")
	}
	err := m.tryOld(target, ",volatile")
	if errors.Is(err, unix.EINVAL) {
		if err = m.tryOld(target, ""); err == nil {
			noVolatile.Store(true)
		}
	}
	return err
}

func (m Mount) tryOld(target, more string) error {
	short := &shortener{}
	if total := len(strings.Join(m.Lowers, ":")) + len(m.Upper) + len(m.Work); total < 3800 && !strings.ContainsAny(strings.Join(m.Lowers, "")+m.Upper+m.Work, `,:\`) {
		short.limit = total
	}
	defer short.close()
	var paths []string
	paths = append(paths, m.Lowers...)
	flags := uintptr(unix.MS_RDONLY)
	if m.Upper != "" {
		paths, flags = append(paths, m.Upper, m.Work), 0
	}
	names := make([]string, 0, len(paths))
	for _, path := range paths {
		name, err := short.name(path)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	n := len(m.Lowers)
	options := "lowerdir=" + strings.Join(names[:n], ":")
	if m.Upper != "" {
		options += ",upperdir=" + names[n] + ",workdir=" + names[n+1]
	}
	if m.Label != "" {
		more += `,context="` + m.Label + `"` // it may have commas
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

// classify gives an unclassified error about a full disk its kind.
func classify(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Exhausted, "", "no space left for a writable layer: %w", err)
	}
	return err
}
