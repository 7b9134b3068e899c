package inflate

import "encoding/binary"

const (
	windowSize = 256 << 10
	history    = 32 << 10
	windowMask = windowSize - 1
	// A round of the loop writes up to a match, and what copying in words writes
	// beyond it.
	matchSlack = 258 + 32
	full       = windowSize - matchSlack
	inSlack    = 2 * 8 // a round reads two words, the second up to a word after the first
)

// A window is what was decompressed last.
type window struct {
	out   windowArray
	wr    int // out[:wr] is there
	rd    int // out[rd:wr] is still to be given out
	first int // where the member that is read begins, as far as it is still here
}

// slide makes room, once all is given out.
func (w *window) slide() {
	if w.wr < full {
		return
	}
	by := w.wr - history
	copy(w.out[:], w.out[by:w.wr])
	w.wr -= by
	w.rd -= by
	w.first = max(w.first-by, 0)
}

// codes decodes until the block ends, the window is full or the input short.
func (r *Reader) codes() error {
	r.fast()
	for r.at == atCodes && r.wr < full && (r.err != nil && r.end-r.pos < inSlack) {
		if err := r.careful(); err != nil {
			return err
		}
	}
	r.giveBack()
	if r.at == atWrong {
		return ErrCorrupt
	}
	return nil
}

// What the fast loop is made of; the compiler puts all of it in line.
type (
	inputArray  = [inputSize + wordSlack]byte
	windowArray = [windowSize + 2*wordSlack]byte
)

// refill has at least 56 of the next bits in b.
func refill(in *inputArray, pos int, b uint64, n uint) (int, uint64, uint) {
	b |= binary.LittleEndian.Uint64(in[pos&inputMask:pos&inputMask+8]) << (n & 63)
	return pos + int(63-n)>>3, b, n | 56
}

func move16(out *windowArray, to, from int) {
	*(*[16]byte)(out[to&windowMask : to&windowMask+16]) = *(*[16]byte)(out[from&windowMask : from&windowMask+16])
}

// value is the length or distance that an entry and its extra bits make.
func value(e uint32, b uint64) int {
	return int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&15))
}

// second is where a link leads.
func second(e uint32, b uint64) uint32 { return e>>16 + uint32(b)&(1<<(e>>8&15)-1) }

func use(b uint64, n uint, e uint32) (uint64, uint) { return b >> (e & 63), n - uint(e&63) }

// fast decodes while there is enough input and room not to look at either
// within a round. Each round has 56 bits at first: up to four lookups of 11 bits
// for literals, or three and a code for a length with its extra bits (20), then
// 28 for a distance.
func (r *Reader) fast() {
	in, out, lit, dist := &r.in, &r.out, &r.lit, &r.dist
	b, n, pos, wr, first := r.bits, r.n, r.pos, r.wr, r.first
	for last := r.end - inSlack; pos <= last && wr < full; {
		pos, b, n = refill(in, pos, b, n)
		e := lit[b&litMask]
		if e&isLiteral != 0 {
			out[wr&windowMask] = byte(e >> 16)
			wr++
			b, n = use(b, n, e)
			e = lit[b&litMask]
			if e&isLiteral != 0 {
				out[wr&windowMask] = byte(e >> 16)
				wr++
				b, n = use(b, n, e)
				e = lit[b&litMask]
				if e&isLiteral != 0 {
					out[wr&windowMask] = byte(e >> 16)
					wr++
					b, n = use(b, n, e)
					e = lit[b&litMask]
					if e&isLiteral != 0 {
						out[wr&windowMask] = byte(e >> 16)
						wr++
						b, n = use(b, n, e)
						continue
					}
				}
			}
		}
		if e&isOther != 0 {
			if e&isLink != 0 {
				b, n = use(b, n, e)
				e = lit[second(e, b)&(litSize-1)]
				if e&isLiteral != 0 {
					out[wr&windowMask] = byte(e >> 16)
					wr++
					b, n = use(b, n, e)
					continue
				}
			}
			if e&isOther != 0 {
				b, n = use(b, n, e)
				if r.at = atWrong; e&isEnd != 0 {
					r.at = atBlock
				}
				break
			}
		}
		length := value(e, b)
		b, n = use(b, n, e)
		if n < 28 {
			pos, b, n = refill(in, pos, b, n)
		}
		e = dist[b&distMask]
		if e&isOther != 0 && e&isLink != 0 {
			b, n = use(b, n, e)
			e = dist[second(e, b)&(distSize-1)]
		}
		distance := value(e, b)
		b, n = use(b, n, e)
		if distance > wr-first || e&isOther != 0 {
			r.at = atWrong
			break
		}
		to, from := wr, wr-distance
		wr += length
		if distance < 16 {
			repeat(out, to, distance, length)
			continue
		}
		for move16(out, to, from); length > 16; length -= 16 {
			to, from = to+16, from+16
			move16(out, to, from)
		}
	}
	r.bits, r.n, r.pos, r.wr = b, n, pos, wr
	r.giveBack()
}

// repeat copies a match that is less than 16 bytes back.
func repeat(out *windowArray, to, distance, length int) {
	from, end := to-distance, to+length
	if distance == 1 {
		v := uint64(out[from&windowMask]) * 0x0101010101010101
		for ; to < end; to += 8 {
			binary.LittleEndian.PutUint64(out[to&windowMask:to&windowMask+8], v)
		}
		return
	}
	step := min(distance, 8) // each word that is written is right for so many bytes
	for ; to < end; to, from = to+step, from+step {
		v := binary.LittleEndian.Uint64(out[from&windowMask : from&windowMask+8])
		binary.LittleEndian.PutUint64(out[to&windowMask:to&windowMask+8], v)
	}
}

// careful decodes one symbol near the end of the input.
func (r *Reader) careful() error {
	r.more()
	e := r.lit[r.bits&litMask]
	if e&isLink != 0 && e&isOther != 0 {
		if r.n < litBits {
			return r.short()
		}
		r.skip(litBits)
		e = r.lit[second(e, r.bits)&(litSize-1)]
	}
	used := uint(e & 63)
	if used > r.n {
		return r.short()
	}
	if e&isLiteral != 0 {
		r.out[r.wr] = byte(e >> 16)
		r.wr++
		r.skip(used)
		return nil
	}
	if e&isOther != 0 {
		if e&isEnd == 0 {
			return ErrCorrupt
		}
		r.skip(used)
		r.at = atBlock
		return nil
	}
	length := value(e, r.bits)
	r.skip(used)
	e = r.dist[r.bits&distMask]
	if e&isLink != 0 && e&isOther != 0 {
		if r.n < distBits {
			return r.short()
		}
		r.skip(distBits)
		e = r.dist[second(e, r.bits)&(distSize-1)]
	}
	if used = uint(e & 63); used > r.n {
		return r.short()
	}
	if e&isOther != 0 {
		return ErrCorrupt
	}
	distance := value(e, r.bits)
	r.skip(used)
	if distance > r.wr-r.first {
		return ErrCorrupt
	}
	for range length {
		r.out[r.wr] = r.out[r.wr-distance]
		r.wr++
	}
	return nil
}
