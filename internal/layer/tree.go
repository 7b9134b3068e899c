package layer

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

const opaqueAttr = "trusted.overlay.opaque"

// A tree is a directory that is being filled by nobody else. Names are
// relative and clean; symbolic links on the way to a name's last element are
// followed as if the tree were the root of the file system, so none leads out.
type tree struct {
	root int
	path string

	dirName string // the directory that dir is open on
	dir     int

	implicit map[string]bool // by their paths without symbolic links
	noted    int             // bytes, see note
}

// maxNoted bounds what is kept in memory of a layer's directories: a small
// blob can hold any number of them, and one name stands for a directory in
// each of its parts. It is enough for half a million. Only tests change it.
var maxNoted = 64 << 20

// note accounts for a directory that is to be remembered.
func (t *tree) note(name string) error {
	if t.noted += len(name) + 64; t.noted > maxNoted {
		return fault.New(fault.Unknown, "", "the layer has too many directories: their names take more than %d MiB", maxNoted>>20)
	}
	return nil
}

func openTree(root string) (*tree, error) {
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &tree{root: fd, path: root, dir: -1, implicit: map[string]bool{".": true}}, nil
}

func (t *tree) close() {
	t.forget()
	_ = unix.Close(t.root)
}

// forget closes the remembered directory, for it may be about to go.
func (t *tree) forget() {
	if t.dir >= 0 {
		_ = unix.Close(t.dir)
		t.dir = -1
	}
}

// open opens a directory by its name, with O_PATH.
func (t *tree) open(name string) (int, error) {
	for !noOpenat2.Load() {
		fd, err := unix.Openat2(t.root, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_XDEV,
		})
		switch {
		case errors.Is(err, unix.EAGAIN): // a rename somewhere on the host at that moment
			continue
		case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM):
			noOpenat2.Store(true)
			continue
		}
		return fd, err
	}
	full, err := securejoin.SecureJoin(t.path, name)
	if err != nil {
		return -1, err
	}
	return unix.Open(full, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// noOpenat2 is set where the kernel is older than Linux 5.6, or hides it.
var noOpenat2 atomic.Bool

// parent returns the directory that name is in, made if it does not exist, and
// name's last element. The descriptor is good until the next call.
func (t *tree) parent(name string) (dir int, base string, err error) {
	return t.find(name, true)
}

// directory is parent that makes nothing, for a name that is to be a directory
// and may be something else by now, or gone.
func (t *tree) directory(name string) (dir int, base string, ok bool) {
	dir, base, err := t.find(name, false)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return dir, base, err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func (t *tree) find(name string, create bool) (dir int, base string, err error) {
	dirName, base := path.Dir(name), path.Base(name)
	if t.dir >= 0 && t.dirName == dirName {
		return t.dir, base, nil
	}
	fd, err := t.open(dirName)
	if create && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		if err := t.mkdirImplicit(dirName); err != nil {
			return -1, "", err
		}
		fd, err = t.open(dirName)
	}
	if err != nil {
		return -1, "", broken(name, err)
	}
	t.forget()
	t.dir, t.dirName = fd, dirName
	return fd, base, nil
}

// mkdirImplicit makes a directory that has no entry, or none yet.
func (t *tree) mkdirImplicit(name string) error {
	if name == "." {
		return broken(name, unix.ENOTDIR)
	}
	dir, base, err := t.parent(name)
	if err != nil {
		return err
	}
	hidden, err := t.clearWhiteout(dir, base)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(dir, base, 0o755); err != nil {
		if errors.Is(err, unix.EEXIST) { // a file, or a symbolic link to nowhere
			err = unix.ENOTDIR
		}
		return broken(name, err)
	}
	if err := unix.Fchownat(dir, base, 0, 0, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return broken(name, err)
	}
	if err := unix.Fchmodat(dir, base, 0o755, 0); err != nil {
		return broken(name, err)
	}
	if hidden {
		return t.makeOpaque(dir, base)
	}
	real, err := t.realPath(dir, base)
	if err != nil {
		return err
	}
	t.implicit[real] = true
	return t.note(real)
}

// realPath returns a name's path in the tree without symbolic links.
func (t *tree) realPath(dir int, base string) (string, error) {
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(dir))
	if err != nil {
		return "", err
	}
	root, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(t.root))
	if err != nil {
		return "", err
	}
	return path.Join(strings.TrimPrefix(strings.TrimPrefix(at, root), "/"), base), nil
}

// implicitDirs returns the directories that were made without an entry.
func (t *tree) implicitDirs() []string {
	var names []string
	for name := range t.implicit {
		if _, _, ok := t.directory(name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// clear removes what is at a name, so that something else can be made there.
func (t *tree) clear(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return err
	}
	return os.RemoveAll(procPath(dir, base)) // below it nothing is followed
}

// clearWhiteout removes the whiteout at a name and tells whether one was there.
func (t *tree) clearWhiteout(dir int, base string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return false, nil
	}
	return true, unix.Unlinkat(dir, base, 0)
}

func (t *tree) makeOpaque(dir int, base string) error {
	err := unix.Lsetxattr(procPath(dir, base), opaqueAttr, []byte("y"), 0)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return fault.New(fault.Precondition, "layer", "the file system takes no %s: %w", opaqueAttr, err)
	}
	return broken(base, err)
}

// procPath names something in an open directory for calls that take no
// descriptor.
func procPath(dir int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + base
}

// broken is the error, if err is one, for an entry that cannot be as the layer
// has it. A full or failing disk is not the layer's fault.
func broken(name string, err error) error {
	if err == nil {
		return nil
	}
	for _, disk := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, disk) {
			return classify(err)
		}
	}
	return fault.New(fault.Unknown, "", "layer entry %.200q: %w", name, err)
}
