package inflate_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"testing/iotest"

	"github.com/davit-runtime/davit/internal/inflate"
)

// A bitWriter writes deflate streams by hand.
type bitWriter struct {
	b []byte
	n uint
}

// bits appends the lowest n bits of v, from the lowest.
func (w *bitWriter) bits(v uint, n uint) *bitWriter {
	for i := range n {
		if w.n%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= byte(v>>i&1) << (w.n % 8)
		w.n++
	}
	return w
}

// dynamic begins a block with codes of the given lengths, which it sends with a
// code in which lengths 0 to 15 all have 4 bits: so repeats cannot be had.
func (w *bitWriter) dynamic(lit, dist []uint) *bitWriter {
	w.bits(1|2<<1, 3).bits(uint(len(lit)-257), 5).bits(uint(len(dist)-1), 5).bits(15, 4)
	for _, symbol := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		if symbol < 16 {
			w.bits(4, 3)
		} else {
			w.bits(0, 3)
		}
	}
	for _, lengths := range [][]uint{lit, dist} {
		for _, n := range lengths {
			for i := 3; i >= 0; i-- { // codes go from their highest bit
				w.bits(n>>i&1, 1)
			}
		}
	}
	return w
}

// at returns lengths of n symbols, of which some have codes.
func at(n int, some map[int]uint) []uint {
	lengths := make([]uint, n)
	for symbol, length := range some {
		lengths[symbol] = length
	}
	return lengths
}

// compareDeflate holds the reader to what compress/flate does with a stream.
func compareDeflate(t *testing.T, stream []byte) (data []byte, ok bool) {
	t.Helper()
	in := bytes.NewReader(stream) // not read beyond the end, since it can be read by bytes
	want, wantErr := io.ReadAll(flate.NewReader(in))
	blob := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, stream[:len(stream)-in.Len()]...)
	if wantErr == nil {
		blob = binary.LittleEndian.AppendUint32(blob, crc32.ChecksumIEEE(want))
		blob = binary.LittleEndian.AppendUint32(blob, uint32(len(want)))
	}
	got, err := unpack(bytes.NewReader(blob))
	if pieces, pErr := unpack(iotest.OneByteReader(bytes.NewReader(blob))); !bytes.Equal(pieces, got) || (pErr == nil) != (err == nil) {
		t.Errorf("%x: %x, %v; in pieces %x, %v", stream, got, err, pieces, pErr)
	}
	switch {
	case (err == nil) != (wantErr == nil), errors.Is(err, inflate.ErrChecksum), errors.Is(err, inflate.ErrHeader):
		t.Errorf("%x: %v; compress/flate: %v", stream, err, wantErr)
	case err == nil && !bytes.Equal(got, want), !bytes.HasPrefix(got, want): // it may get further before an error
		t.Errorf("%x: %x, %v; compress/flate: %x, %v", stream, got, err, want, wantErr)
	}
	return got, err == nil
}

