//go:build amd64

package unzstd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/huff0"
	"golang.org/x/sys/cpu"
)

// Sizes of RFC 8878, in bytes.
const (
	maxBlock  = 128 << 10 // 3.1.1.2.3
	minWindow = 1 << 10   // 3.1.1.1.2

	// What the assembly may read or write beyond what it was told of.
	slack = 64
	front = 16

	// Each has a match of at least 3 bytes.
	maxSequences = maxBlock / 3
)

// errCorrupt is what is wrong with a stream that is none of zstd, or damaged.
var errCorrupt = errors.New("zstd: corrupt data")

// NewReader returns a Reader with nothing to read yet. It refuses frames that
// ask for a window of more than maxWindow bytes.
func NewReader(maxWindow int) Reader {
	if !cpu.X86.HasBMI2 {
		return newLibrary(maxWindow)
	}
	return newDecoder(maxWindow)
}

// A decoder is a Reader.
type decoder struct {
	src     io.Reader
	err     error
	window  window
	out     []byte // of the last block, not given out yet
	inFrame bool
	frame   frame
	huffman *huff0.Scratch

	blocks  [2]block
	waiting bool // the second one, to be carried out
	head    [3]byte
	hasHead bool // of the block that follows, read already
}

// A frame is what is known of the one at hand.
type frame struct {
	sized    bool
	size     uint64 // that is left to come, if it is sized
	checksum bool
	ended    bool      // no more blocks are to be read
	hasCodes bool      // the decoder's huffman has a table
	tables   [3]*block // that have the last table of a kind
	logs     [3]int    // of those
	recent   [3]uint64 // offsets
}

func newDecoder(maxWindow int) *decoder {
	r := &decoder{huffman: &huff0.Scratch{}, err: io.EOF}
	r.window.most = maxWindow
	return r
}

// Reset implements Reader.
func (r *decoder) Reset(src io.Reader) error {
	r.src, r.err = src, nil
	if src == nil {
		r.err = io.EOF
	}
	r.out, r.inFrame, r.waiting, r.hasHead = nil, false, false, false
	r.window.free()
	return nil
}

// Read implements io.Reader.
func (r *decoder) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if len(p) == 0 {
			return 0, nil
		}
		r.err = r.next()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// next reads a block, or what there is between frames.
func (r *decoder) next() error {
	switch {
	case !r.inFrame:
		return r.begin()
	case r.waiting:
		r.waiting = false
		return r.write(&r.blocks[1])
	case r.frame.ended:
		return r.end()
	}
	kind, size, err := r.header()
	if err != nil {
		return err
	}
	switch kind {
	case 0:
		to := r.window.room(size)
		if _, err := io.ReadFull(r.src, to[:size]); err != nil {
			return early(err)
		}
		return r.wrote(to[:size])
	case 1:
		c, err := r.number(1)
		if err != nil {
			return err
		}
		to := r.window.room(size)
		fill(to[:size], byte(c))
		return r.wrote(to[:size])
	case 2:
		return r.compressed(size)
	}
	return fmt.Errorf("%w: a block of the reserved type", errCorrupt)
}

// header reads that of the next block. RFC 8878, 3.1.1.2.
func (r *decoder) header() (kind, size int, err error) {
	if !r.hasHead {
		if _, err := io.ReadFull(r.src, r.head[:]); err != nil {
			return 0, 0, early(err)
		}
	}
	r.hasHead = false
	h := int(r.head[0]) | int(r.head[1])<<8 | int(r.head[2])<<16
	r.frame.ended = h&1 != 0
	size = h >> 3
	if size > min(maxBlock, r.window.size) {
		return 0, 0, fmt.Errorf("%w: a block of %d bytes", errCorrupt, size)
	}
	return h >> 1 & 3, size, nil
}

// compressed reads a compressed block, and another one if it is next: their
// sequences are decoded side by side.
func (r *decoder) compressed(size int) error {
	n := 0
	for {
		b := &r.blocks[n]
		in, err := r.read(b, size)
		if err == nil {
			err = r.parse(b, in)
		}
		if err != nil {
			return err
		}
		n++
		if n == len(r.blocks) || r.frame.ended {
			break
		}
		if _, err := io.ReadFull(r.src, r.head[:]); err != nil {
			return early(err)
		}
		r.hasHead = true
		if r.head[0]>>1&3 != 2 {
			break
		}
		if _, size, err = r.header(); err != nil {
			return err
		}
	}
	if err := decodeAll(&r.blocks, n); err != nil {
		return err
	}
	r.waiting = n == 2
	return r.write(&r.blocks[0])
}

