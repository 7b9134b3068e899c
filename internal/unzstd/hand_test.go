//go:build amd64

package unzstd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const page = 4096

// A bench is what frames are read with.
type bench struct {
	*decoder
	library *zstd.Decoder
	fenced  []byte // no address before it and behind it is of anything
}

// newBench returns nothing where the library alone is used.
func newBench(t *testing.T) *bench {
	d, ok := NewReader(2 << 20).(*decoder)
	if !ok {
		return nil
	}
	library, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(2<<20), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(library.Close)
	all, err := unix.Mmap(-1, 0, 3<<20, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	fenced := all[page : len(all)-page]
	if err := unix.Mprotect(fenced, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	return &bench{d, library, fenced}
}

// read reads a stream thrice, the second and third time with a window between
// fences: it begins where memory does, and then ends where that does.
func (b *bench) read(blob []byte) ([]byte, error) {
	b.window.buf = nil
	got, err := b.readWith(blob)
	n := b.window.full
	for _, buf := range [][]byte{b.fenced[:n:n], b.fenced[len(b.fenced)-n:]} {
		b.window.buf = buf
		if again, err2 := b.readWith(blob); !bytes.Equal(got, again) || fmt.Sprint(err) != fmt.Sprint(err2) {
			return nil, fmt.Errorf("%d bytes and %w, and again %d bytes and %w", len(got), err, len(again), err2)
		}
	}
	return got, err
}

func (b *bench) readWith(blob []byte) ([]byte, error) {
	if err := b.Reset(bytes.NewReader(blob)); err != nil {
		return nil, err
	}
	_, _ = b.Read(make([]byte, 1)) // and begins anew with most of it unread
	if err := b.Reset(bytes.NewReader(blob)); err != nil {
		return nil, err
	}
	return io.ReadAll(b)
}

func (b *bench) readByLibrary(blob []byte) ([]byte, error) {
	if err := b.library.Reset(bytes.NewReader(blob)); err != nil {
		return nil, err
	}
	return io.ReadAll(struct{ io.Reader }{b.library})
}

// oneSymbol tells of an error by which the library refuses what zstd reads: a
// distribution of a single symbol.
func oneSymbol(err error) bool { return err != nil && strings.Contains(err.Error(), "and no bits") }

func TestFramesByHand(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	for seed := range uint64(60) {
		blob, want := newMaker(seed, 0).frame()
		if got, err := b.read(blob); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: %d bytes of %d, %v", seed, len(got), len(want), err)
		}
		if got, err := b.readByLibrary(blob); !oneSymbol(err) && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%d: by the library %d bytes of %d, %v", seed, len(got), len(want), err)
		}
	}
}

// Each behind one that is right, of which nothing must be left.
func TestWrongFramesByHand(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	refused := 0
	for seed := range uint64(6 * mistakes) {
		m := newMaker(seed, 0)
		before, _ := m.frame()
		m.wrong = mistake(seed % uint64(mistakes))
		blob, _ := m.frame()
		blob = slices.Concat(before, blob)
		got, err := b.read(blob)
		want, wantErr := b.readByLibrary(blob)
		switch {
		case err != nil:
			refused++
			if wantErr == nil || !errors.Is(err, errCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d: %d bytes, %v; the library %d bytes, %v", seed, len(got), err, len(want), wantErr)
			}
		case !oneSymbol(wantErr) && (wantErr != nil || !bytes.Equal(got, want)):
			t.Errorf("%d: %d bytes; the library %d bytes, %v", seed, len(got), len(want), wantErr)
		}
	}
	if refused < 20 {
		t.Errorf("only %d are refused", refused)
	}
}

// As many sequences as fit, all of which take no bits, and one more.
func TestMostSequences(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	for more := range 3 {
		n := maxSequences - 0x7f00 + more
		block := []byte{1 << 3, 'x', 255, byte(n), byte(n >> 8), 0x54, 0, 0, 0, 1}
		block = append(head(2, len(block)), block...)
		blob := slices.Concat([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x38}, head(0, 4), []byte("abcd"), block, block, []byte{1, 0, 0})
		got, err := b.read(blob)
		want, wantErr := b.readByLibrary(blob)
		if (err == nil) != (wantErr == nil) || !bytes.Equal(got, want) && err == nil || (err == nil) != (more == 0) {
			t.Errorf("%d more: %d bytes, %v; the library %d, %v", more, len(got), err, len(want), wantErr)
		}
	}
}

