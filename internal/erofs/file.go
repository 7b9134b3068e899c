package erofs

import "strings"

// A file is an inode of an image that is read.
type file struct {
	inode
	number uint64
	at     int64 // in the image
	length int64 // of the inode itself
}

func (f *file) kind() uint8 { return typeOf(f.mode) }

// blocks returns how many blocks a file's content has, the last one maybe
// behind the inode.
func (f *file) blocks(size int64) int64 { return (f.size + size - 1) / size }

// A cache reads an image, and keeps some blocks of it. It is one caller's.
type cache struct {
	*Image
	slots [16]cached
}

type cached struct {
	at   int64 // 0: nothing, for block 0 has its own slot
	data []byte
}

func newCache(i *Image) *cache { return &cache{Image: i} }

// bytes returns n bytes of the image, valid until the next call.
func (c *cache) bytes(at, n int64) ([]byte, error) {
	in := at & (c.block - 1)
	if at < 0 || n < 0 || at > c.end || in+n > c.block || at-in+c.block > c.end {
		if n < 0 || at < 0 || at > c.end-n {
			return nil, damaged("%d bytes at %d are outside", n, at)
		}
		p := make([]byte, n)
		return p, c.read(p, at)
	}
	s := &c.slots[uint64(at/c.block)%uint64(len(c.slots))]
	if s.data == nil || s.at != at-in {
		if s.data == nil {
			s.data = make([]byte, c.block)
		}
		s.at = -1
		if err := c.read(s.data, at-in); err != nil {
			return nil, err
		}
		s.at = at - in
	}
	return s.data[in : in+n], nil
}

// file returns the file with that number.
func (c *cache) file(number uint64) (*file, error) {
	if number > uint64(c.end)/slotSize {
		return nil, damaged("there is no inode %d", number)
	}
	f := &file{number: number, at: int64(c.super.metaBlock)*c.block + int64(number)*slotSize, length: slotSize}
	p, err := c.bytes(f.at, slotSize)
	if err != nil {
		return nil, err
	}
	format := le.Uint16(p)
	if format&1 != 0 {
		f.length = inodeSize
		if p, err = c.bytes(f.at, inodeSize); err != nil {
			return nil, err
		}
	}
	f.layout = format >> 1 & 7
	if format>>4 != 0 || f.layout > chunkBased {
		return nil, damaged("inode %d has the unknown format %#x", number, format)
	}
	if units := int(le.Uint16(p[2:])); units > 0 {
		f.xattrs = xattrHeader + 4*(units-1)
	}
	f.mode, f.u = le.Uint16(p[4:]), le.Uint32(p[16:])
	if f.length == inodeSize {
		f.size = int64(le.Uint64(p[8:]))
		f.uid, f.gid = le.Uint32(p[24:]), le.Uint32(p[28:])
		f.seconds, f.nanos = int64(le.Uint64(p[32:])), le.Uint32(p[40:])
		f.links = le.Uint32(p[linksOffset:])
	} else {
		f.links, f.size = uint32(le.Uint16(p[6:])), int64(le.Uint32(p[8:]))
		f.uid, f.gid = uint32(le.Uint16(p[24:])), uint32(le.Uint16(p[26:]))
		f.seconds, f.nanos = c.time.Unix(), uint32(c.time.Nanosecond())
	}
	if f.kind() == typeNone {
		return nil, damaged("inode %d has the unknown type %#o", number, f.mode)
	}
	if f.size < 0 || f.size > 1<<60 {
		return nil, damaged("inode %d has %d bytes", number, uint64(f.size))
	}
	return f, nil
}

// behind is where a file's inode and attributes end.
func (f *file) behind() int64 { return f.at + f.length + int64(f.xattrs) }

// piece returns block n of a file's content, where it is, and its length.
func (c *cache) piece(f *file, n int64) (at, length int64, err error) {
	length = min(c.block, f.size-n*c.block)
	switch {
	case f.layout == flatInline && n == f.blocks(c.block)-1:
		at = f.behind()
		if at%c.block+length > c.block {
			return 0, 0, damaged("the content of inode %d is not in one block", f.number)
		}
	case f.layout == flatPlain || f.layout == flatInline:
		at = (int64(f.u) + n) * c.block
	default:
		return 0, 0, damaged("inode %d has its content in layout %d", f.number, f.layout)
	}
	return at, length, nil
}

// target returns where a symbolic link leads.
func (c *cache) target(f *file) (string, error) {
	if f.size == 0 || f.size > maxLink {
		return "", damaged("symbolic link %d has %d bytes", f.number, f.size)
	}
	var target strings.Builder
	for n := range f.blocks(c.block) {
		at, length, err := c.piece(f, n)
		if err != nil {
			return "", err
		}
		p, err := c.bytes(at, length)
		if err != nil {
			return "", err
		}
		target.Write(p)
	}
	if strings.Contains(target.String(), "\x00") {
		return "", damaged("symbolic link %d has a zero in it", f.number)
	}
	return target.String(), nil
}

// attributes returns a file's extended attributes. If the values are not
// wanted, they may be cut off after 16 bytes.
func (c *cache) attributes(f *file, values bool) ([]xattr, error) {
	if f.xattrs == 0 {
		return nil, nil
	}
	body, err := c.bytes(f.at+f.length, int64(f.xattrs))
	if err != nil {
		return nil, err
	}
	ids := int(body[4])
	if xattrHeader+4*ids > len(body) {
		return nil, damaged("inode %d has %d shared attributes", f.number, ids)
	}
	var list []xattr
	for rest := body[xattrHeader+4*ids:]; len(rest) >= 4; {
		size := 4 + int(rest[0]) + int(le.Uint16(rest[2:]))
		if size > len(rest) {
			return nil, damaged("an attribute of inode %d is longer than all of them", f.number)
		}
		if rest[0] == 0 && rest[1] == 0 && size == 4 {
			break // nothing but padding
		}
		x, err := attribute(rest[:size], f.number)
		if err != nil {
			return nil, err
		}
		list = append(list, x)
		rest = rest[min(align(size, 4), len(rest)):]
	}
	shared := make([]int64, ids)
	for i := range shared {
		shared[i] = int64(c.super.xattrBlock)*c.block + 4*int64(le.Uint32(body[xattrHeader+4*i:]))
	}
	for _, at := range shared {
		head, err := c.bytes(at, 4)
		if err != nil {
			return nil, err
		}
		size := 4 + int64(head[0]) + int64(le.Uint16(head[2:]))
		if !values {
			size = min(size, 4+int64(head[0])+16)
		}
		p, err := c.bytes(at, size)
		if err != nil {
			return nil, err
		}
		x, err := attribute(p, f.number)
		if err != nil {
			return nil, err
		}
		list = append(list, x)
	}
	return list, nil
}

// attribute decodes one that may lack its value.
func attribute(p []byte, number uint64) (xattr, error) {
	if p[1] == 0 || int(p[1]) >= len(prefixes) {
		return xattr{}, damaged("inode %d has an attribute of the unknown prefix %d", number, p[1])
	}
	x := xattr{index: p[1], name: string(p[4 : 4+int(p[0])]), value: string(p[4+int(p[0]):])}
	if strings.Contains(x.name, "\x00") {
		return x, damaged("inode %d has an attribute with a zero in its name", number)
	}
	return x, nil
}
