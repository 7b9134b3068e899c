//go:build amd64

package unzstd

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/klauspost/compress/huff0"
)

// A maker makes a frame of numbers that no encoder would choose: lengths and
// offsets at their limits, tables of all kinds in any order.
type maker struct {
	*rand.Rand
	window int
	blob   []byte
	want   []byte // what it is of
	starts []int  // of blocks in want
	recent [3]int
	tables [3]*coding // last ones, nil if there is none
	codes  *huff0.Scratch
	coded  bool    // codes has a table
	style  int     // of the block
	most   int     // bytes in a block, as packed and as not
	wrong  mistake // which may be made, 0 if none
}

// A mistake is what is one more or less than is right.
type mistake int

const (
	frameSize mistake = 1 + iota
	blockSize
	tooFar
	tooLong
	tail
	fewLiterals
	literalSize
	sequences
	distribution
	lastBit
	lastByte
	again
	symbol
	mistakes
)

func newMaker(seed uint64, wrong mistake) *maker {
	return &maker{Rand: rand.New(rand.NewPCG(seed, 1)), recent: [3]int{1, 4, 8}, codes: &huff0.Scratch{}, wrong: wrong}
}

// frame returns a frame and what it is of. If it is not right that may be
// something else, or nothing. One that is not the maker's first is not right:
// it begins with tables and offsets of the last.
func (m *maker) frame() (blob, want []byte) {
	m.blob, m.want, m.most = nil, nil, 0
	exponent, eighths := m.IntN(10), m.IntN(8) // up to 1 MiB
	m.window = 1 << (10 + exponent)
	m.window += m.window / 8 * eighths
	m.starts = []int{0}
	size := []int{0, 1, 2000, 20_000, 20_000, 300_000, 300_000, 1_000_000}[m.IntN(8)]
	for n := 0; n < 1000 && len(m.want) < size; n++ {
		m.block()
	}
	m.blob = append(m.blob, 1, 0, 0) // the last block, of nothing
	if len(m.want) <= m.window && m.most <= max(len(m.want), minWindow) && m.IntN(2) == 0 {
		head := binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, uint64(max(0, len(m.want)+m.err(frameSize))))
		return append(head, m.blob...), m.want
	}
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(exponent<<3 | eighths)}, m.blob...), m.want
}

// err is 0, but for where the frame's mistake may be made.
func (m *maker) err(what mistake) int {
	rarely := 3
	switch what {
	case tooFar, tooLong: // of each sequence
		rarely = 300
	case frameSize, tail:
		rarely = 1
	}
	if what != m.wrong || m.IntN(rarely) > 0 {
		return 0
	}
	return 1 - 2*m.IntN(2)
}

func (m *maker) limit() int { return min(m.window, maxBlock) }

func head(kind, size int) []byte {
	h := size<<3 | kind<<1
	return []byte{byte(h), byte(h >> 8), byte(h >> 16)}
}

// block makes one of any kind.
func (m *maker) block() {
	was := len(m.blob) + 3
	kind := []int{0, 1, 2, 2, 2, 2, 2, 2}[m.IntN(8)]
	size := []int{0, 1, m.limit(), m.IntN(m.limit() + 1)}[m.IntN(4)]
	switch kind {
	case 0:
		data := m.literals(size, m.IntN(5))
		m.want = append(m.want, data...)
		m.blob = append(append(m.blob, head(0, size)...), data...)
	case 1:
		m.want = append(m.want, bytes.Repeat([]byte{byte(size)}, size)...)
		m.blob = append(append(m.blob, head(1, max(0, size+m.err(blockSize)))...), byte(size))
	case 2:
		before := *m
		body := m.compressed()
		if len(body) > m.limit() { // it got too large
			*m = before
			m.coded = false
			return
		}
		m.blob = append(append(m.blob, head(2, len(body))...), body...)
	}
	m.most = max(m.most, len(m.want)-m.starts[len(m.starts)-1], len(m.blob)-was)
	m.starts = append(m.starts, len(m.want))
}

