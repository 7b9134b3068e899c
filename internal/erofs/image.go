package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// Features that a kernel must know to mount an image, as Incompat tells them
// (kernel: erofs_fs.h, EROFS_FEATURE_INCOMPAT_…), with the first Linux that
// does.
const (
	IncompatZeroPadding   = 0x01  // 5.4
	IncompatBigPcluster   = 0x02  // 5.13, and 5.16 for other algorithms
	IncompatChunks        = 0x04  // 5.15
	IncompatDevices       = 0x08  // 5.16
	IncompatTailPacking   = 0x10  // 5.17
	IncompatFragments     = 0x20  // 6.1
	IncompatXattrPrefixes = 0x40  // 6.4
	Incompat48Bit         = 0x80  // 6.15
	IncompatMetabox       = 0x100 // 6.17
)

// An Image is an EROFS image that is read without being mounted. Safe for
// concurrent use.
type Image struct {
	r     io.ReaderAt
	super super
	time  time.Time // of files that have none of their own
	block int64     // size
	end   int64
	spare uint16 // further devices
}

// Open reads an image's superblock, of a file that begins with it and is size
// bytes long, and checks it: its checksum, too, if it has one. Of an image that
// is cut off, damaged or none it returns an error of kind Unknown.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	i := &Image{r: r, end: size, block: blockSize}
	head := make([]byte, superSize)
	if err := i.read(head, superOffset); err != nil {
		return nil, err
	}
	if le.Uint32(head) != superMagic {
		return nil, damaged("there is no superblock")
	}
	i.super = super{
		checksum: le.Uint32(head[4:]), compat: le.Uint32(head[8:]), blockBits: head[12], root: uint64(le.Uint16(head[14:])),
		inodes: le.Uint64(head[16:]), blocks: uint64(le.Uint32(head[36:])), metaBlock: le.Uint32(head[40:]),
		xattrBlock: le.Uint32(head[44:]), incompat: le.Uint32(head[80:]),
	}
	copy(i.super.uuid[:], head[48:])
	i.time = time.Unix(int64(le.Uint64(head[24:])), int64(le.Uint32(head[32:])))
	i.spare = le.Uint16(head[86:])
	i.super.packed = le.Uint64(head[96:])
	if i.super.algorithms = 1; i.super.incompat&IncompatBigPcluster != 0 { // else the field has another meaning
		i.super.algorithms = le.Uint16(head[84:])
	}
	if i.super.blockBits < 9 || i.super.blockBits > 16 || head[90] != 0 {
		return nil, damaged("blocks of 2^%d bytes, those of directories of 2^%d times as many", i.super.blockBits, head[90])
	}
	i.block = 1 << i.super.blockBits
	if i.super.compat&compatChecksum != 0 {
		if err := i.checkSum(); err != nil {
			return nil, err
		}
	}
	if i.super.incompat&Incompat48Bit == 0 { // else it has more blocks, and tells so elsewhere
		if i.super.blocks > uint64(size)>>i.super.blockBits {
			return nil, damaged("it is cut off: %d bytes, not %d blocks", size, i.super.blocks)
		}
		i.end = int64(i.super.blocks) << i.super.blockBits
	}
	return i, nil
}

func (i *Image) checkSum() error {
	n := i.block
	if n > superOffset {
		n -= superOffset
	}
	p := make([]byte, n)
	if err := i.read(p, superOffset); err != nil {
		return err
	}
	if sum := superChecksum(p); sum != i.super.checksum {
		return damaged("the superblock's checksum is %#x, not %#x", sum, i.super.checksum)
	}
	return nil
}

func damaged(format string, args ...any) error {
	return fault.New(fault.Unknown, "", "the EROFS image is damaged: "+format, args...)
}

// read reads from the image alone.
func (i *Image) read(p []byte, at int64) error {
	if at < 0 || at > i.end-int64(len(p)) {
		return damaged("%d bytes at %d are outside", len(p), at)
	}
	n, err := i.r.ReadAt(p, at)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return damaged("it is cut off: %d bytes", at+int64(n))
	}
	return fmt.Errorf("read an image: %w", err)
}

// Size returns the image's length in bytes, by its superblock. What the file
// has behind that is no part of it.
func (i *Image) Size() int64 { return i.end }