// write carries a block out.
func (r *decoder) write(b *block) error {
	to := r.window.room(min(maxBlock, r.window.size))
	n, err := r.execute(b, to)
	if err != nil {
		return err
	}
	return r.wrote(to[:n])
}

// wrote says what is next in the window.
func (r *decoder) wrote(out []byte) error {
	r.window.advance(len(out))
	if r.frame.sized && uint64(len(out)) > r.frame.size {
		return fmt.Errorf("%w: a frame is larger than it says", errCorrupt)
	}
	r.frame.size -= uint64(len(out))
	r.out = out
	return nil
}

func fill(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}

// read returns the next n bytes, of at most a block, in b's memory. There is
// slack before and behind them.
func (r *decoder) read(b *block, n int) ([]byte, error) {
	p := b.in[front : front+n]
	_, err := io.ReadFull(r.src, p)
	return p, early(err)
}

func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// begin reads the header of a frame, if there is one more, or all of one to
// skip. RFC 8878, 3.1.1.1 and 3.1.2.
func (r *decoder) begin() error {
	var magic [4]byte
	if _, err := io.ReadFull(r.src, magic[:]); err != nil {
		return err // io.EOF, if there is nothing
	}
	switch m := binary.LittleEndian.Uint32(magic[:]); {
	case m&^0xf == 0x184d2a50:
		return r.skip()
	case m != 0xfd2fb528:
		return fmt.Errorf("%w: a frame that begins with %#x", errCorrupt, m)
	}
	flags, err := r.number(1)
	if err != nil {
		return err
	}
	if flags&8 != 0 {
		return fmt.Errorf("%w: a frame with the reserved bit", errCorrupt)
	}
	single := flags&0x20 != 0
	size := uint64(0) // of the window
	if !single {
		n, err := r.number(1)
		if err != nil {
			return err
		}
		size = 1 << (10 + n>>3)
		size += size / 8 * (n & 7)
	}
	dictionary, err := r.number([]int{0, 1, 2, 4}[flags&3])
	if err != nil {
		return err
	}
	if dictionary != 0 {
		return fmt.Errorf("zstd: a frame that needs dictionary %d", dictionary)
	}
	r.frame = frame{checksum: flags&4 != 0, recent: [3]uint64{1, 4, 8}}
	if err := r.contentSize(flags>>6, single); err != nil {
		return err
	}
	if single {
		size = max(r.frame.size, minWindow)
	}
	if size > uint64(r.window.most) {
		return fmt.Errorf("zstd: a frame with a window of %d bytes, of at most %d", size, r.window.most)
	}
	r.window.begin(int(size))
	r.inFrame = true
	return nil
}

// contentSize reads what a frame says of its size. RFC 8878, 3.1.1.1.4.
func (r *decoder) contentSize(form uint64, single bool) (err error) {
	width := []int{0, 2, 4, 8}[form]
	if width == 0 && single {
		width = 1
	}
	r.frame.sized = width > 0
	r.frame.size, err = r.number(width)
	if width == 2 {
		r.frame.size += 256
	}
	return err
}

// number reads one of up to 8 bytes.
func (r *decoder) number(width int) (uint64, error) {
	var p [8]byte
	_, err := io.ReadFull(r.src, p[:width])
	return binary.LittleEndian.Uint64(p[:]), early(err)
}

func (r *decoder) skip() error {
	n, err := r.number(4)
	if err == nil {
		_, err = io.CopyN(io.Discard, r.src, int64(n))
	}
	return early(err)
}

// end reads what is behind the last block of a frame.
func (r *decoder) end() error {
	r.inFrame = false
	if r.frame.sized && r.frame.size > 0 {
		return fmt.Errorf("%w: a frame is %d bytes smaller than it says", errCorrupt, r.frame.size)
	}
	if r.frame.checksum {
		_, err := r.number(4)
		return err
	}
	return nil
}
