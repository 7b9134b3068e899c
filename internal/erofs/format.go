package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"time"
)

// The format (kernel: Documentation/filesystems/erofs.rst and
// fs/erofs/erofs_fs.h), as far as it is used here. All numbers are little
// endian.
const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xe0f5e1e2

	// An inode's number is its offset in units of 32 bytes, beginning at the
	// block meta_blkaddr, which is 0 here: inodes may be anywhere.
	slotSize  = 32
	inodeSize = 64 // of the extended form; the compact one has 32

	rootOffset = superOffset + superSize // the root must be near: its number has 16 bits

	compatChecksum = 1 << 0
	compatMtime    = 1 << 1

	maxName = 255
	maxLink = 4095 // of a symbolic link, and of a path
)

// Layouts of an inode's content.
const (
	flatPlain         = 0 // in consecutive blocks
	compressedFull    = 1
	flatInline        = 2 // as flatPlain, but for what does not fill a block: behind the inode
	compressedCompact = 3
	chunkBased        = 4
)

// Types of files, as directories have them.
const (
	typeNone = iota // none: nothing is there (any more)
	typeRegular
	typeDir
	typeChar
	typeBlock
	typeFifo
	typeSocket
	typeLink
)

// Types of files, as inodes have them (stat(2)).
const (
	modeType    = 0o170000
	modeFifo    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeLink    = 0o120000
	modeSocket  = 0o140000
	modeBits    = 0o7777
)

func modeOf(kind uint8) uint16 {
	return [...]uint16{0, modeRegular, modeDir, modeChar, modeBlock, modeFifo, modeSocket, modeLink}[kind]
}

func typeOf(mode uint16) uint8 {
	for kind := uint8(typeRegular); kind <= typeLink; kind++ {
		if modeOf(kind) == mode&modeType {
			return kind
		}
	}
	return typeNone
}

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// An inode is what one file has beside its name and its content.
type inode struct {
	layout  uint16
	mode    uint16
	links   uint32
	uid     uint32
	gid     uint32
	seconds int64
	nanos   uint32
	size    int64
	u       uint32 // the first block, or a device's number
	xattrs  int    // bytes that attributes take behind the inode, a multiple of 4
}

func (n *inode) setTime(t time.Time) {
	n.seconds, n.nanos = t.Unix(), uint32(t.Nanosecond())
}

// put writes the inode, in its extended form, to p, which is zeroed. number is
// the inode's.
func (n *inode) put(p []byte, number uint64) {
	_ = p[inodeSize-1]
	le.PutUint16(p[0:], 1|n.layout<<1)
	le.PutUint16(p[2:], xattrUnits(n.xattrs))
	le.PutUint16(p[4:], n.mode)
	le.PutUint64(p[8:], uint64(n.size))
	le.PutUint32(p[16:], n.u)
	le.PutUint32(p[20:], uint32(number))
	le.PutUint32(p[24:], n.uid)
	le.PutUint32(p[28:], n.gid)
	le.PutUint64(p[32:], uint64(n.seconds))
	le.PutUint32(p[40:], n.nanos)
	le.PutUint32(p[44:], n.links)
}

// linksOffset is where in an inode the number of its names is.
const linksOffset = 44

// xattrUnits is how inodes tell the length of their attributes.
func xattrUnits(bytes int) uint16 {
	if bytes == 0 {
		return 0
	}
	return uint16((bytes-xattrHeader)/4 + 1)
}

// A super is a superblock.
type super struct {
	checksum   uint32
	compat     uint32
	incompat   uint32
	blockBits  uint8
	root       uint64
	inodes     uint64
	blocks     uint64
	metaBlock  uint32
	xattrBlock uint32
	uuid       [16]byte
	packed     uint64 // the inode of the file that has fragments of others; 0: none
	algorithms uint16 // of compression, each a bit
}

// put writes the superblock into the image's first block, of which all else
// is final.
func (s *super) put(block []byte) {
	p := block[superOffset:]
	clear(p[:superSize])
	le.PutUint32(p[0:], superMagic)
	le.PutUint32(p[8:], compatChecksum|compatMtime)
	p[12] = blockBits
	le.PutUint16(p[14:], uint16(s.root))
	le.PutUint64(p[16:], s.inodes)
	le.PutUint32(p[36:], uint32(s.blocks))
	le.PutUint32(p[44:], s.xattrBlock)
	copy(p[48:], s.uuid[:])
	le.PutUint32(p[4:], superChecksum(p))
}

// superChecksum is the checksum of the first block, from the superblock on,
// where it is taken for zero.
func superChecksum(p []byte) uint32 {
	sum := crc32.Update(0, castagnoli, p[:4])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return ^crc32.Update(sum, castagnoli, p[8:])
}

// deviceNumber is how inodes hold it, and how stat(2) shows it.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func align(n, to int) int { return (n + to - 1) &^ (to - 1) }
