package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// attributes are what a directory shows besides what is in it.
type attributes struct {
	mode     uint32 // permissions, set-user-ID and the like
	uid, gid uint32
	time     time.Time
	xattrs   map[string]string // all of them
}

// A kindOfFile is what a name in a layer is.
type kindOfFile uint8

const (
	absent kindOfFile = iota
	directory
	other // a whiteout, too
)

// A looker looks up a relative, clean name in one layer, "." for its root. It
// follows no symbolic links; those above the name are real directories.
type looker interface {
	look(name string) (kindOfFile, attributes, error)
}

// A stacked is a stack of layers, topmost first.
type stacked []stackedPart

type stackedPart struct {
	looker
	implicit map[string]bool
}

// mends returns the directories that a mending layer needs, with what they are
// to be like; none if there is nothing to mend.
func (s stacked) mends(ctx context.Context) (map[string]attributes, error) {
	names := map[string]bool{}
	for _, part := range s {
		for name := range part.implicit {
			names[name] = true
		}
	}
	mends := map[string]attributes{}
	for _, name := range slices.Sorted(maps.Keys(names)) { // neighbours are read together
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		model, hiding, err := s.resolve(name)
		if err != nil {
			return nil, err
		}
		if !hiding || model.isPlain() {
			continue
		}
		for dir := name; ; dir = path.Dir(dir) {
			if mends[dir], _, err = s.resolve(dir); err != nil {
				return nil, err
			}
			if dir == "." {
				break
			}
		}
	}
	return mends, nil
}

// resolve finds what a merged directory should show: the attributes of the
// topmost one that has an entry of its own; those of one without if none has.
// hiding tells that another one, without an entry, is above it or is all there
// is.
func (s stacked) resolve(name string) (model attributes, hiding bool, err error) {
	for _, part := range s {
		found, attrs, last, err := part.find(name)
		if err != nil {
			return attributes{}, false, err
		}
		if found {
			if !part.implicit[name] {
				return attrs, hiding, nil
			}
			hiding = true
		}
		if last {
			break
		}
	}
	return attributes{mode: 0o755}, hiding, nil
}

// find tells whether a layer has a directory, and whether it hides all that
// lower layers have under the name.
func (p stackedPart) find(name string) (found bool, attrs attributes, last bool, err error) {
	elements := strings.Split(name, "/")
	if name == "." {
		elements = nil
	}
	for i := range len(elements) + 1 {
		kind, attrs, err := p.look(path.Join(".", path.Join(elements[:i]...)))
		switch {
		case err != nil || kind == absent:
			return false, attributes{}, last, err
		case kind == other: // a whiteout, or something else in its place
			return false, attributes{}, true, nil
		}
		if attrs.xattrs[opaqueAttr] == "y" {
			last = true
		}
		if i == len(elements) {
			return true, attrs, last, nil
		}
	}
	return false, attributes{}, last, nil
}

// isPlain reports whether a directory looks as one without an entry does.
func (a attributes) isPlain() bool {
	return len(a.wanted()) == 0 && a.uid == 0 && a.gid == 0 && a.mode == 0o755
}

// wanted returns the extended attributes without overlayfs's own.
func (a attributes) wanted() map[string]string {
	all := map[string]string{}
	for name, value := range a.xattrs {
		if wantedXattr(name) {
			all[name] = value
		}
	}
	return all
}

// mendingTar returns a layer of directories.
func mendingTar(dirs map[string]attributes) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range sortedNames(dirs) {
		a := dirs[name]
		h := &tar.Header{
			Name: name + "/", Typeflag: tar.TypeDir, Mode: int64(a.mode), Uid: int(a.uid), Gid: int(a.gid),
			ModTime: a.time, Format: tar.FormatPAX, PAXRecords: map[string]string{},
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(0, 0)
		}
		for key, value := range a.wanted() {
			h.PAXRecords[paxXattr+key] = value
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// sortedNames has a directory before what is in it.
func sortedNames(dirs map[string]attributes) []string {
	names := make([]string, 0, len(dirs))
	for name := range dirs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
