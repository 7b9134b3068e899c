//go:build amd64

package unzstd

import (
	"fmt"
	"unsafe"
)

// A sequence is so many literals, and then a match of so many bytes that is
// copied from offset bytes before.
type sequence struct{ literals, match, offset uint32 }

const sequenceSize = 12

// A copying is what resolve and carryOut work on. It stops at the sequence that
// cannot be carried out so simply, or not at all.
type copying struct {
	next, end   unsafe.Pointer // sequences
	dst, dstEnd unsafe.Pointer // what is written
	lit, litEnd unsafe.Pointer // literals
	base        unsafe.Pointer // of the window
	lap, window uint64
	recent      [3]uint64 // offsets
}

// decode decodes the sequences from number from to number to of a block, as
// they are in the stream: above 24 bits of lengths is anything, and offsets may
// mean recent ones. It returns at which it had to stop: at one with more bits
// than it reads at once, or at to. It is negative if the stream ended. All of
// them are followed by another one.
//
//go:noescape
func decode(b *block, from, to int) int

// decodeBoth does the same for two blocks side by side, since each has the
// processor wait most of the time.
//
//go:noescape
func decodeBoth(b *[2]block, from, to int) int

// resolve makes lengths and offsets of what is in the stream, and has matches
// fetched into the processor's cache.
//
//go:noescape
func resolve(c *copying)

// carryOut carries sequences out. It may write slack bytes behind dstEnd, and
// read as many behind literals.
//
//go:noescape
func carryOut(c *copying)

// ahead is how many sequences are looked at before they are carried out.
const ahead = 128

// execute carries out the sequences of a block. It returns how much it wrote.
func (r *decoder) execute(b *block, to []byte) (int, error) {
	start := unsafe.Pointer(&to[0])
	lit := unsafe.Pointer(&b.room[0])
	c := copying{
		dst: start, dstEnd: unsafe.Add(start, len(to)-slack), lit: lit, litEnd: unsafe.Add(lit, len(b.literals)),
		base: unsafe.Pointer(&r.window.buf[0]), lap: uint64(r.window.lap), window: uint64(r.window.size), recent: r.frame.recent,
	}
	for done := 0; done < b.count; done += ahead {
		s := b.sequences[done:min(done+ahead, b.count)]
		first := unsafe.Pointer(&s[0])
		c.next, c.end = first, unsafe.Add(first, len(s)*sequenceSize)
		resolve(&c)
		for carryOut(&c); c.next != c.end; carryOut(&c) {
			s := s[(uintptr(c.next)-uintptr(first))/sequenceSize]
			c.next = unsafe.Add(c.next, sequenceSize)
			at := int(uintptr(c.dst) - uintptr(start))
			used := int(uintptr(c.lit) - uintptr(lit))
			if err := r.carryOne(s, to, at, b.literals[used:]); err != nil {
				return 0, err
			}
			c.dst = unsafe.Add(c.dst, s.literals+s.match)
			c.lit = unsafe.Add(c.lit, s.literals)
			if c.next == c.end {
				break
			}
		}
	}
	r.frame.recent = c.recent
	n := int(uintptr(c.dst) - uintptr(start))
	literals := b.literals[uintptr(c.lit)-uintptr(lit):]
	if n+len(literals) > len(to)-slack {
		return 0, fmt.Errorf("%w: a block of more bytes than one may have", errCorrupt)
	}
	return n + copy(to[n:], literals), nil
}

// carryOne carries out a sequence of any kind.
func (r *decoder) carryOne(s sequence, to []byte, at int, literals []byte) error {
	w := &r.window
	switch {
	case int(s.literals) > len(literals):
		return fmt.Errorf("%w: a sequence wants more literals than there are", errCorrupt)
	case at+int(s.literals)+int(s.match) > len(to)-slack:
		return fmt.Errorf("%w: a block of more bytes than one may have", errCorrupt)
	case int(s.offset) > w.size || int(s.offset) > w.at+at+int(s.literals)+w.lap:
		return fmt.Errorf("%w: a match begins before the window", errCorrupt)
	}
	at += copy(to[at:], literals[:s.literals])
	from := w.at + at - int(s.offset)
	for i := range int(s.match) {
		if from+i < 0 {
			to[at+i] = w.buf[from+i+w.lap]
		} else {
			to[at+i] = w.buf[from+i]
		}
	}
	return nil
}

// decodeAll decodes all sequences of the first n blocks.
func decodeAll(blocks *[2]block, n int) error {
	i := 0
	if n == 2 {
		for both := min(blocks[0].count, blocks[1].count) - 1; i < both; i++ {
			if i = decodeBoth(blocks, i, both); i < 0 {
				return errEarly
			}
			if i == both {
				break
			}
			if !blocks[0].decodeOne(i) || !blocks[1].decodeOne(i) {
				return errEarly
			}
		}
	}
	for k := range n {
		if err := blocks[k].decodeFrom(i); err != nil {
			return err
		}
	}
	return nil
}

var errEarly = fmt.Errorf("%w: sequences end early", errCorrupt)

func (b *block) decodeFrom(i int) error {
	if b.count == 0 {
		return nil
	}
	for last := b.count - 1; i <= last; i++ {
		if i < last {
			if i = decode(b, i, last); i < 0 {
				return errEarly
			}
		}
		if !b.decodeOne(i) {
			return errEarly
		}
	}
	if b.left != 0 {
		return fmt.Errorf("%w: %d bits behind the last sequence", errCorrupt, b.left)
	}
	return nil
}

// decodeOne decodes a sequence of any kind. It reports whether the stream has it.
func (b *block) decodeOne(i int) bool {
	offset := uint64(1)<<extra(b.entries[offsets]) + b.take(extra(b.entries[offsets]))
	match := base(b.entries[matchLengths]) + b.take(extra(b.entries[matchLengths]))
	literals := base(b.entries[literalLengths]) + b.take(extra(b.entries[literalLengths]))
	b.sequences[i] = sequence{uint32(literals), uint32(match), uint32(offset)}
	if i == b.count-1 || b.left < 0 {
		return b.left >= 0
	}
	for _, kind := range []int{literalLengths, matchLengths, offsets} {
		e := b.entries[kind]
		at := e>>16&0xffff + b.take(int(e&0xff))
		b.entries[kind] = b.tables.of(kind)[at]
	}
	return b.left >= 0
}

func extra(e entry) int   { return int(e >> 8 & 0xff) }
func base(e entry) uint64 { return e >> 32 & 0xffffff }

// take reads up to 32 bits; zeros where there are none, when left is negative.
func (b *block) take(n int) uint64 {
	b.left -= int64(n)
	v := uint64(0)
	for i := range n {
		if at := b.left + int64(i); at >= 0 {
			v |= uint64(*(*byte)(unsafe.Add(unsafe.Pointer(b.bits), at>>3))>>(at&7)&1) << i
		}
	}
	return v
}
