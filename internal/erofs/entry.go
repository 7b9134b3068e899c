package erofs

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."     // AUFS's own, of no meaning to others, but for
	whiteoutOpaque = ".wh..wh..opq" // this one
)

// broken is the error, if err is one, for an entry that cannot be as the layer
// has it. Errors that have a kind keep it; those of the image's file are not
// the layer's fault.
func broken(name string, err error) error {
	if err == nil || fault.KindOf(err) != fault.Internal {
		return err
	}
	if _, ok := errors.AsType[*fileError](err); ok {
		return err
	}
	return fault.New(fault.Unknown, "", "layer entry %.200q: %w", name, err)
}

// entry takes one entry of the archive.
func (b *builder) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return broken(h.Name, errors.New("the root is no directory"))
		}
		return broken(".", b.describe(root, h))
	}
	dirName, base := split(name)
	dir, err := b.directory(dirName)
	if err != nil {
		return broken(name, err)
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return broken(name, b.whiteout(dir, base))
	}
	if len(base) > maxName {
		return broken(name, errTooLong)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return broken(name, b.makeDir(h, dir, base))
	case tar.TypeLink:
		return broken(name, b.hardLink(h, dir, base)) // attributes are its target's
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return b.file(h, content, name, dir, base)
	}
	return broken(name, b.special(h, dir, base))
}

// cleanName returns a relative name without "." and "..". A leading slash
// means nothing; a name that leads out of the archive is refused.
func cleanName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fault.New(fault.Unknown, "", "layer entry %.200q leads out of the layer", name)
	}
	return clean, nil
}

func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

// directory returns the directory of a clean name, made if it is not there.
func (b *builder) directory(name string) (uint32, error) {
	if b.dirGood && b.dirName == name {
		return b.dir, nil
	}
	if len(name) > maxLink {
		return 0, errTooLong
	}
	dir, err := b.tree.resolve(root, name)
	if errors.Is(err, errNotThere) || errors.Is(err, errNotDir) {
		dir, err = b.makeAll(name)
	}
	if err != nil {
		return 0, err
	}
	b.dir, b.dirName, b.dirGood = dir, name, true
	return dir, nil
}

// makeAll makes the directories of a name that have no entry, or none yet.
func (b *builder) makeAll(name string) (uint32, error) {
	dir := uint32(root)
	for element := range strings.SplitSeq(name, "/") {
		next, err := b.tree.resolve(dir, element)
		if !errors.Is(err, errNotThere) && !errors.Is(err, errNotDir) {
			if err != nil {
				return 0, err
			}
			dir = next
			continue
		}
		old := b.tree.lookup(dir, element)
		if old != nil && !old.whiteout {
			return 0, errNotDir // a file, or a symbolic link to nowhere
		}
		if next, err = b.tree.mkdir(dir, element); err != nil {
			return 0, err
		}
		d := b.tree.dirs.at(next)
		d.opaque = old != nil
		d.implicit = old == nil
		dir = next
	}
	return dir, nil
}

// replaced says that something is no longer what it was.
func (b *builder) replaced() { b.dirGood = false }

// describe gives a directory what its entry says.
func (b *builder) describe(dir uint32, h *tar.Header) error {
	attrs, err := attributesOf(h, typeDir)
	if err != nil {
		return err
	}
	d := b.tree.dirs.at(dir)
	d.implicit = false
	d.mode, d.uid, d.gid = uint16(h.Mode)&modeBits, owner(h.Uid), owner(h.Gid)
	d.seconds, d.nanos = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	if len(attrs) == 0 {
		return nil
	}
	for _, x := range attrs {
		if err := b.tree.spend(64 + len(x.name) + len(x.value)); err != nil {
			return err
		}
	}
	d.attrs = true
	b.tree.attrs[dir] = merge(b.tree.attrs[dir], attrs)
	return nil
}

// owner is an ID as chown(2) takes it: the lower 32 bits, and -1 for what is.
func owner(id int) uint32 {
	if uint32(id) == 1<<32-1 {
		return 0
	}
	return uint32(id)
}

