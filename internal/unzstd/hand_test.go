//go:build amd64

package unzstd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

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
	for seed := range uint64(70) {
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
	for seed := range uint64(120) {
		m := newMaker(seed, 0)
		before, _ := m.frame()
		m.wrong = []float64{0.001, 0.03}[seed%2]
		blob, _ := m.frame()
		blob = slices.Concat(before, blob)
		got, err := b.read(blob)
		want, wantErr := b.readByLibrary(blob)
		switch {
		case err != nil:
			refused++
			if wantErr == nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
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
