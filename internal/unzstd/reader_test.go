package unzstd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/internal/unzstd"
)

const maxWindow = 64 << 20

// pack makes a frame.
func pack(t testing.TB, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderConcurrency(1)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(data, nil)
}

// packStream makes one that does not say how large it is.
func packStream(t testing.TB, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, append([]zstd.EOption{zstd.WithEncoderConcurrency(1)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	for p := range slices.Chunk(data, 300_000) {
		if _, err := z.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpack reads a stream by the reader that is tested.
func unpack(blob io.Reader) ([]byte, error) {
	r := readers.Get().(unzstd.Reader)
	defer readers.Put(r)
	if err := r.Reset(blob); err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

var readers = sync.Pool{New: func() any { return unzstd.NewReader(maxWindow) }}

// unpackByLibrary reads it by what the reader is held to.
func unpackByLibrary(blob io.Reader) ([]byte, error) {
	r, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(struct{ io.Reader }{r})
}

func contents(t testing.TB) map[string][]byte {
	all := testkit.Contents(t)
	text, err := os.ReadFile("../../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	noise, rng := all["noise"], rand.New(rand.NewPCG(1, 2))
	var far []byte // from all over the window, over and over, where it begins anew, too
	for len(far) < 1<<20 {
		if len(far) < 1000 || rng.IntN(3) == 0 {
			far = append(far, noise[rng.IntN(200_000):][:rng.IntN(400)]...)
		} else {
			at := max(0, len(far)-1-int(rng.Uint32N(300_000)))
			far = append(far, far[at:min(at+3+rng.IntN(200), len(far))]...)
		}
	}
	all["text"], all["far"] = text, far
	all["long"] = slices.Concat(noise, make([]byte, 200_000), noise, bytes.Repeat([]byte("abc"), 100_000), noise[1:])
	return all
}

var encoders = map[string][]zstd.EOption{
	"fastest":       {zstd.WithEncoderLevel(zstd.SpeedFastest)},
	"default":       nil,
	"better":        {zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false)},
	"best":          {zstd.WithEncoderLevel(zstd.SpeedBestCompression)},
	"window 1 KiB":  {zstd.WithWindowSize(zstd.MinWindowSize)},
	"window 64 KiB": {zstd.WithWindowSize(64 << 10)},
	"window 32 MiB": {zstd.WithWindowSize(32 << 20)},
	"single":        {zstd.WithSingleSegment(true)},
	"no codes":      {zstd.WithNoEntropyCompression(true)},
	"all codes":     {zstd.WithAllLitEntropyCompression(true)},
}

func TestReadsWhatEncodersWrite(t *testing.T) {
	for name, data := range contents(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for who, options := range encoders {
				for how, blob := range map[string][]byte{"frame": pack(t, data, options...), "stream": packStream(t, data, options...)} {
					got, err := unpack(bytes.NewReader(blob))
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s, %s: %d bytes of %d, %v", who, how, len(got), len(data), err)
					}
				}
			}
		})
	}
}

// Frames that follow each other, with others between them that are to be
// skipped, read by one reader that had others before.
func TestFrames(t *testing.T) {
	all := contents(t)
	skipped := binary.LittleEndian.AppendUint32([]byte{0x53, 0x2a, 0x4d, 0x18}, 700)
	skipped = append(skipped, all["noise"][:700]...)
	r := unzstd.NewReader(maxWindow)
	for range 2 {
		var blob, want []byte
		for name, data := range all {
			blob = slices.Concat(blob, skipped, pack(t, data, encoders["window 64 KiB"]...), packStream(t, data))
			want = slices.Concat(want, data, data)
			if err := r.Reset(bytes.NewReader(blob)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("to %q: %d bytes of %d, %v", name, len(got), len(want), err)
			}
		}
		if err := r.Reset(bytes.NewReader(blob[:len(blob)/2])); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, 100_000); err != nil {
			t.Fatal(err) // and leaves it in the middle of a block
		}
	}
	if err := r.Reset(nil); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("without a source it reads %d bytes, %v", n, err)
	}
}

