//go:build amd64

package unzstd

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/klauspost/compress/huff0"
)

// A block is one with sequences, on its way from in to what it writes.
type block struct {
	tables    tables
	entries   [3]entry // of the kinds' states
	bits      *byte    // of the stream of sequences
	left      int64    // bits of it that are not read: those at its beginning
	count     int      // of sequences
	literals  []byte   // with slack behind them
	sequences [maxSequences]sequence
	room      [maxBlock + slack]byte // of literals
	in        [front + maxBlock + slack]byte
}

// parse reads all of a block but its sequences. RFC 8878, 3.1.1.3.
func (r *decoder) parse(b *block, in []byte) error {
	limit := min(maxBlock, r.window.size)
	in, err := r.readLiterals(b, in, limit)
	if err != nil {
		return err
	}
	b.count, in, err = sequenceCount(in)
	if err != nil {
		return err
	}
	if b.count == 0 {
		if len(in) > 0 {
			return fmt.Errorf("%w: %d bytes behind no sequences", errCorrupt, len(in))
		}
		return nil
	}
	if b.count > maxSequences {
		return fmt.Errorf("%w: %d sequences in a block", errCorrupt, b.count)
	}
	if in, err = r.readTables(b, in); err != nil {
		return err
	}
	if len(in) == 0 || in[len(in)-1] == 0 {
		return fmt.Errorf("%w: no end of sequences", errCorrupt)
	}
	b.bits = &in[0]
	b.left = int64(8*len(in) - 9 + bits.Len8(in[len(in)-1]))
	for kind := range kinds { // in this order
		b.entries[kind] = b.tables.of(kind)[b.take(r.frame.logs[kind])]
	}
	if b.left < 0 {
		return fmt.Errorf("%w: sequences end early", errCorrupt)
	}
	return nil
}

// readLiterals decodes the literals of a block, and returns what follows. RFC 8878, 3.1.1.3.1.
func (r *decoder) readLiterals(b *block, in []byte, limit int) (rest []byte, err error) {
	var h [5]byte
	copy(h[:], in)
	form := h[0] >> 2 & 3
	size, length := int(h[0]>>3), 1
	streams, packed := 4, 0
	if h[0]&3 < 2 {
		switch form {
		case 1:
			size, length = int(h[0])>>4|int(h[1])<<4, 2
		case 3:
			size, length = int(h[0])>>4|int(h[1])<<4|int(h[2])<<12, 3
		}
	} else {
		width := []int{10, 10, 14, 18}[form]
		length = []int{3, 3, 4, 5}[form]
		n := uint64(h[0])>>4 | uint64(h[1])<<4 | uint64(h[2])<<12 | uint64(h[3])<<20 | uint64(h[4])<<28
		size, packed = int(n&(1<<width-1)), int(n>>width&(1<<width-1))
		if form == 0 {
			streams = 1
		}
	}
	if len(in) < length || size > limit {
		return nil, fmt.Errorf("%w: literals of %d bytes", errCorrupt, size)
	}
	in = in[length:]
	out := b.room[:size]
	b.literals = out
	switch h[0] & 3 {
	case 0:
		if len(in) < size {
			return nil, fmt.Errorf("%w: literals end early", errCorrupt)
		}
		copy(out, in)
		return in[size:], nil
	case 1:
		if len(in) < 1 {
			return nil, fmt.Errorf("%w: literals end early", errCorrupt)
		}
		fill(out, in[0])
		return in[1:], nil
	}
	if len(in) < packed {
		return nil, fmt.Errorf("%w: literals end early", errCorrupt)
	}
	return in[packed:], r.unpackLiterals(out, in[:packed], streams, h[0]&3 == 2)
}

// unpackLiterals decodes Huffman codes, whose table stands before them or is
// the last one of the frame.
func (r *decoder) unpackLiterals(out, in []byte, streams int, fresh bool) error {
	var err error
	if fresh {
		r.frame.hasCodes = false
		if r.huffman, in, err = huff0.ReadTable(in, r.huffman); err != nil {
			return fmt.Errorf("%w: %w", errCorrupt, err)
		}
		r.frame.hasCodes = true
	}
	if !r.frame.hasCodes {
		return fmt.Errorf("%w: literals without a table", errCorrupt)
	}
	var got []byte
	if streams == 4 {
		got, err = r.huffman.Decoder().Decompress4X(out[:0:len(out)], in)
	} else {
		got, err = r.huffman.Decoder().Decompress1X(out[:0:len(out)], in)
	}
	if err == nil && len(got) != len(out) {
		err = errors.New("another number of literals")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return nil
}

// sequenceCount reads how many there are. RFC 8878, 3.1.1.3.2.1.
func sequenceCount(in []byte) (n int, rest []byte, err error) {
	switch {
	case len(in) >= 1 && in[0] < 128:
		return int(in[0]), in[1:], nil
	case len(in) >= 2 && in[0] < 255:
		return int(in[0]-128)<<8 + int(in[1]), in[2:], nil
	case len(in) >= 3 && in[0] == 255:
		return int(in[1]) + int(in[2])<<8 + 0x7f00, in[3:], nil
	}
	return 0, nil, fmt.Errorf("%w: no number of sequences", errCorrupt)
}

// readTables reads the tables of the three kinds. RFC 8878, 3.1.1.3.2.1.
func (r *decoder) readTables(b *block, in []byte) ([]byte, error) {
	if len(in) == 0 || in[0]&3 != 0 {
		return nil, fmt.Errorf("%w: modes of tables", errCorrupt)
	}
	modes := in[0]
	in = in[1:]
	for i := range kinds {
		k, table := &kinds[i], b.tables.of(i)
		mode := modes >> (6 - 2*i) & 3
		if mode == 3 {
			if r.frame.tables[i] == nil {
				return nil, fmt.Errorf("%w: a table again that there is not", errCorrupt)
			}
			if r.frame.tables[i] != b {
				copy(table[:1<<r.frame.logs[i]], r.frame.tables[i].tables.of(i))
				r.frame.tables[i] = b
			}
			continue
		}
		r.frame.tables[i] = nil
		switch mode {
		case 0:
			k.build(table, k.usual, k.usualAt)
			r.frame.logs[i] = k.usualAt
		case 1:
			if len(in) == 0 || int(in[0]) >= len(k.codes) {
				return nil, fmt.Errorf("%w: a symbol that there is not", errCorrupt)
			}
			table[0] = newEntry(0, 0, k.codes[in[0]])
			r.frame.logs[i] = 0
			in = in[1:]
		case 2:
			counts, log, n, err := k.readCounts(in)
			if err != nil {
				return nil, err
			}
			k.build(table, counts, log)
			r.frame.logs[i] = log
			in = in[n:]
		}
		r.frame.tables[i] = b
	}
	return in, nil
}