// whiteout hides what lower layers have. What this layer has itself stays,
// whichever entry comes first (image-spec: layer.md, "Whiteouts").
func (b *builder) whiteout(dir uint32, base string) error {
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case base == whiteoutOpaque:
		b.tree.dirs.at(dir).opaque = true
		return nil
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case hidden == "" || hidden == "." || hidden == "..":
		return errors.New("hides nothing that can be")
	case len(hidden) > maxName:
		return errTooLong
	}
	if n := b.tree.lookup(dir, hidden); n != nil {
		if n.kind == typeDir {
			b.tree.dirs.at(uint32(n.inode)).opaque = true
		}
		return nil
	}
	number, err := b.makeInode(inode{mode: modeChar, links: 1}, nil, nil)
	if err != nil {
		return err
	}
	n, err := b.tree.set(dir, hidden, typeChar, number)
	if err == nil {
		n.whiteout = true
	}
	return err
}

func (b *builder) makeDir(h *tar.Header, dir uint32, base string) error {
	old := b.tree.lookup(dir, base)
	if old != nil && old.kind == typeDir {
		return b.describe(uint32(old.inode), h)
	}
	hidden := old != nil && old.whiteout
	if old != nil {
		b.replaced()
	}
	number, err := b.tree.mkdir(dir, base)
	if err != nil {
		return err
	}
	b.tree.dirs.at(number).opaque = hidden
	return b.describe(number, h)
}

// put puts what is no directory at a name, in place of whatever is there.
func (b *builder) put(dir uint32, base string, kind uint8, number uint64) (*node, error) {
	if b.tree.lookup(dir, base) != nil {
		b.replaced()
	}
	return b.tree.set(dir, base, kind, number)
}

func (b *builder) hardLink(h *tar.Header, dir uint32, base string) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	old := b.tree.lookup(dir, base)
	from, err := b.target(target)
	switch {
	case err != nil:
		return err
	case from != nil && old != nil && from.kind == old.kind && from.inode == old.inode:
		return nil // it is there already
	}
	if old != nil { // what is in the way goes first, and may be the target, or above it
		old.kind = typeNone
		b.replaced()
		if from, err = b.target(target); err != nil {
			return err
		}
	}
	if from == nil || from.kind == typeDir {
		return errors.New("is a hard link to " + strconv.Quote(target) + ", which is no file of this layer")
	}
	from.linked = true
	n, err := b.tree.set(dir, base, from.kind, from.inode)
	if err != nil {
		return err
	}
	n.linked, n.whiteout = true, from.whiteout
	return b.tree.spend(48)
}

// target returns what a hard link is to; nil if there is nothing.
func (b *builder) target(name string) (*node, error) {
	dirName, base := split(name)
	dir, err := b.tree.resolve(root, dirName)
	if errors.Is(err, errNotThere) || errors.Is(err, errNotDir) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if base == "." {
		return nil, nil
	}
	return b.tree.lookup(dir, base), nil
}

// special makes what is neither a file with content nor a directory.
func (b *builder) special(h *tar.Header, dir uint32, base string) error {
	var kind uint8
	switch h.Typeflag {
	case tar.TypeSymlink:
		kind = typeLink
	case tar.TypeChar:
		kind = typeChar
	case tar.TypeBlock:
		kind = typeBlock
	case tar.TypeFifo:
		kind = typeFifo
	default:
		return errors.New("is of the unknown type " + strconv.QuoteRune(rune(h.Typeflag)))
	}
	n, attrs, err := b.inode(h, kind)
	if err != nil {
		return err
	}
	var content []byte
	switch kind {
	case typeLink:
		if h.Linkname == "" || len(h.Linkname) > maxLink || strings.Contains(h.Linkname, "\x00") {
			return errors.New("is a symbolic link to a name that cannot be")
		}
		content = []byte(h.Linkname)
	case typeChar, typeBlock:
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
			return errors.New("has no possible device number")
		}
		n.u = deviceNumber(uint32(h.Devmajor), uint32(h.Devminor))
	}
	number, err := b.makeInode(n, attrs, content)
	if err != nil {
		return err
	}
	made, err := b.put(dir, base, kind, number)
	if err == nil {
		made.whiteout = kind == typeChar && n.u == 0
	}
	return err
}