// However the input comes, and whatever is asked for at a time.
func TestPieces(t *testing.T) {
	data := contents(t)["program"][:600_000]
	blob := packStream(t, data)
	for name, src := range map[string]io.Reader{
		"bytes":      iotest.OneByteReader(bytes.NewReader(blob)),
		"halves":     iotest.HalfReader(bytes.NewReader(blob)),
		"end beside": iotest.DataErrReader(bytes.NewReader(blob)),
	} {
		r := unzstd.NewReader(maxWindow)
		if err := r.Reset(src); err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the source says is what a caller hears of, and an end before the end is
// one.
func TestErrorsOfTheSource(t *testing.T) {
	data := contents(t)["program"][:300_000]
	blob := packStream(t, data)
	gone := errors.New("gone")
	for _, n := range []int{1, 4, 5, 7, 9, 100, len(blob) / 2, len(blob) - 5, len(blob) - 1} {
		got, err := unpack(io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(gone)))
		if !errors.Is(err, gone) || !bytes.HasPrefix(data, got) {
			t.Errorf("after %d bytes: %d bytes, %v", n, len(got), err)
		}
		got, err = unpack(bytes.NewReader(blob[:n]))
		if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(data, got) {
			t.Errorf("of %d bytes: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestRefused(t *testing.T) {
	noise := contents(t)["noise"]
	wide := packStream(t, noise, zstd.WithWindowSize(128<<20))
	dictionary := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x38, 0x07}, 1, 0, 0)
	sized := pack(t, noise[:1000], zstd.WithEncoderCRC(false))
	sized[6]++ // of what it says of its size
	for name, blob := range map[string][]byte{
		"window of 128 MiB": wide, "dictionary": dictionary, "another size": sized, "no zstd": []byte("hello, hello"),
		"tail": append(pack(t, noise[:1000]), "hello"...), "block of the reserved type": {0x28, 0xb5, 0x2f, 0xfd, 0, 0x38, 7, 0, 0},
		"literals beyond a block": {0x28, 0xb5, 0x2f, 0xfd, 0, 0x38, 0x2d, 0, 0, 0xfd, 0xff, 0xff, 'x', 0},
		"block beyond the window": {0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0x03, 0x40, 0, 'x'},
	} {
		if got, err := unpack(bytes.NewReader(blob)); err == nil {
			t.Errorf("%s: no error, %d bytes", name, len(got))
		}
		if _, err := unpackByLibrary(bytes.NewReader(blob)); err == nil {
			t.Errorf("%s: no error of the library", name)
		}
	}
}

// compare holds the reader to the library: what that reads it reads, too, and
// what it refuses is refused.
func compare(t *testing.T, what string, blob []byte) {
	t.Helper()
	want, wantErr := unpackByLibrary(bytes.NewReader(blob))
	got, err := unpack(bytes.NewReader(blob))
	switch {
	case wantErr != nil && strings.Contains(wantErr.Error(), "and no bits"): // a distribution of one symbol, which zstd reads
	case (err == nil) != (wantErr == nil):
		t.Errorf("%s: %d bytes, %v; the library %d bytes, %v", what, len(got), err, len(want), wantErr)
	case err == nil && !bytes.Equal(got, want):
		t.Errorf("%s: other bytes than the library's, %d and %d", what, len(got), len(want))
	}
}

// Streams with a bit changed, which mostly can still be read to some point.
func TestDamage(t *testing.T) {
	all := contents(t)
	for _, name := range []string{"program", "text", "periods", "far", "few", "long"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(3, 4))
			for who, options := range encoders {
				blob := packStream(t, all[name][:min(150_000, len(all[name]))], options...)
				for range 8 {
					at, bit := rng.IntN(1+rng.IntN(len(blob))), rng.IntN(8) // rather at the beginning, where tables are
					bad := slices.Clone(blob)
					bad[at] ^= 1 << bit
					compare(t, fmt.Sprintf("%s, bit %d of byte %d", who, bit, at), bad)
				}
			}
		})
	}
}

func FuzzReader(f *testing.F) {
	all := contents(f)
	for _, options := range encoders {
		for _, name := range []string{"program", "text", "periods", "far", "zeros"} {
			f.Add(pack(f, all[name][:3000], options...))
		}
	}
	f.Fuzz(func(t *testing.T, blob []byte) { compare(t, fmt.Sprintf("%x", blob), blob) })
}
