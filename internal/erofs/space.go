package erofs

import (
	"slices"
	"sync"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	chunkSize = 1 << 20 // what is in memory, and has a sum, as a whole
	stepSize  = 1 << 17 // what is read, summed up and written at a time, if it comes in order

	// Blocks of metadata that have room: how many, and how far behind the end.
	maxOpen = 32
	reach   = 3 << 20

	maxBlocks = 1<<32 - 2
)

// A space is the image as it grows. Room is given out from the front to the
// back, to content and to blocks of metadata: inodes, and what is packed behind
// them. A chunk of it is in memory until all in it is final, and the first one
// to the end.
//
// Metadata is amid the content that it is of, block by block: kernels read it so,
// one block at a time, and what they read ahead of content has the next ones. No
// open block is far from the others, so at most seven chunks are in memory, and
// two more while a file turns out not to be the same as another.
type space struct {
	out    File
	end    int64 // of what is given out
	chunks []*chunk
	sums   []chunkSum

	passing []byte // what is read to be written at once

	written int64  // the file's length
	other   []byte // to compare something with

	open []packing // blocks of metadata that have room, in order
}

// A fileError is one of the image's file.
type fileError struct {
	op  string
	err error
}

func (e *fileError) Error() string { return e.op + ": " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// A span is a part of the image.
type span struct{ from, to int64 }

// A chunk is chunkSize bytes of the image. What is final from its beginning on
// is summed up and written in steps, while the processor has it in its cache;
// what becomes final out of order waits for what is before it.
type chunk struct {
	index int64
	data  []byte
	left  int                         // bytes that are not final
	final [chunkSize / blockSize]bool // blocks
	ready int                         // bytes at the beginning that are final
	done  int                         // of those, what is summed up and written
	sum   chunkSum                    // of that
}

// settle says that n bytes are final.
func (c *chunk) settle(at int64, n int) {
	c.left -= n
	for i := int(at % chunkSize / blockSize); n > 0; i, n = i+1, n-blockSize {
		c.final[i] = true
	}
	for c.ready < chunkSize && c.final[c.ready/blockSize] {
		c.ready += blockSize
	}
}

// A packing is a block of metadata that has room.
type packing struct {
	at   int64
	used int
}

func newSpace(out File) *space {
	s := &space{out: out, sums: make([]chunkSum, 1)}
	s.end = blockSize
	clear(s.bytes(0, blockSize)) // the superblock's, and the root's
	return s
}

// chunkAt returns the chunk that has offset at, which is not final.
func (s *space) chunkAt(at int64) *chunk {
	index := at / chunkSize
	for _, c := range s.chunks {
		if c.index == index {
			return c
		}
	}
	c := spare.Get().(*chunk)
	*c = chunk{index: index, data: c.data, left: chunkSize}
	s.chunks = append(s.chunks, c)
	return c
}

// spare has chunks that no image needs at the moment: fresh memory costs.
var spare = sync.Pool{New: func() any { return &chunk{data: make([]byte, chunkSize)} }}

// discard gives up the chunks, as far as drop says so.
func (s *space) discard(drop func(*chunk) bool) {
	s.chunks = slices.DeleteFunc(s.chunks, func(c *chunk) bool {
		gone := drop(c)
		if gone {
			spare.Put(c)
		}
		return gone
	})
}

// bytes returns the bytes at an offset, at most n: as many as are in one chunk.
func (s *space) bytes(at int64, n int64) []byte {
	in := at % chunkSize
	return s.chunkAt(at).data[in:min(in+n, chunkSize)]
}

// finish says that n bytes, all in one chunk, are final.
func (s *space) finish(at int64, n int) error {
	c := s.chunkAt(at)
	c.settle(at, n)
	if c.left == 0 {
		return s.flush(c, chunkSize)
	}
	if c.ready-c.done < stepSize {
		return nil
	}
	return s.step(c, c.ready)
}

// place returns where up to n bytes of content are to be read that belong at an
// offset. If it is their turn to be written, they need no place in the chunk:
// they pass, by way of memory that stays in the processor's cache, where a chunk
// would take the room of others.
func (s *space) place(at, n int64) (p []byte, passes bool, err error) {
	c := s.chunkAt(at)
	if in := int(at % chunkSize); n < stepSize || in+stepSize > chunkSize || in != c.ready {
		return s.bytes(at, min(n, stepSize)), false, nil
	}
	if s.passing == nil {
		s.passing = make([]byte, stepSize)
	}
	return s.passing, true, s.step(c, c.ready)
}

// pass writes what was read into such a place.
func (s *space) pass(at int64, p []byte) error {
	c := s.chunkAt(at)
	c.settle(at, len(p))
	c.sum.add(p)
	c.done += len(p)
	if err := s.write(p, at); err != nil || c.left > 0 {
		return err
	}
	return s.flush(c, chunkSize)
}

// step sums up and writes a chunk from where it was done before up to n.
func (s *space) step(c *chunk, n int) error {
	p, at := c.data[c.done:n], c.index*chunkSize+int64(c.done)
	c.sum.add(p)
	c.done = n
	return s.write(p, at)
}

// flush ends a chunk of n bytes, of which nothing will change.
func (s *space) flush(c *chunk, n int) error {
	err := s.step(c, n)
	for int64(len(s.sums)) <= c.index {
		s.sums = append(s.sums, 0)
	}
	s.sums[c.index] = c.sum
	s.discard(func(o *chunk) bool { return o == c })
	return err
}

// write writes data, without the blocks that are zero: they stay holes.
func (s *space) write(data []byte, at int64) error {
	for from := 0; from < len(data); {
		if isZero(data[from : from+blockSize]) {
			from += blockSize
			continue
		}
		to := from + blockSize
		for to < len(data) && !isZero(data[to:to+blockSize]) {
			to += blockSize
		}
		if err := s.writeAll(data[from:to], at+int64(from)); err != nil {
			return err
		}
		from = to
	}
	return nil
}

func (s *space) writeAll(data []byte, at int64) error {
	if _, err := s.out.WriteAt(data, at); err != nil {
		return &fileError{"write the layer's image", err}
	}
	s.written = max(s.written, at+int64(len(data)))
	return nil
}

// isZero reports whether a block, or several, have nothing but zeros.
func isZero(p []byte) bool {
	for ; len(p) >= 8; p = p[8:] {
		if le.Uint64(p) != 0 {
			return false
		}
	}
	return true
}

// take gives out blocks for n bytes at the end.
func (s *space) take(n int64) (int64, error) {
	at := s.end
	if n > maxBlocks*blockSize-at-blockSize {
		return 0, fault.New(fault.Exhausted, "", "the layer needs an image larger than EROFS can have")
	}
	s.end += (n + blockSize - 1) &^ (blockSize - 1)
	return at, nil
}

// pack gives out n bytes for an inode and what is behind it, in one block,
// zeroed, until the next call.
func (s *space) pack(n int) (at int64, p []byte, err error) {
	n = align(n, slotSize)
	best := -1
	for i := 0; i < len(s.open); i++ {
		b := s.open[i]
		if b.used+inodeSize > blockSize { // since the last call
			if err := s.close(i); err != nil {
				return 0, nil, err
			}
			i--
			continue
		}
		if b.used+n <= blockSize && (best < 0 || b.used > s.open[best].used) {
			best = i
		}
	}
	if best < 0 {
		if err := s.openBlock(); err != nil {
			return 0, nil, err
		}
		best = len(s.open) - 1
	}
	b := &s.open[best]
	at = b.at + int64(b.used)
	b.used += n
	return at, s.bytes(at, int64(n)), nil
}

// openBlock opens one more block of metadata, at the end. The oldest are closed.
func (s *space) openBlock() error {
	at, err := s.take(blockSize)
	if err != nil {
		return err
	}
	for len(s.open) > 0 && (len(s.open) == maxOpen || s.open[0].at < at-reach) {
		if err := s.close(0); err != nil {
			return err
		}
	}
	s.open = append(s.open, packing{at: at})
	clear(s.bytes(at, blockSize))
	return nil
}

// close ends the packing of an open block, 0 being the oldest.
func (s *space) close(i int) error {
	at := s.open[i].at
	s.open = slices.Delete(s.open, i, i+1)
	return s.finish(at, blockSize)
}

// closeAll ends the packing.
func (s *space) closeAll() error {
	for len(s.open) > 0 {
		if err := s.close(0); err != nil {
			return err
		}
	}
	return nil
}

// flushAll writes what is left, and the block of the superblock last of all.
func (s *space) flushAll() (string, error) {
	slices.SortFunc(s.chunks, func(a, b *chunk) int { return int(b.index - a.index) })
	for len(s.chunks) > 1 {
		c := s.chunks[0]
		if err := s.flush(c, int(min(chunkSize, s.end-c.index*chunkSize))); err != nil {
			return "", err
		}
	}
	first := s.chunks[0]
	n := int(min(chunkSize, s.end))
	s.sums[0] = sumOf(first.data[:n])
	if err := s.write(first.data[blockSize:n], blockSize); err != nil {
		return "", err
	}
	if s.written < s.end && s.end > blockSize { // it ends in a hole
		if err := s.writeAll(make([]byte, blockSize), s.end-blockSize); err != nil {
			return "", err
		}
	}
	return sumCRC64 + sumOfSums(s.sums), s.writeAll(first.data[:blockSize], 0)
}
