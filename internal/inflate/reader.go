package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// What is wrong with a stream. One that ends early gives io.ErrUnexpectedEOF,
// and errors of the reader below are passed on as they are.
var (
	ErrHeader   = errors.New("gzip: invalid header")
	ErrCorrupt  = errors.New("gzip: corrupt data")
	ErrChecksum = errors.New("gzip: invalid checksum")
)

// A step is what comes next in the input.
type step uint8

const (
	atHeader step = iota
	atBlock
	atStored
	atCodes
	atTrailer
	atWrong
)

// How much input a step needs before it begins, unless there is no more; and
// how much it may need while it reads on its own. Before src may block, what
// there is is given out.
var (
	needs = [...]int{atHeader: 1, atBlock: 1, atStored: 1, atCodes: inSlack, atTrailer: 8, atWrong: 0}
	wants = [...]int{atHeader: 1024, atBlock: 1024, atStored: 1, atCodes: inSlack, atTrailer: 8, atWrong: 0}
)

// A Reader decompresses a gzip stream: members, one after the other, to the end
// of the input. What it gives out is to be trusted only after io.EOF: then all
// lengths and checksums were right, and nothing followed the last member.
type Reader struct {
	input
	window
	lit  [litSize]uint32
	dist [distSize]uint32

	at     step
	final  bool // of the block that is read
	stored int  // bytes of a stored block that are still to come
	summed int  // out[:summed] is in crc and size
	crc    uint32
	size   uint32
	failed error
}

// NewReader reads the first header of src. It may read more than that.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{}
	r.src = src
	r.fill(needs[atHeader])
	if err := r.header(); err != nil {
		return nil, err
	}
	return r, nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.produce(); err != nil {
		return 0, err
	}
	n := copy(p, r.out[r.rd:r.wr])
	r.rd += n
	return n, nil
}

// WriteTo implements io.WriterTo. It hands out what it has without copying it.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	for {
		if err := r.produce(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(r.out[r.rd:r.wr])
		r.rd += n
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// produce sees to it that there is something to give out. It returns an error
// only after all that came before it was given out.
func (r *Reader) produce() error {
	if r.rd < r.wr {
		return nil
	}
	r.slide()
	r.summed = r.wr
	for r.failed == nil && r.wr < full {
		if r.err == nil && r.end-r.pos < wants[r.at] {
			if r.wr > r.rd {
				break // before src blocks
			}
			r.fill(needs[r.at])
		}
		r.failed = r.step()
	}
	r.sum()
	if r.rd < r.wr {
		return nil
	}
	return r.failed
}

func (r *Reader) step() error {
	switch r.at {
	case atHeader:
		return r.header()
	case atBlock:
		return r.block()
	case atStored:
		return r.copyStored()
	case atCodes:
		return r.codes()
	default:
		return r.trailer()
	}
}

// sum takes what was decompressed since into the checksum.
func (r *Reader) sum() {
	r.crc = crc32.Update(r.crc, crc32.IEEETable, r.out[r.summed:r.wr])
	r.size += uint32(r.wr - r.summed)
	r.summed = r.wr
}

// trailer ends a member.
func (r *Reader) trailer() error {
	r.bits, r.n = 0, 0
	if r.end-r.pos < 8 {
		return r.short()
	}
	r.sum()
	b := r.in[r.pos : r.pos+8]
	if binary.LittleEndian.Uint32(b) != r.crc || binary.LittleEndian.Uint32(b[4:]) != r.size {
		return ErrChecksum
	}
	r.pos += 8
	r.crc, r.size = 0, 0
	r.at = atHeader
	return nil
}
