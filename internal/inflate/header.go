package inflate

import (
	"hash/crc32"
)

// Flags of a member's header (RFC 1952, 2.3.1).
const (
	hasSum     = 1 << 1
	hasExtra   = 1 << 2
	hasName    = 1 << 3
	hasComment = 1 << 4
	reserved   = 0xe0

	// maxString is the longest name or comment, with its zero: more is refused
	// by compress/gzip, too.
	maxString = 512
)

// header reads a member's header. io.EOF if there is not a byte of it.
func (r *Reader) header() error {
	if r.pos == r.end && r.err != nil {
		return r.err
	}
	h := headerReader{in: &r.input}
	magic := h.word()
	method, flags := h.byte(), h.byte()
	h.skip(6) // time, compressor's flags, system
	if h.err != nil {
		return h.err
	}
	if magic != 0x8b1f || method != 8 {
		return ErrHeader
	}
	if flags&hasExtra != 0 {
		h.skip(int(h.word()))
	}
	if flags&hasName != 0 {
		h.text()
	}
	if flags&hasComment != 0 {
		h.text()
	}
	if flags&hasSum != 0 {
		sum := uint16(h.sum)
		if h.word() != sum && h.err == nil {
			return ErrHeader
		}
	}
	if h.err != nil {
		return h.err
	}
	if flags&reserved != 0 {
		return ErrHeader
	}
	r.first = r.wr
	r.at = atBlock
	return nil
}

// A headerReader reads on until the first error, and sums up what it reads.
type headerReader struct {
	in  *input
	sum uint32
	err error
}

func (h *headerReader) byte() byte {
	if h.err != nil {
		return 0
	}
	var b [1]byte
	if b[0], h.err = h.in.byte(); h.err == nil {
		h.sum = crc32.Update(h.sum, crc32.IEEETable, b[:])
	}
	return b[0]
}

func (h *headerReader) word() uint16 {
	low := h.byte()
	return uint16(low) | uint16(h.byte())<<8
}

func (h *headerReader) skip(n int) {
	for range n {
		if h.byte(); h.err != nil {
			return
		}
	}
}

func (h *headerReader) text() {
	for range maxString {
		if h.byte() == 0 {
			return
		}
	}
	h.err = ErrHeader
}