// literals are of an alphabet that codes are short or long of, or of one byte.
func (m *maker) literals(n, kind int) []byte {
	out := make([]byte, n)
	for i := range out {
		switch kind {
		case 0:
			out[i] = 'r'
		case 1:
			out[i] = byte(m.Uint32())
		case 2:
			out[i] = 'a' + byte(m.IntN(3))
		default:
			out[i] = byte(min(m.ExpFloat64()*12, 127))
		}
	}
	return out
}

// Styles of blocks.
const (
	long = 1 // sequences of many bits, in any order with others
	many = 2 // as many sequences as there can be
)

func (m *maker) compressed() []byte {
	kind := m.IntN(5)
	m.style = []int{0, 0, 0, 0, 0, long, long, m.IntN(9)}[m.IntN(8)]
	var list []sequence
	var tables [3]*coding
	var modes byte
	var heads, all []byte
	for k := range kinds {
		mode, head := 0, []byte(nil)
		mode, tables[k], head = m.table(k)
		modes |= byte(mode) << (6 - 2*k)
		heads = append(heads, head...)
	}
	left := m.limit()
	most := []int{0, 1, 2, 3, 127, 128, 300, 1 << 20}[m.IntN(8)]
	if m.style == many {
		most = 1 << 20
	}
	recent, tabled := m.recent, m.tables
	for len(list) < most {
		s, offset, ok := m.sequence(&tables, left)
		if !ok {
			break
		}
		data := m.literals(int(s.literals), kind)
		all = append(all, data...)
		m.want = append(m.want, data...)
		for range s.match {
			c := byte(0) // it is wrong
			if offset <= len(m.want) {
				c = m.want[len(m.want)-offset]
			}
			m.want = append(m.want, c)
		}
		left -= int(s.literals + s.match)
		list = append(list, s)
	}
	if len(list) == 0 {
		m.recent, m.tables = recent, tabled
	}
	rest := m.literals([]int{0, 0, max(0, left+m.err(tail)), m.IntN(max(0, left) + 1)}[m.IntN(4)], kind)
	all = append(all, rest...)
	m.want = append(m.want, rest...)
	if len(all) > 0 && m.err(fewLiterals) != 0 {
		all = all[1:]
	}
	body := append(m.packLiterals(all), m.number(len(list))...)
	if len(list) == 0 {
		if m.err(lastByte) != 0 {
			body = append(body, 0)
		}
		return body
	}
	for k := range kinds {
		m.tables[k] = tables[k]
	}
	body = append(append(body, modes), heads...)
	return append(body, m.bits(list, &tables)...)
}

// number is that of sequences, at times longer than it would have to be.
func (m *maker) number(n int) []byte {
	if by := m.err(sequences); by != 0 {
		n = []int{max(0, n+by), maxSequences + 1 + m.IntN(1000)}[m.IntN(2)]
	}
	switch {
	case n >= 0x7f00: // at most 0x17eff
		return []byte{255, byte(n - 0x7f00), byte((n - 0x7f00) >> 8)}
	case n >= 128 || n > 0 && m.IntN(4) == 0:
		return []byte{byte(n>>8) + 128, byte(n)}
	}
	return []byte{byte(n)}
}

