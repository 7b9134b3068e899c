package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mend makes layer id, to go on top of stack (topmost first), if directories in
// stack hide the attributes of those below them. It returns false, and makes
// nothing, if there are none.
func (d *Dirs) Mend(ctx context.Context, id string, stack []Part) (Info, bool, error) {
	s := make(stacked, 0, len(stack))
	names := map[string]bool{}
	for _, part := range stack {
		lower, err := d.Lower(part.ID)
		if err != nil {
			return Info{}, false, err
		}
		p := stackedPart{path: lower, implicit: map[string]bool{}}
		for _, name := range part.Implicit {
			p.implicit[name] = true
			names[name] = true
		}
		s = append(s, p)
	}
	mends := map[string]string{} // what to make → the directory it is to be like
	for name := range names {
		if ctx.Err() != nil {
			return Info{}, false, context.Cause(ctx)
		}
		model, hiding := s.resolve(name)
		if !hiding || model == "" || isPlain(model) {
			continue
		}
		for dir := name; ; dir = filepath.Dir(dir) {
			mends[dir], _ = s.resolve(dir)
			if dir == "." {
				break
			}
		}
	}
	if len(mends) == 0 {
		return Info{}, false, nil
	}
	info, err := d.build(id, func(root string) ([]string, error) { return nil, makeLike(root, mends) })
	return info, err == nil, err
}

// A stacked is a stack of layers on disk, topmost first.
type stacked []stackedPart

type stackedPart struct {
	path     string
	implicit map[string]bool
}

// resolve finds the directory whose attributes a merged directory should show:
// the topmost one that has an entry of its own; empty if none has. hiding tells
// that another one, without an entry, is above it or is all there is.
func (s stacked) resolve(name string) (model string, hiding bool) {
	for _, part := range s {
		found, last := part.find(name)
		if found {
			if !part.implicit[name] {
				return filepath.Join(part.path, name), hiding
			}
			hiding = true
		}
		if last {
			break
		}
	}
	return "", hiding
}

// find tells whether a layer has a directory, and whether it hides all that
// lower layers have under the name.
func (p stackedPart) find(name string) (found, last bool) {
	path := p.path
	elements := strings.Split(name, "/")
	if name == "." {
		elements = nil
	}
	for i := -1; i < len(elements); i++ {
		if i >= 0 {
			path = filepath.Join(path, elements[i])
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return false, last // all above it in the path are real directories
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false, true // a whiteout, or something else in its place
		}
		var value [1]byte
		if n, err := unix.Lgetxattr(path, opaqueAttr, value[:]); err == nil && n == 1 && value[0] == 'y' {
			last = true
		}
	}
	return true, last
}

// isPlain reports whether a directory looks as one without an entry does.
func isPlain(path string) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return true
	}
	attrs, err := xattrs(path)
	return err == nil && len(attrs) == 0 && st.Uid == 0 && st.Gid == 0 && st.Mode&0o7777 == 0o755
}

// makeLike makes directories below root, each like its model.
func makeLike(root string, models map[string]string) error {
	names := make([]string, 0, len(models))
	for name := range models {
		names = append(names, name)
	}
	slices.Sort(names) // a directory comes before what is in it
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range slices.Backward(names) { // and is finished after that
		if err := copyAttributes(filepath.Join(root, name), models[name]); err != nil {
			return err
		}
	}
	return nil
}

func copyAttributes(path, model string) error {
	if model == "" {
		return os.Chmod(path, 0o755)
	}
	var st unix.Stat_t
	if err := unix.Lstat(model, &st); err != nil {
		return err
	}
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	attrs, err := xattrs(model)
	if err != nil {
		return err
	}
	for name, value := range attrs {
		if err := unix.Lsetxattr(path, name, value, 0); err != nil {
			return err
		}
	}
	if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
		return err
	}
	return os.Chtimes(path, time.Time{}, time.Unix(st.Mtim.Unix()))
}

// xattrs returns a file's extended attributes, without overlayfs's own.
func xattrs(path string) (map[string][]byte, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || !wantedXattr(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		all[name] = value[:n]
	}
	return all, nil
}
