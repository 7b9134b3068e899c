//go:build amd64

package unzstd

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// An entry is all there is to know of a state of a table: in its bits from the
// lowest, 8 of how many bits of input make the next state, 8 of how many extra
// bits belong to this one's value, 16 of what the next state begins at, 24 of
// what the value begins at (0 for offsets: 1 << their extra bits), and 8 of how
// many bits it is in all.
type entry = uint64

func newEntry(next, stateBits int, c code) entry {
	return entry(stateBits) | entry(c.bits)<<8 | entry(next)<<16 | entry(c.base)<<32 | entry(stateBits+int(c.bits))<<56
}

// A code is the value of a symbol: base and as many extra bits.
type code struct {
	base uint32
	bits uint8
}

// The three kinds of a sequence's numbers, in the order of their tables.
const (
	literalLengths = iota
	offsets
	matchLengths
)

// A kind says what RFC 8878, 3.1.1.3.2.1 and 3.1.1.3.2.2, do.
type kind struct {
	codes   []code
	maxLog  int
	usual   []int16 // distribution, if no other is given
	usualAt int     // its log
}

var kinds = [3]kind{
	{lengthCodes(0, 16, []uint8{1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}), 9, []int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1,
		2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}, 6},
	{offsetCodes(), 8, []int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}, 5},
	{lengthCodes(3, 32, []uint8{1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}), 9, []int16{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1,
		1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}, 6},
}

// lengthCodes are n codes of one value each, from the first on, and then one of
// each number of bits.
func lengthCodes(first uint32, n int, extra []uint8) []code {
	var list []code
	for range n {
		list = append(list, code{first, 0})
		first++
	}
	for _, b := range extra {
		list = append(list, code{first, b})
		first += 1 << b
	}
	return list
}

func offsetCodes() []code {
	var list []code
	for b := range uint8(32) {
		list = append(list, code{0, b})
	}
	return list
}

// tables are those of the three kinds, at the places that the assembly knows.
type tables struct {
	literalLengths, matchLengths [512]entry
	offsets                      [256]entry
}

func (t *tables) of(kind int) []entry {
	switch kind {
	case literalLengths:
		return t.literalLengths[:]
	case offsets:
		return t.offsets[:]
	}
	return t.matchLengths[:]
}

// build makes the table of a distribution. RFC 8878, 4.1.1.
func (k *kind) build(table []entry, counts []int16, log int) {
	size := 1 << log
	var symbols [512]uint8
	var next [64]uint16
	high := size - 1
	for s, n := range counts {
		next[s] = uint16(n)
		if n < 0 {
			next[s] = 1
			symbols[high] = uint8(s)
			high--
		}
	}
	step, at := size>>1+size>>3+3, 0
	for s, n := range counts {
		for range n {
			symbols[at] = uint8(s)
			for at = (at + step) & (size - 1); at > high; {
				at = (at + step) & (size - 1)
			}
		}
	}
	for i := range size {
		s := symbols[i]
		x := int(next[s])
		next[s]++
		n := log - bits.Len(uint(x)) + 1
		table[i] = newEntry(x<<n-size, n, k.codes[s])
	}
}

// readCounts reads a distribution, and says how long it is. RFC 8878, 4.1.1.
func (k *kind) readCounts(in []byte) (counts []int16, log, length int, err error) {
	wrong := fmt.Errorf("%w: a table of codes", errCorrupt)
	if len(in) == 0 {
		return nil, 0, 0, wrong
	}
	log = int(in[0]&15) + 5
	if log > k.maxLog {
		return nil, 0, 0, wrong
	}
	at := 4 // bit
	peek := func() uint32 {
		var p [8]byte
		if at>>3 < len(in) {
			copy(p[:], in[at>>3:])
		}
		return uint32(binary.LittleEndian.Uint64(p[:]) >> (at & 7))
	}
	for left := 1 << log; left > 0; {
		if len(counts) == len(k.codes) {
			return nil, 0, 0, wrong
		}
		n := bits.Len(uint(left + 1))
		val := int(peek() & (1<<n - 1))
		at += n
		low := 1<<(n-1) - 1
		threshold := 1<<n - 1 - (left + 1)
		if val&low < threshold {
			at--
			val &= low
		} else if val > low {
			val -= threshold
		}
		count := val - 1
		counts = append(counts, int16(count))
		left -= max(count, -count)
		for more := count == 0; more; {
			repeat := int(peek() & 3)
			at += 2
			more = repeat == 3
			if len(counts)+repeat > len(k.codes) {
				return nil, 0, 0, wrong
			}
			counts = append(counts, make([]int16, repeat)...)
		}
		if left < 0 || at > 8*len(in) {
			return nil, 0, 0, wrong
		}
	}
	return counts, log, (at + 7) / 8, nil
}