// sequence finds one that the tables can express and that fits. Its offset is
// as it is written; what it means is returned beside it.
func (m *maker) sequence(tables *[3]*coding, left int) (s sequence, offset int, ok bool) {
	for range 30 {
		literals := m.value(literalLengths, tables[literalLengths], []int{0, 0, 1, 15, 16, 17, 31, 32, 33, 48, 64, 300, left - 3, left - 64, 32768, 65536})
		match := m.value(matchLengths, tables[matchLengths], []int{3, 4, 15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 66, 200, left, left - literals, left - literals, 65539})
		switch m.style {
		case long:
			literals = m.value(literalLengths, tables[literalLengths], []int{0, 64 + m.IntN(1000)})
			match = m.value(matchLengths, tables[matchLengths], []int{3, 131 + m.IntN(1000)})
		case many:
			literals, match = 0, 3
		}
		there := len(m.want) + literals
		most := min(m.window, there)
		start := m.starts[max(0, len(m.starts)-1-m.IntN(min(len(m.starts), 12)))]
		code := m.value(offsets, tables[offsets], []int{
			1, 2, 3, 4, 3 + 1 + m.IntN(40), 3 + most, 3 + most + max(0, m.err(tooFar))*(1+m.IntN(2)*m.IntN(500)), 3 + max(1, most-1-m.IntN(100)), 3 + 1 + m.IntN(max(1, most)), 3 + 1 + m.IntN(max(1, most)),
			3 + there - start, 3 + there - start + m.IntN(100), 3 + there - start + match, 3 + there - start + match + m.IntN(100) - 50,
		})
		if literals < 0 || match < 3 || code < 1 || literals+match > left && m.err(tooLong) <= 0 {
			continue
		}
		recent := m.recent
		offset = later(&recent, literals, code)
		if offset == 0 && m.wrong > 0 { // which the library and zstd read as 1
			offset, recent[0] = 1, 1
		}
		if offset < 1 || offset > most && m.wrong != tooFar {
			continue
		}
		m.recent = recent
		return sequence{uint32(literals), uint32(match), uint32(code)}, offset, true
	}
	return s, 0, false
}

// later says which offset is meant. RFC 8878, 3.1.1.5.
func later(recent *[3]int, literals, code int) int {
	if code > 3 {
		*recent = [3]int{code - 3, recent[0], recent[1]}
		return recent[0]
	}
	if literals == 0 {
		code++
	}
	switch code {
	case 2:
		*recent = [3]int{recent[1], recent[0], recent[2]}
	case 3:
		*recent = [3]int{recent[2], recent[0], recent[1]}
	case 4:
		*recent = [3]int{recent[0] - 1, recent[0], recent[1]}
	}
	return recent[0]
}

// value is one of those wished for, or another one that the table has.
func (m *maker) value(kind int, c *coding, wishes []int) int {
	for range 4 {
		v := wishes[m.IntN(len(wishes))]
		if s := symbolOf(kind, v); s >= 0 && len(c.of[s]) > 0 {
			return v
		}
	}
	k := kinds[kind].codes[c.symbols[m.IntN(len(c.symbols))]]
	if kind == offsets {
		return 1<<k.bits + int(m.Uint64()&(1<<k.bits-1))
	}
	return int(k.base) + int(m.Uint64()&(1<<k.bits-1))
}

// table chooses one, and says how it is written.
func (m *maker) table(kind int) (mode int, c *coding, head []byte) {
	k := &kinds[kind]
	most := len(k.codes)
	if kind == offsets {
		most = 1 + bits.Len(uint(m.window)) // others are for what is too far
	}
	mode = m.IntN(4)
	if m.style == many {
		mode = m.IntN(2)
	}
	switch {
	case m.style == long && m.IntN(8) > 0:
		counts := slices.Repeat([]int16{-1}, most)
		counts[m.IntN(most)] = int16(1<<k.maxLog - most + 1)
		return 2, newCoding(counts, k.maxLog), packCounts(counts, k.maxLog, 1<<k.maxLog+m.err(distribution))
	case mode == 0:
		return 0, newCoding(k.usual, k.usualAt), nil
	case mode == 1:
		s := m.IntN(min(most, 8+m.IntN(most)))
		if m.style == many {
			s = 0
		}
		c := &coding{symbols: []int{s}, bits: []int{0}, next: []int{0}}
		c.of[s] = []int{0}
		return 1, c, []byte{byte(s + m.err(symbol)&1*len(k.codes))}
	case mode == 3 && m.tables[kind] != nil:
		return 3, m.tables[kind], nil
	case mode == 3 && m.err(again) != 0: // again, for the first time
		return 3, newCoding(k.usual, k.usualAt), nil
	}
	log := 5 + m.IntN(k.maxLog-4)
	counts := make([]int16, min(most, 2+m.IntN(most)))
	left := 1 << log
	for s := range counts {
		if n := []int{0, -1, 1, 1 + m.IntN(1<<log)}[m.IntN(4)]; max(n, -n) <= left-1 && s < len(counts)-1 {
			counts[s] = int16(n)
			left -= max(n, -n)
		}
	}
	counts[len(counts)-1] = int16(left)
	return 2, newCoding(counts, log), packCounts(counts, log, 1<<log+m.err(distribution))
}