// A stream that ends early is found out before anything is read that is more
// than 7 bytes before it, and nothing is read behind it.
func TestDecodeStaysInStream(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	short, endless := &b.blocks[0], &b.blocks[1]
	for round := range 2 * 400 {
		if round == 400 {
			short, endless = endless, short
		}
		left := round % 400 // bits
		for _, stream := range [][]byte{b.fenced[7:], b.fenced[len(b.fenced)-left/8-1:]} {
			for i := range kinds {
				k := &kinds[i]
				k.build(short.tables.of(i), k.usual, k.usualAt)
				short.entries[i] = short.tables.of(i)[0]
				endless.entries[i] = newEntry(0, 0, k.codes[0])
				endless.tables.of(i)[0] = endless.entries[i]
			}
			entries := short.entries
			short.bits, short.left = &stream[0], int64(left)
			endless.bits, endless.left = &b.fenced[7], 0
			if n := decodeBoth(&b.blocks, 0, maxSequences-1); n >= 0 {
				t.Errorf("of %d bits %d sequences are read beside others", left, n)
			}
			short.entries = entries
			if n := decode(short, 0, maxSequences-1); n >= 0 {
				t.Errorf("of %d bits %d sequences are read", left, n)
			}
		}
	}
}

// What would be written behind its room, or want literals that there are not,
// is left alone.
func TestCarryOutStaysInRoom(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	const size, literals = 1000, 500
	at := func(i int) unsafe.Pointer { return unsafe.Pointer(&b.fenced[i]) }
	for _, s := range []sequence{
		{10, 900, 1}, {10, 990, 1}, {10, 990, 20}, {499, 501, 40}, {500, 500, 16}, {500, 3, 17},
		{10, 991, 1}, {10, 991, 17}, {501, 3, 20}, {515, 3, 20}, {0, 131074, 2}, {0, 131074, 300}, {131071, 131074, 20}, {0, 900, 2000}, {0, 3, 1 << 31},
	} {
		list := []sequence{s}
		start := len(b.fenced) - slack - size
		c := copying{
			next: unsafe.Pointer(&list[0]), end: unsafe.Add(unsafe.Pointer(&list[0]), sequenceSize), dst: at(start), dstEnd: at(start + size),
			lit: at(0), litEnd: at(literals), base: at(start - 1000), window: 1500,
		}
		carryOut(&c)
		fits := s.literals <= literals && s.literals+s.match <= size && s.offset <= 1500
		if done := c.next == c.end; done != fits || fits != (c.dst != at(start)) {
			t.Errorf("%v: carried out: %v", s, done)
		}
	}
}

// Whatever a distribution is made of, what is taken for one adds up, and no
// state leads out of its table.
func TestTablesLeadNowhereElse(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	read := 0
	for range 60_000 {
		in := make([]byte, rng.IntN(24))
		binary.LittleEndian.PutUint64(slices.Grow(in, 8)[:8], rng.Uint64()&rng.Uint64())
		for i := range in {
			in[i] ^= byte(rng.Uint32() & rng.Uint32() >> rng.IntN(8))
		}
		for i := range kinds {
			k := &kinds[i]
			counts, log, n, err := k.readCounts(in)
			if err != nil {
				continue
			}
			read++
			sum := 0
			for _, c := range counts {
				sum += max(int(c), -int(c))
			}
			if log > k.maxLog || sum != 1<<log || n > len(in) || len(counts) > len(k.codes) {
				t.Fatalf("%x: %d of a kind of %d, %d bytes", in, counts, i, n)
			}
			table := make([]entry, 1<<log)
			k.build(table, counts, log)
			for _, e := range table {
				if most := e>>16&0xffff + 1<<(e&0xff); most > 1<<log || e>>56 != e&0xff+e>>8&0xff {
					t.Fatalf("%x: an entry %#x of a table of %d", in, e, 1<<log)
				}
			}
		}
	}
	if read < 1000 {
		t.Errorf("only %d are distributions", read)
	}
}
