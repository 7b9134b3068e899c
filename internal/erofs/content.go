package erofs

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
)

// inode returns what an entry says of its file, and its encoded attributes.
func (b *builder) inode(h *tar.Header, kind uint8) (inode, []byte, error) {
	n := inode{mode: modeOf(kind), links: 1, uid: owner(h.Uid), gid: owner(h.Gid)}
	n.setTime(h.ModTime)
	if kind == typeLink {
		n.mode |= 0o777
	} else {
		n.mode |= uint16(h.Mode) & modeBits
	}
	list, err := attributesOf(h, kind)
	if err != nil {
		return n, nil, err
	}
	attrs, err := b.shared.encode(fitACL(list, n.mode))
	return n, attrs, err
}

// makeInode packs an inode with its attributes and its content, of up to a
// block, and returns its number.
func (b *builder) makeInode(n inode, attrs, content []byte) (uint64, error) {
	n.size = int64(len(content))
	if inodeSize+len(attrs)+len(content) > blockSize {
		at, err := b.space.takeBlock(content)
		if err != nil {
			return 0, err
		}
		n.u, content = uint32(at/blockSize), nil
	}
	return b.space.packInode(n, attrs, content)
}

// packInode packs an inode with what stands behind it. Its size is set.
func (s *space) packInode(n inode, attrs, tail []byte) (uint64, error) {
	at, p, err := s.pack(inodeSize + len(attrs) + len(tail))
	if err != nil {
		return 0, err
	}
	n.xattrs = len(attrs)
	if len(tail) > 0 {
		n.layout = flatInline
	}
	n.put(p, uint64(at/slotSize))
	copy(p[inodeSize:], attrs)
	copy(p[inodeSize+len(attrs):], tail)
	return uint64(at / slotSize), nil
}

// takeBlock puts content of at most a block into one of its own.
func (s *space) takeBlock(content []byte) (int64, error) {
	at, err := s.take(blockSize)
	if err != nil {
		return 0, err
	}
	p := s.bytes(at, blockSize)
	clear(p[copy(p, content):])
	return at, s.finish(at, blockSize)
}

// file takes a file with its content: whole blocks to where they will be, and
// the rest behind the inode if there is room.
func (b *builder) file(h *tar.Header, content io.Reader, name string, dir uint32, base string) error {
	if h.Size < 0 || h.Size > b.left {
		return fault.New(fault.Exhausted, "", "the layer holds files of more than the %d bytes that are allowed", b.limit)
	}
	b.left -= h.Size
	n, attrs, err := b.inode(h, typeRegular)
	if err != nil {
		return broken(name, err)
	}
	n.size = h.Size
	tail := h.Size % blockSize
	if h.Size >= blockSize {
		at, err := b.blocks(h, content, len(attrs), tail)
		if err != nil {
			return err
		}
		n.u = uint32(at / blockSize)
	}
	number, err := b.lastBlock(h, content, n, attrs, tail)
	if err != nil {
		return err
	}
	_, err = b.put(dir, base, typeRegular, number)
	return broken(name, err)
}

// blocks reads the whole blocks of a file and returns where in the image they
// are.
func (b *builder) blocks(h *tar.Header, content io.Reader, attrs int, tail int64) (int64, error) {
	// A last block that does not fit behind the inode has to follow them. Of a
	// sparse file it is not known which bytes of the stream they are.
	if inodeSize+int64(attrs)+tail <= blockSize && !isSparse(h) {
		return b.share(content, h.Size-tail)
	}
	at, err := b.space.take(h.Size - tail)
	if err != nil {
		return 0, err
	}
	return at, b.fill(content, at, h.Size-tail)
}

// fill reads n bytes of content, whole blocks, to offset at.
func (b *builder) fill(content io.Reader, at, n int64) error {
	defer func() { b.in.target = nil }()
	for n > 0 {
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		p, passes, err := b.space.place(at, n)
		if err != nil {
			return err
		}
		b.in.target, b.in.offset = p, at
		if _, err := io.ReadFull(content, p); err != nil {
			return contentError(err)
		}
		if passes {
			err = b.space.pass(at, p)
		} else {
			err = b.space.finish(at, len(p))
		}
		if err != nil {
			return err
		}
		at += int64(len(p))
		n -= int64(len(p))
	}
	return nil
}

// lastBlock reads what remains of a file and makes its inode.
func (b *builder) lastBlock(h *tar.Header, content io.Reader, n inode, attrs []byte, tail int64) (uint64, error) {
	if tail == 0 {
		return b.space.packInode(n, attrs, nil)
	}
	// Where it goes is not known yet. Of a sparse file, which bytes of the
	// stream they are is not known at all: they stay in the recipe.
	rest := b.scratch[:tail]
	b.in.silent = !isSparse(h)
	_, err := io.ReadFull(content, rest)
	silent := b.in.silent
	b.in.silent = false
	if err != nil {
		return 0, contentError(err)
	}
	if inodeSize+len(attrs)+len(rest) <= blockSize {
		number, err := b.space.packInode(n, attrs, rest)
		if silent {
			b.in.copied(int64(number)*slotSize+inodeSize+int64(len(attrs)), tail)
		}
		return number, err
	}
	// The block follows those that the file has already.
	at, err := b.space.takeBlock(rest)
	if err != nil {
		return 0, err
	}
	if n.size < blockSize {
		n.u = uint32(at / blockSize)
	}
	if silent {
		b.in.copied(at, tail)
	}
	return b.space.packInode(n, attrs, nil)
}

func contentError(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return streamError(err)
}

func isSparse(h *tar.Header) bool {
	_, pax := h.PAXRecords["GNU.sparse.major"]
	return pax || h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.map"] != "" || h.PAXRecords["GNU.sparse.size"] != ""
}

// readLink returns the target of the symbolic link with that inode, of this
// image.
func (s *space) readLink(number uint64) (string, error) {
	p := make([]byte, inodeSize)
	at := int64(number) * slotSize
	if err := s.readAt(p, at); err != nil {
		return "", err
	}
	target := make([]byte, le.Uint64(p[8:]))
	if le.Uint16(p[0:])>>1 == flatInline {
		at += inodeSize
		if units := int64(le.Uint16(p[2:])); units > 0 {
			at += xattrHeader + 4*(units-1)
		}
	} else {
		at = int64(le.Uint32(p[16:])) * blockSize
	}
	err := s.readAt(target, at)
	return string(target), err
}

// readAt reads what is in the image, in memory or written, and in one chunk.
func (s *space) readAt(p []byte, at int64) error {
	for _, c := range s.chunks {
		if c.index == at/chunkSize {
			in := int(at % chunkSize)
			n := max(min(c.done-in, len(p)), 0) // what passed is nowhere else
			copy(p[n:], c.data[in+n:])
			p = p[:n]
			break
		}
	}
	return s.readWritten(p, at)
}

// readWritten reads what is in the file, and zeros where it ends early.
func (s *space) readWritten(p []byte, at int64) error {
	n, err := s.out.ReadAt(p, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return &fileError{"read the layer's image", err}
	}
	clear(p[n:])
	return nil
}
