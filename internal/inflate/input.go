package inflate

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	inputSize = 64 << 10
	inputMask = inputSize - 1
	wordSlack = 8 // by which arrays are longer than their masks, for words that begin at the last index
)

// An input is compressed bytes, and the bits that have been taken from them but
// not used.
type input struct {
	src io.Reader
	err error // of src, once it has given one
	in  inputArray
	pos int // in[pos:end] is to be used
	end int

	// The next n bits, from the lowest. Between the steps of a Reader, n is below
	// 8 and the bits above are 0.
	bits uint64
	n    uint
}

// fill reads until there are least bytes, or an error of src. It keeps the last
// bytes that were taken, for giveBack.
func (in *input) fill(least int) {
	from := max(0, in.pos-wordSlack)
	copy(in.in[:], in.in[from:in.end])
	in.pos -= from
	in.end -= from
	for idle := 0; in.end-in.pos < least && in.err == nil; {
		n, err := in.src.Read(in.in[in.end:inputSize])
		in.end += n
		in.err = err
		if n > 0 {
			idle = 0
		} else if idle++; idle == 100 && err == nil {
			in.err = io.ErrNoProgress
		}
	}
}

// short is the error where the stream goes on and the input does not.
func (in *input) short() error {
	if errors.Is(in.err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return in.err
}

// byte returns the next byte, of which no bit has been taken.
func (in *input) byte() (byte, error) {
	if in.pos == in.end {
		if in.fill(1); in.pos == in.end {
			return 0, in.short()
		}
	}
	in.pos++
	return in.in[in.pos-1], nil
}

// more takes as many whole bytes as there is room for.
func (in *input) more() {
	if in.end-in.pos < 8 && in.err == nil {
		in.fill(8)
	}
	if in.end-in.pos >= 8 {
		in.bits |= binary.LittleEndian.Uint64(in.in[in.pos:]) << (in.n & 63)
		in.pos += int(63-in.n) >> 3
		in.n |= 56
		in.bits &= 1<<(in.n&63) - 1
		return
	}
	for in.n < 56 && in.pos < in.end {
		in.bits |= uint64(in.in[in.pos]) << (in.n & 63)
		in.pos++
		in.n += 8
	}
}

// take returns the next n bits, 16 at most.
func (in *input) take(n uint) (uint, error) {
	if in.n < n {
		if in.more(); in.n < n {
			return 0, in.short()
		}
	}
	v := uint(in.bits) & (1<<(n&63) - 1)
	in.skip(n)
	return v, nil
}

// skip uses bits that have been looked at.
func (in *input) skip(n uint) {
	in.bits >>= n & 63
	in.n -= n
}

// giveBack returns whole bytes of which no bit has been used.
func (in *input) giveBack() {
	in.pos -= int(in.n >> 3)
	in.n &= 7
	in.bits &= 1<<in.n - 1
}