func TestCodes(t *testing.T) {
	two := map[int]uint{'a': 1, 256: 1}
	deep := map[int]uint{'a': 1, 'b': 2, 'c': 3, 'd': 4, 'e': 5, 'f': 6, 'g': 7, 'h': 8, 'i': 9, 'j': 10, 'k': 11, 'l': 12, 'm': 13, 'n': 14, 256: 15, 'o': 15}
	for name, c := range map[string]struct {
		stream *bitWriter
		want   string
		ok     bool
	}{
		"two symbols":               {new(bitWriter).dynamic(at(257, two), at(1, nil)).bits(0, 1).bits(1, 1), "a", true},
		"one symbol, the end":       {new(bitWriter).dynamic(at(257, map[int]uint{256: 1}), at(1, nil)).bits(0, 1), "", true},
		"one symbol, no such code":  {new(bitWriter).dynamic(at(257, map[int]uint{256: 1}), at(1, nil)).bits(1, 1), "", false},
		"one symbol of two bits":    {new(bitWriter).dynamic(at(257, map[int]uint{256: 2}), at(1, nil)).bits(0, 2), "", false},
		"no end":                    {new(bitWriter).dynamic(at(257, map[int]uint{'a': 1}), at(1, nil)).bits(0, 8), "aaaaaaaa", false},
		"no symbols":                {new(bitWriter).dynamic(at(257, nil), at(1, nil)).bits(0, 8), "", false},
		"incomplete":                {new(bitWriter).dynamic(at(257, map[int]uint{'a': 1, 256: 2}), at(1, nil)).bits(0, 1).bits(1, 2), "", false},
		"too many":                  {new(bitWriter).dynamic(at(257, map[int]uint{'a': 1, 'b': 1, 256: 1}), at(1, nil)).bits(0, 1), "", false},
		"15 bits":                   {new(bitWriter).dynamic(at(257, deep), at(1, nil)).bits(0, 1).bits(1<<14-1, 15).bits(1<<15-1, 15), "ao", true},
		"match":                     {new(bitWriter).dynamic(at(258, map[int]uint{'a': 1, 256: 2, 257: 2}), at(1, map[int]uint{0: 1})).bits(0, 1).bits(3, 2).bits(0, 1).bits(1, 2), "aaaa", true},
		"match of the other code":   {new(bitWriter).dynamic(at(258, map[int]uint{'a': 1, 256: 2, 257: 2}), at(1, map[int]uint{0: 1})).bits(0, 1).bits(3, 2).bits(1, 1).bits(1, 2), "", false},
		"match without distances":   {new(bitWriter).dynamic(at(258, map[int]uint{'a': 1, 256: 2, 257: 2}), at(1, nil)).bits(0, 1).bits(3, 2).bits(0, 1).bits(1, 2), "", false},
		"before the beginning":      {new(bitWriter).dynamic(at(258, map[int]uint{'a': 1, 256: 2, 257: 2}), at(2, map[int]uint{0: 1, 1: 1})).bits(0, 1).bits(3, 2).bits(1, 1).bits(1, 2), "", false},
		"287 literals and lengths":  {new(bitWriter).dynamic(at(287, two), at(1, nil)).bits(0, 1).bits(1, 1), "", false},
		"31 distances":              {new(bitWriter).dynamic(at(257, two), at(31, nil)).bits(0, 1).bits(1, 1), "", false},
		"reserved kind of block":    {new(bitWriter).bits(7, 3), "", false},
		"fixed, length 286":         {new(bitWriter).bits(1|1<<1, 3).bits(0b01100011, 8), "", false},
		"fixed, distance 30":        {new(bitWriter).bits(1|1<<1, 3).bits(0b00001100, 8).bits(0b1000000, 7).bits(0b01111, 5), "", false},
		"stored, lengths disagree":  {new(bitWriter).bits(1, 8).bits(1, 16).bits(1, 16).bits('a', 8), "", false},
		"stored, nothing, then end": {new(bitWriter).bits(0, 8).bits(0, 16).bits(0xffff, 16).bits(1, 8).bits(1, 16).bits(0xfffe, 16).bits('a', 8), "a", true},
	} {
		for _, padding := range []int{0, 100} { // near the end of the input other code is at work
			stream := append(bytes.Clone(c.stream.b), make([]byte, padding)...)
			got, ok := compareDeflate(t, stream)
			if ok != c.ok || ok && string(got) != c.want {
				t.Errorf("%s: %q, %v; want %q, %v", name, got, ok, c.want, c.ok)
			}
		}
	}
}

func FuzzDeflate(f *testing.F) {
	for _, level := range []int{flate.HuffmanOnly, 0, 1, 6} {
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, level)
		if err != nil {
			f.Fatal(err)
		}
		for _, s := range []string{"hello, hello, hello", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "0123456789abcdefghijklmnopqrstuvwxyz", "0123456789abcdefghijklmnopqrstuvwxyz"} {
			if _, err := w.Write([]byte(s)); err != nil {
				f.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	deep := map[int]uint{'a': 1, 'b': 2, 'c': 3, 'd': 4, 'e': 5, 'f': 6, 'g': 7, 'h': 8, 'i': 9, 'j': 10, 'k': 11, 'l': 12, 'm': 13, 257: 14, 256: 15, 285: 15}
	f.Add(new(bitWriter).dynamic(at(286, deep), at(30, map[int]uint{0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9, 9: 10, 10: 11, 11: 12, 12: 13, 28: 14, 29: 15, 27: 15})).bits(0x123456789, 40).b)
	f.Fuzz(func(t *testing.T, stream []byte) { compareDeflate(t, stream) })
}
