package inflate

import "math/bits"

// A table is looked up with the next bits of the input, as many as its first
// part has. The entry that is found says, in
//
//	bits  0– 5  how many bits it stands for: code and extra bits
//	bits  8–11  how many of them are the code
//	bits 12–15  what it is
//	bits 16–31  a literal, or what the extra bits are added to
//
// and if it is a link: that the first part's bits are used up, how many bits
// the second lookup takes, and where its part of the table begins.
const (
	isLiteral = 1 << 15
	isOther   = 1 << 14 // neither literal nor match: the next three tell
	isLink    = 1 << 13
	isEnd     = 1 << 12
	isWrong   = 0 // no code begins so

	litBits  = 11
	distBits = 9
	litMask  = 1<<litBits - 1
	distMask = 1<<distBits - 1

	// Codes are up to 15 bits long. A second part of 4 (6) bits is worth a code
	// of litBits (distBits) each, of which an incomplete code has none, and a
	// complete one fewer than it has symbols. Larger parts hold more symbols.
	litSize  = 4096
	distSize = 1024

	maxCode    = 15
	maxLit     = 286 // symbols that may be used
	maxDist    = 30
	endOfBlock = 256
)

// What symbols stand for, in entries to which the code's length is to be added.
var (
	litSymbols  = makeLitSymbols()
	distSymbols = makeDistSymbols()
	codeSymbols = makeCodeSymbols()
)

func makeLitSymbols() (s [288]uint32) {
	for i := range endOfBlock {
		s[i] = isLiteral | uint32(i)<<16
	}
	s[endOfBlock] = isOther | isEnd
	length := uint32(3)
	for i := range uint32(28) {
		extra := uint32(0)
		if i >= 8 {
			extra = i/4 - 1
		}
		s[257+i] = length<<16 | extra
		length += 1 << extra
	}
	s[285] = 258 << 16
	s[286], s[287] = isOther|isWrong, isOther|isWrong
	return s
}

func makeDistSymbols() (s [32]uint32) {
	dist := uint32(1)
	for i := range uint32(maxDist) {
		extra := uint32(0)
		if i >= 4 {
			extra = i/2 - 1
		}
		s[i] = dist<<16 | extra
		dist += 1 << extra
	}
	s[30], s[31] = isOther|isWrong, isOther|isWrong
	return s
}

func makeCodeSymbols() (s [19]uint32) {
	for i := range s {
		s[i] = uint32(i) << 16
	}
	return s
}

// build makes a table with a first part of first bits for codes of the given
// lengths. It returns false if they are no code that decompressors take: it
// must be complete, save that there may be no code at all, or a single one of
// one bit.
func build(table []uint32, first uint, lengths []uint8, symbols []uint32) bool {
	var count, offset [maxCode + 2]int
	for _, n := range lengths {
		count[n&15]++
	}
	left, used := 1, len(lengths)-count[0]
	for n := 1; n <= maxCode; n++ {
		offset[n+1] = offset[n] + count[n]
		if left = left<<1 - count[n]; left < 0 {
			return false
		}
	}
	if left > 0 && (used > 1 || used == 1 && count[1] == 0) {
		return false
	}
	var sorted [288]uint16 // symbols by length of their code
	for symbol, n := range lengths {
		if n != 0 {
			sorted[offset[n&15]] = uint16(symbol)
			offset[n&15]++
		}
	}
	if used < 2 { // what is no code stays wrong
		for i := range table[:1<<first] {
			table[i] = isOther | isWrong
		}
		if used == 1 {
			entry := symbols[sorted[0]]
			for i := 0; i < 1<<first; i += 2 {
				table[i] = entry + (1<<8 | 1)
			}
		}
		return true
	}
	fillTable(table, first, sorted[:used], &count, symbols)
	return true
}

// fillTable enters a complete code. The first part is made for short codes, and
// doubled as they get longer, so that each entry is written about twice.
func fillTable(table []uint32, first uint, sorted []uint16, count *[maxCode + 2]int, symbols []uint32) {
	code := uint(0) // with its first bit lowest, as it is looked up
	size := uint(1) // of the part that is being filled, a power of two
	for n := uint(1); n <= first; n++ {
		if size < 1<<n {
			copy(table[size:2*size], table[:size])
			size *= 2
		}
		for range count[n] {
			table[code] = symbols[sorted[0]] + uint32(n<<8|n)
			sorted = sorted[1:]
			code = increment(code, n)
		}
	}
	if len(sorted) == 0 {
		return
	}
	mask := uint(1)<<first - 1
	next := uint(1) << first // where the next second part goes
	prefix, part, wide := ^uint(0), uint(0), uint(0)
	for n := first + 1; len(sorted) > 0; n++ {
		for left := count[n]; left > 0; left-- {
			if code&mask != prefix { // as wide as the codes of this prefix need
				prefix, part, wide = code&mask, next, n-first
				for room := 1<<wide - left; room > 0 && first+wide < maxCode; {
					wide++
					room = room<<1 - count[first+wide]
				}
				next += 1 << wide
				table[prefix] = isOther | isLink | uint32(part<<16|wide<<8|first)
			}
			entry := symbols[sorted[0]] + uint32((n-first)<<8|n-first)
			for i := code >> first; i < 1<<wide; i += 1 << (n - first) {
				table[part+i] = entry
			}
			sorted = sorted[1:]
			code = increment(code, n)
		}
	}
}

// increment returns the code after a code of n bits, all with the first bit
// lowest; 0 after the last.
func increment(code, n uint) uint {
	zeros := ^code & (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	high := uint(bits.Len(zeros)) - 1
	return code&(1<<high-1) | 1<<high
}
