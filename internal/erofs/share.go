package erofs

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
)

// Files of one layer that have the same content share its blocks: packages
// bring one changelog several times, and programs come under several names.
// Each file keeps an inode of its own, and the end of its content behind that.

// maxContents bounds the memory that it takes to find them, to some 5 MiB.
const maxContents = 1 << 17

// A content is what tells the whole blocks of one file from those of most
// others: how many bytes, and the CRC-32C of the first block.
type content struct {
	bytes int64
	first uint32
}

// share reads n bytes of a file's content, whole blocks, into the image, unless
// it has them, and returns where they are.
func (b *builder) share(stream io.Reader, n int64) (int64, error) {
	at, err := b.space.take(n)
	if err != nil {
		return 0, err
	}
	p, err := b.piece(stream, at, n)
	if err != nil {
		return 0, err
	}
	key := content{n, crc32.Checksum(p[:blockSize], castagnoli)}
	old, same := b.contents[key]
	if !same && len(b.contents) < maxContents {
		b.contents[key] = at
	}
	done := int64(0) // bytes that are the same as those at old, and not in place
	for same {
		if same, err = b.space.has(p, old+done); err != nil {
			return 0, err
		}
		if !same {
			break
		}
		b.space.forget(at)
		if done += int64(len(p)); done == n {
			b.space.end = at
			b.in.copied(old, n)
			return old, nil
		}
		if p, err = b.piece(stream, at+done, n-done); err != nil {
			return 0, err
		}
	}
	if err := b.space.repeat(at, old, done); err != nil {
		return 0, err
	}
	if err := b.space.finish(at+done, len(p)); err != nil {
		return 0, err
	}
	done += int64(len(p))
	b.in.copied(at, done)
	return at, b.fill(stream, at+done, n-done)
}

// piece reads up to n bytes of content to where they would be, at most a step
// and in one chunk. The recorder is to be told what became of them.
func (b *builder) piece(stream io.Reader, at, n int64) ([]byte, error) {
	if b.ctx.Err() != nil {
		return nil, context.Cause(b.ctx)
	}
	p := b.space.bytes(at, min(n, stepSize))
	b.in.silent = true
	_, err := io.ReadFull(stream, p)
	b.in.silent = false
	if err != nil {
		return nil, contentError(err)
	}
	return p, nil
}

// has reports whether the image has p at an offset.
func (s *space) has(p []byte, at int64) (bool, error) {
	if s.other == nil {
		s.other = make([]byte, 64<<10)
	}
	for len(p) > 0 {
		q := s.other[:min(int64(len(p)), int64(len(s.other)), chunkSize-at%chunkSize)]
		if err := s.readAt(q, at); err != nil {
			return false, err
		}
		if !bytes.Equal(q, p[:len(q)]) {
			return false, nil
		}
		p, at = p[len(q):], at+int64(len(q))
	}
	return true, nil
}

// forget drops the chunks from an offset on, in which nothing is final.
func (s *space) forget(at int64) {
	s.discard(func(c *chunk) bool { return c.index*chunkSize >= at })
}

// repeat puts n bytes that the image has at from to another place in it.
func (s *space) repeat(to, from, n int64) error {
	for n > 0 {
		p := s.bytes(to, min(n, chunkSize-from%chunkSize))
		if err := s.readAt(p, from); err != nil {
			return err
		}
		if err := s.finish(to, len(p)); err != nil {
			return err
		}
		to, from, n = to+int64(len(p)), from+int64(len(p)), n-int64(len(p))
	}
	return nil
}