// Incompat returns the features that a kernel must know to mount the image.
// Images of Build have none, and need Linux 5.4.
func (i *Image) Incompat() uint32 { return i.super.incompat }

// Features names what a kernel must know to mount the image, by the names in
// /sys/fs/erofs/features, and the algorithms that it is compressed by.
func (i *Image) Features() []string {
	names := featureNames(i.super.incompat)
	for n, algorithm := range algorithms {
		if i.super.incompat&IncompatBigPcluster != 0 && i.super.algorithms>>n&1 != 0 {
			names = append(names, algorithm)
		}
	}
	return names
}

// algorithms are those of compressed images, by their numbers (kernel:
// erofs_fs.h, Z_EROFS_COMPRESSION_…; Linux 5.3, 5.16, 6.6, 6.10).
var algorithms = [...]string{"lz4", "lzma", "deflate", "zstd"}

func featureNames(incompat uint32) []string {
	known := [...]string{
		"zero_padding", "big_pcluster", "chunked_file", "device_table", "ztailpacking", "fragments", "xattr_prefixes", "48bit", "metabox",
	}
	var names []string
	for bit := range 32 {
		switch {
		case incompat>>bit&1 == 0:
		case bit < len(known):
			names = append(names, known[bit])
		default:
			names = append(names, fmt.Sprintf("%#x", uint32(1)<<bit))
		}
	}
	return names
}

// An Entry is one file of an image, of any type.
type Entry struct {
	Name   string // relative and clean, "." for the root
	Inode  uint64 // names of one file have the same
	Mode   uint32 // as in stat(2), with the type
	UID    uint32
	GID    uint32
	Links  uint32
	Rdev   uint32 // minor&0xff | major<<8 | minor&^0xff<<12
	Size   int64
	Time   time.Time
	Xattrs map[string]string
	Target string // of a symbolic link
}

// A Finder looks up files in an image, and keeps some of what it reads. It is
// one caller's.
type Finder struct{ cache *cache }

// Finder returns one that has read nothing yet.
func (i *Image) Finder() Finder { return Finder{newCache(i)} }

// Stat returns the file of that name: relative, "." for the root. Symbolic
// links are not followed, anywhere. NotFound if there is none.
func (r Finder) Stat(name string) (Entry, error) {
	c := r.cache
	if err := c.readable(); err != nil {
		return Entry{}, err
	}
	f, err := c.file(c.super.root)
	if err != nil {
		return Entry{}, err
	}
	if name != "." {
		for element := range strings.SplitSeq(name, "/") {
			number, err := c.find(f, element)
			if err != nil {
				return Entry{}, err
			}
			if f, err = c.file(number); err != nil {
				return Entry{}, err
			}
		}
	}
	return c.entry(name, f)
}

// find returns the number of what has that name in a directory.
func (c *cache) find(dir *file, name string) (uint64, error) {
	if dir.kind() != typeDir {
		return 0, notFound(name)
	}
	for n := range dir.blocks(c.block) {
		b, err := c.names(dir, n)
		if err != nil {
			return 0, err
		}
		for j := range b.count {
			number, _, found, err := b.name(j)
			if err != nil || string(found) == name {
				return number, err
			}
		}
	}
	return 0, notFound(name)
}

func notFound(name string) error {
	return fault.New(fault.NotFound, "", "there is no %.200q in the image", name)
}

// Walk calls f for each file, directories before what is in them and those in
// order, until f returns an error, which Walk returns.
func (i *Image) Walk(ctx context.Context, f func(Entry) error) error {
	w := newWalker(i)
	return w.walk(ctx, func(path string, n *file) error {
		e, err := w.entry(path, n)
		if err != nil {
			return err
		}
		return f(e)
	})
}

func (c *cache) entry(name string, f *file) (Entry, error) {
	e := Entry{
		Name: name, Inode: f.number, Mode: uint32(f.mode), UID: f.uid, GID: f.gid, Links: f.links,
		Size: f.size, Time: time.Unix(f.seconds, int64(f.nanos)),
	}
	list, err := c.attributes(f, true)
	if err != nil {
		return e, err
	}
	for _, x := range list {
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[prefixes[x.index]+x.name] = x.value
	}
	switch f.kind() {
	case typeChar, typeBlock:
		e.Rdev = f.u
	case typeLink:
		e.Target, err = c.target(f)
	}
	return e, err
}
