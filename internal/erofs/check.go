package erofs

import (
	"bytes"
	"context"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

// readable tells whether images like this one can be read here at all.
func (i *Image) readable() error {
	const known = IncompatZeroPadding | IncompatBigPcluster | IncompatChunks | IncompatDevices | IncompatTailPacking | IncompatFragments
	if unknown := i.super.incompat &^ known; unknown != 0 {
		return fault.New(fault.Unimplemented, "", "the EROFS image has features that cannot be checked: %s", strings.Join(featureNames(unknown), ", "))
	}
	if i.super.incompat&IncompatDevices != 0 && i.spare > 0 {
		return fault.New(fault.Unknown, "", "the EROFS image needs %d more devices", i.spare)
	}
	return nil
}

// Check walks everything once: all metadata is in bounds, names are in order
// and possible, each directory has one parent and is what it says. Overlayfs's
// own attributes are refused, but for those of opaque directories: they could
// point into other layers. It reads no content of files; of what is compressed
// it looks at how, and that there is room for the index, not where each piece
// is: kernels check that, and the checksums of decompressors, as they read.
// Whether the kernel knows the image's features is the caller's to find out.
//
// Errors are of kind Unknown, Unimplemented for features that cannot be
// checked, or of the image's reader.
func (i *Image) Check(ctx context.Context) error {
	w := newWalker(i)
	if err := w.checkPacked(); err != nil {
		return err
	}
	return w.walk(ctx, func(path string, f *file) error { return w.check(f) })
}

// check checks one file, apart from what is in a directory.
func (w *walker) check(f *file) error {
	if err := w.spend(int64(f.xattrs)); err != nil {
		return err
	}
	list, err := w.attributes(f, false)
	if err != nil {
		return err
	}
	for _, x := range list {
		overlay := x.index == indexTrusted && (strings.HasPrefix(x.name, "overlay.") || x.name == "overlay")
		if overlay && (x.name != opaqueAttr || f.kind() != typeDir || x.value != "y" && x.value != "x") {
			return damaged("inode %d has the attribute trusted.%.50s", f.number, x.name)
		}
	}
	switch f.kind() {
	case typeLink:
		_, err = w.target(f)
	case typeRegular:
		err = w.checkContent(f)
	}
	return err
}

// checkContent checks where a file's content is.
func (w *walker) checkContent(f *file) error {
	switch f.layout {
	case compressedFull, compressedCompact:
		return w.checkCompressed(f)
	case chunkBased:
		return w.checkChunks(f)
	}
	blocks := f.blocks(w.block)
	if f.layout == flatInline && blocks > 0 {
		at, length, err := w.piece(f, blocks-1)
		if err != nil {
			return err
		}
		if at > w.end-length {
			return damaged("the content of inode %d is outside", f.number)
		}
		blocks--
	}
	if blocks > 0 && blocks > w.end/w.block-int64(f.u) {
		return damaged("the content of inode %d is outside", f.number)
	}
	return nil
}

// checkPacked checks the file that has the fragments of others. It has no name.
func (w *walker) checkPacked() error {
	if err := w.readable(); err != nil || w.super.incompat&IncompatFragments == 0 || w.super.packed == 0 {
		return err
	}
	f, err := w.file(w.super.packed)
	if err != nil {
		return err
	}
	if f.kind() != typeRegular {
		return damaged("inode %d, of fragments, is no file", f.number)
	}
	w.packed = f.size
	return w.check(f)
}

// What the header of a compressed file's index may say of it (kernel:
// erofs_fs.h, Z_EROFS_ADVISE_…).
const (
	adviseShort    = 0x01 // entries of 2 bytes where there are enough of them
	adviseInline   = 0x08 // the last piece is behind the index
	adviseFragment = 0x20 // the last piece is in the packed file

	wholeFragment = 1 << 7 // the file is in the packed one, and has no index
)

// checkCompressed checks how a file is compressed.
//
// kernel: fs/erofs/zmap.c, z_erofs_fill_inode_lazy
func (w *walker) checkCompressed(f *file) error {
	const withHeader = IncompatBigPcluster | IncompatTailPacking | IncompatFragments
	at := (f.behind() + 7) &^ 7
	head := make([]byte, 8)
	if f.layout == compressedCompact || w.super.incompat&withHeader != 0 {
		p, err := w.bytes(at, 8)
		if err != nil {
			return err
		}
		copy(head, p)
	}
	advise := le.Uint16(head[4:])
	if head[7]&wholeFragment != 0 {
		if from := int64(le.Uint64(head) &^ (1 << 63)); f.size > w.packed || from > w.packed-f.size {
			return damaged("the content of inode %d is outside of the packed file", f.number)
		}
		return nil
	}
	if advise&adviseFragment != 0 && w.packed == 0 {
		return damaged("inode %d has its end in a packed file, and there is none", f.number)
	}
	if head[6]&0xf >= byte(len(algorithms)) || head[6]>>4 >= byte(len(algorithms)) {
		return damaged("inode %d is compressed by unknown algorithms: %#x", f.number, head[6])
	}
	bits := uint(w.super.blockBits) + uint(head[7]&0xf)
	count := (f.size + 1<<bits - 1) >> bits
	end := at + 16 + 8*count
	if f.layout == compressedCompact {
		end = compactEnd(at+8, count, advise&adviseShort != 0)
	}
	if advise&adviseInline != 0 {
		end += int64(le.Uint16(head[2:]))
	}
	if count > w.end || end > w.end {
		return damaged("where the content of inode %d is, is outside", f.number)
	}
	return nil
}

// compactEnd returns where an index of the compact form ends: entries of 4
// bytes, but of 2 for as many times 16 as begin at a multiple of 32 bytes.
//
// kernel: fs/erofs/zmap.c, z_erofs_load_compact_lcluster
func compactEnd(at, count int64, short bool) int64 {
	first := (-at & 31) / 4
	if !short || first >= count {
		return at + 4*count
	}
	return at + 4*count - 2*((count-first)&^15)
}

func (w *walker) checkChunks(f *file) error {
	const indexes = 0x20
	format := f.u & 0xffff
	bits := int64(w.super.blockBits) + int64(format&0x1f)
	if format&^(indexes|0x1f) != 0 || bits > 60 {
		return damaged("inode %d has chunks of the unknown format %#x", f.number, format)
	}
	unit := int64(4)
	if format&indexes != 0 {
		unit = 8
	}
	count := (f.size + 1<<bits - 1) >> bits
	at := (f.behind() + unit - 1) &^ (unit - 1)
	if count > w.end/unit {
		return damaged("inode %d has %d chunks", f.number, count)
	}
	if err := w.spend(count * unit); err != nil {
		return err
	}
	for n := range count {
		p, err := w.bytes(at+n*unit, unit)
		if err != nil {
			return err
		}
		device := uint16(0)
		if unit == 8 {
			device, p = le.Uint16(p[2:]), p[4:]
		}
		block, length := le.Uint32(p), min(1<<bits, f.size-n<<bits)
		if block != 1<<32-1 && (device != 0 || int64(block)*w.block > w.end-length) {
			return damaged("a chunk of inode %d is outside", f.number)
		}
	}
	return nil
}

// A walker walks an image that may be hostile, in bounded time and memory.
type walker struct {
	*cache
	left   int64                  // bytes that may still be looked at; honest images have none twice
	packed int64                  // bytes in the file of fragments
	seen   map[uint64]*[64]uint64 // directories, by inode
	stack  []frame
	path   []byte
}

// A frame is a directory that is being walked.
type frame struct {
	dir    *file
	parent uint64
	path   int    // length
	block  int64  // that is next, or under way
	name   int    // in it
	last   string // name of the block before
	own    int    // how many of "." and ".."
}

func newWalker(i *Image) *walker {
	return &walker{cache: newCache(i), left: i.end, seen: map[uint64]*[64]uint64{}}
}

// spend accounts for bytes that are read.
func (w *walker) spend(n int64) error {
	if w.left -= n; w.left < 0 {
		return damaged("parts of it are used several times")
	}
	return nil
}

// enter begins with a directory.
func (w *walker) enter(dir *file, parent uint64) error {
	page := w.seen[dir.number>>12]
	if page == nil {
		page = new([64]uint64)
		w.seen[dir.number>>12] = page
	}
	bit := uint64(1) << (dir.number & 63)
	if page[dir.number>>6&63]&bit != 0 {
		return damaged("directory %d is in several directories", dir.number)
	}
	page[dir.number>>6&63] |= bit
	w.stack = append(w.stack, frame{dir: dir, parent: parent, path: len(w.path)})
	return w.spend(dir.size)
}

func (w *walker) walk(ctx context.Context, visit func(path string, f *file) error) error {
	if err := w.readable(); err != nil {
		return err
	}
	top, err := w.file(w.super.root)
	if err != nil {
		return err
	}
	if top.kind() != typeDir {
		return damaged("the root is no directory")
	}
	if err := visit(".", top); err != nil {
		return err
	}
	if err := w.enter(top, top.number); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f := &w.stack[len(w.stack)-1]
		w.path = w.path[:f.path]
		if f.block == f.dir.blocks(w.block) {
			if f.own != 2 {
				return damaged("directory %d lacks itself or its parent", f.dir.number)
			}
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		if err := w.walkBlock(f, visit); err != nil {
			return err
		}
	}
	return nil
}

// walkBlock goes on in a directory's block, until a directory is entered or the
// block ends.
func (w *walker) walkBlock(f *frame, visit func(path string, f *file) error) error {
	b, err := w.names(f.dir, f.block)
	if err != nil {
		return err
	}
	if f.name == 0 {
		if f.last, err = b.check(f.last); err != nil {
			return err
		}
	}
	for f.name < b.count {
		number, kind, name, err := b.name(f.name)
		if err != nil {
			return err
		}
		f.name++
		if string(name) == "." || string(name) == ".." {
			f.own++
			if want := map[bool]uint64{true: f.dir.number, false: f.parent}[len(name) == 1]; number != want || kind != typeDir {
				return damaged("directory %d has %s wrong", f.dir.number, name)
			}
			continue
		}
		path := string(w.join(f.path, name))
		if len(path) > maxLink {
			return damaged("a path is longer than %d bytes", maxLink)
		}
		n, err := w.file(number)
		if err != nil {
			return err
		}
		if n.kind() != kind {
			return damaged("inode %d is of another type than its name", number)
		}
		if err := visit(path, n); err != nil {
			return err
		}
		if kind == typeDir {
			w.path = append(w.path[:0], path...)
			return w.enter(n, f.dir.number)
		}
		// What was visited may have taken the block's place.
		if b, err = w.names(f.dir, f.block); err != nil {
			return err
		}
	}
	f.block, f.name = f.block+1, 0
	return nil
}

func (w *walker) join(dir int, name []byte) []byte {
	path := w.path[:dir]
	if dir > 0 {
		path = append(path, '/')
	}
	return append(path, name...)
}

// A nameBlock is a block of a directory, valid until the cache is used again.
type nameBlock struct {
	p      []byte
	count  int
	number uint64 // of the directory
}

// names returns block n of a directory.
func (c *cache) names(dir *file, n int64) (nameBlock, error) {
	at, length, err := c.piece(dir, n)
	if err != nil {
		return nameBlock{}, err
	}
	p, err := c.bytes(at, length)
	if err != nil {
		return nameBlock{}, err
	}
	b := nameBlock{p: p, number: dir.number}
	if len(p) > direntSize {
		b.count = int(le.Uint16(p[8:])) / direntSize
	}
	if b.count == 0 || b.count*direntSize >= len(p) || b.count*direntSize != int(le.Uint16(p[8:])) {
		return b, damaged("directory %d has %d names in a block of %d bytes", dir.number, b.count, len(p))
	}
	return b, nil
}

// name returns name j of the block and what has it.
func (b nameBlock) name(j int) (number uint64, kind uint8, name []byte, err error) {
	d := b.p[direntSize*j:]
	from, to := int(le.Uint16(d[8:])), len(b.p)
	if j+1 < b.count {
		to = int(le.Uint16(d[direntSize+8:]))
	}
	if from < direntSize*b.count || to > len(b.p) || from >= to {
		return 0, 0, nil, damaged("name %d of directory %d is outside", j, b.number)
	}
	name = b.p[from:to]
	if j+1 == b.count {
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
	}
	return le.Uint64(d), d[10], name, nil
}

// check checks the block's names, which come after last, and returns the last.
func (b nameBlock) check(last string) (string, error) {
	before := []byte(last)
	for j := range b.count {
		_, _, name, err := b.name(j)
		switch {
		case err != nil:
			return "", err
		case len(name) == 0 || len(name) > maxName || bytes.ContainsAny(name, "/\x00"):
			return "", damaged("directory %d has the name %.300q", b.number, name)
		case bytes.Compare(before, name) >= 0:
			return "", damaged("%.300q comes after %.300q in directory %d", name, before, b.number)
		}
		before = name
	}
	return string(before), nil
}