// bits writes sequences, from the last one to the first.
func (m *maker) bits(list []sequence, tables *[3]*coding) []byte {
	type field struct{ value, bits int }
	var fields []field // in reverse
	var states [3]int
	for i, s := range slices.Backward(list) {
		values := [3]int{int(s.literals), int(s.offset), int(s.match)}
		for _, kind := range []int{offsets, matchLengths, literalLengths} {
			c := tables[kind]
			symbol := symbolOf(kind, values[kind])
			all := c.of[symbol]
			if i == len(list)-1 {
				states[kind] = all[m.IntN(len(all))]
				continue
			}
			for _, state := range all {
				if by := states[kind] - c.next[state]; by >= 0 && by < 1<<c.bits[state] {
					fields = append(fields, field{by, c.bits[state]})
					states[kind] = state
					break
				}
			}
		}
		for _, kind := range []int{literalLengths, matchLengths, offsets} {
			code := kinds[kind].codes[symbolOf(kind, values[kind])]
			from := int(code.base)
			if kind == offsets {
				from = 1 << code.bits
			}
			fields = append(fields, field{values[kind] - from, int(code.bits)})
		}
	}
	for _, kind := range []int{matchLengths, offsets, literalLengths} {
		fields = append(fields, field{states[kind], tables[kind].log})
	}
	var w bitWriter
	if m.err(lastBit) != 0 {
		w.put(0, 1) // a bit that nobody reads
	}
	for _, f := range fields {
		w.put(f.value, f.bits)
	}
	w.put(1, 1)
	if m.err(lastByte) != 0 {
		w.out = append(w.out, 0)
	}
	return w.out
}

// packLiterals writes them in any way that can be.
func (m *maker) packLiterals(p []byte) []byte {
	n := len(p)
	if n > 6 && m.IntN(4) > 0 {
		m.codes.Reuse = huff0.ReusePolicyNone
		mode := 2
		if m.coded && m.IntN(2) == 0 {
			m.codes.Reuse, mode = huff0.ReusePolicyMust, 3
		}
		one := n < 1024 && m.IntN(2) == 0
		pack := huff0.Compress4X
		if one {
			pack = huff0.Compress1X
		}
		out, reused, err := pack(p, m.codes)
		if err == nil && reused == (mode == 3) {
			m.coded = true
			form, width := 3, 18
			switch {
			case one:
				form, width = 0, 10
			case n < 1024 && len(out) < 1024:
				form, width = 1, 10
			case n < 1<<14 && len(out) < 1<<14:
				form, width = 2, 14
			}
			h := binary.LittleEndian.AppendUint64(nil, uint64((mode^m.err(again)&1)|form<<2|max(0, n+m.err(literalSize))<<4|len(out)<<(4+width)))
			return append(h[:(4+2*width+7)/8:8], out...)
		}
		m.coded = m.coded && mode == 3 // else there is no table any more
	}
	mode := 0
	if n > 0 && !slices.ContainsFunc(p, func(c byte) bool { return c != p[0] }) {
		mode, p = 1, p[:1]
	}
	switch n = max(0, n+m.err(literalSize)); {
	case n < 32 && m.IntN(2) == 0:
		return append([]byte{byte(mode | n<<3)}, p...)
	case n < 4096 && m.IntN(2) == 0:
		return append([]byte{byte(mode | 1<<2 | n<<4), byte(n >> 4)}, p...)
	}
	return append([]byte{byte(mode | 3<<2 | n<<4), byte(n >> 4), byte(n >> 12)}, p...)
}
