package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"

	"github.com/davit-runtime/davit/internal/inflate"
	"github.com/davit-runtime/davit/internal/testkit"
)

// pack makes one member by the standard library's compressor.
func pack(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packKlauspost makes one member by the compressor that many image builders use.
func packKlauspost(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpack reads a stream by the reader that is tested.
func unpack(blob io.Reader) ([]byte, error) {
	r, err := inflate.NewReader(blob)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(struct{ io.Reader }{r})
}

// unpackStandard reads it by the standard library.
func unpackStandard(blob io.Reader) ([]byte, error) {
	r, err := stdgzip.NewReader(blob)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// unpackKlauspost reads it by what davit had before.
func unpackKlauspost(blob io.Reader) ([]byte, error) {
	r, err := gzip.NewReader(blob)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(struct{ io.Reader }{r})
}

func contents(t testing.TB) map[string][]byte {
	all := testkit.Contents(t)
	source, err := os.ReadFile("codes.go")
	if err != nil {
		t.Fatal(err)
	}
	noise := all["noise"]
	all["source"] = bytes.Repeat(source, 50)
	all["far"] = slices.Concat(noise[:32768], noise[:32768], noise[:32767], noise[:32768])
	return all
}

func TestReadsWhatCompressorsWrite(t *testing.T) {
	for name, data := range contents(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 6} {
				for who, blob := range map[string][]byte{"std": pack(t, data, level), "klauspost": packKlauspost(t, data, level)} {
					got, err := unpack(bytes.NewReader(blob))
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("level %d of %s: %d bytes of %d, %v", level, who, len(got), len(data), err)
					}
				}
			}
		})
	}
}

// Wherever in a block, or in what is before it, the input comes to an end for
// now: blocks are short here, and pieces random.
func TestPiecesOfShortBlocks(t *testing.T) {
	for name, data := range contents(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data = data[:min(len(data), 100_000)]
			for seed := range uint64(20) {
				rng := rand.New(rand.NewPCG(seed, 0))
				var blob bytes.Buffer
				w := stdgzip.NewWriter(&blob)
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rng.IntN(2000))
					if _, err := w.Write(rest[:n]); err != nil {
						t.Fatal(err)
					}
					if err := w.Flush(); err != nil {
						t.Fatal(err)
					}
					rest = rest[n:]
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				most := 1 << rng.IntN(10)
				got, err := unpack(reader(func(p []byte) (int, error) { return blob.Read(p[:min(len(p), 1+rng.IntN(most))]) }))
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("seed %d, pieces of %d at most: %d bytes of %d, %v", seed, most, len(got), len(data), err)
				}
			}
		})
	}
}

// Whatever pieces the input comes in and the output is asked for in, it is the same.
func TestReadsInPieces(t *testing.T) {
	data := contents(t)["source"]
	blob := slices.Concat(pack(t, data[:200_000], 6), pack(t, nil, 6), packKlauspost(t, data[200_000:], 1))
	inputs := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader, "EOF with data": iotest.DataErrReader,
	}
	for name, input := range inputs {
		for _, size := range []int{1, 7, 4096, 1 << 20} {
			r, err := inflate.NewReader(input(bytes.NewReader(blob)))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{r}, make([]byte, size)); err != nil || !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%s, reads of %d: %d bytes, %v", name, size, got.Len(), err)
			}
		}
		r, err := inflate.NewReader(input(bytes.NewReader(blob)))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if n, err := r.WriteTo(&got); err != nil || n != int64(len(data)) || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("%s, WriteTo: %d, %v", name, n, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the end: %d, %v", name, n, err)
		}
	}
}

// What is there is given out before more is waited for.
func TestDoesNotWaitWithWhatItHas(t *testing.T) {
	data := contents(t)["program"]
	blob := pack(t, data, 6)
	in, out := io.Pipe()
	defer in.Close()
	go func() { _, _ = out.Write(blob[:len(blob)/2]) }() // and no more
	r, err := inflate.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data)/3)
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:len(got)]) {
		t.Errorf("the first third: %v", err)
	}
}

// A stream that ends too early is never taken for a whole one.
func TestTruncation(t *testing.T) {
	data := contents(t)["source"][:1500]
	noise := contents(t)["noise"][:100]
	blobs := map[string][]byte{
		"dynamic": pack(t, data, 6), "fixed": pack(t, []byte("hello, hello, hello"), 6), "stored": pack(t, noise, 6),
		"klauspost": packKlauspost(t, data, 1), "members": slices.Concat(named(t, data[:200]), named(t, data[200:400])),
	}
	for name, blob := range blobs {
		whole, err := unpackStandard(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(blob) {
			got, err := unpack(bytes.NewReader(blob[:n]))
			want, wantErr := unpackStandard(bytes.NewReader(blob[:n]))
			if wantErr == nil && (err != nil || !bytes.Equal(got, want)) {
				t.Errorf("%s, %d bytes of %d: %d bytes, %v; a member had just ended", name, n, len(blob), len(got), err)
			} else if wantErr != nil && (!errors.Is(err, wantErr) || !bytes.HasPrefix(whole, got) || len(got) < len(want)) {
				t.Errorf("%s, %d bytes of %d: %d bytes, %v; compress/gzip: %d, %v", name, n, len(blob), len(got), err, len(want), wantErr)
			}
		}
	}
}

// An error of the input is passed on, after what came before it.
func TestErrorOfTheInput(t *testing.T) {
	data := contents(t)["source"][:100_000]
	blob := pack(t, data, 6)
	for _, n := range []int{5, 12, 100, len(blob) / 2, len(blob) - 4, len(blob)} {
		lost := errors.New("connection lost")
		got, err := unpack(io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(lost)))
		if !errors.Is(err, lost) || !bytes.HasPrefix(data, got) {
			t.Errorf("after %d bytes: %d, %v", n, len(got), err)
		}
	}
	r, err := inflate.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	if n, err := r.WriteTo(writer(func([]byte) (int, error) { return 3, full })); n != 3 || !errors.Is(err, full) {
		t.Errorf("WriteTo a full disk: %d, %v", n, err)
	}
	if _, err := unpack(reader(func([]byte) (int, error) { return 0, nil })); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("an input that gives nothing: %v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

// named makes a member with all that a header may have.
func named(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := stdgzip.NewWriter(&b)
	z.Name, z.Comment, z.Extra = "näme", "a comment", bytes.Repeat([]byte("extra"), 20)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What follows the last member is treated as it always was: it is an error.
func TestAfterTheEnd(t *testing.T) {
	blob := pack(t, []byte("content"), 6)
	for _, tail := range []string{"", "\x00", "\x1f", "\x1f\x8b\x08", "garbage", strings.Repeat("\x00", 512), strings.Repeat("garbage", 100), string(blob), string(blob[:15])} {
		all := append(slices.Clone(blob), tail...)
		got, err := unpack(bytes.NewReader(all))
		want, wantErr := unpackKlauspost(bytes.NewReader(all))
		if fmt.Sprint(err) != fmt.Sprint(wantErr) || !bytes.Equal(got, want) {
			t.Errorf("%.20q after the end: %q, %v; klauspost/compress: %q, %v", tail, got, err, want, wantErr)
		}
	}
}

// One wrong bit anywhere, and no reader takes a stream, or all take it for the same.
func TestEachBitCounts(t *testing.T) {
	source := contents(t)["source"][:250]
	for name, blob := range map[string][]byte{"members": slices.Concat(named(t, source[:100]), pack(t, source, 6)), "stored": pack(t, source[:20], 0), "fixed": pack(t, []byte("hello, hello"), 6)} {
		for bit := range len(blob) * 8 {
			changed := slices.Clone(blob)
			changed[bit/8] ^= 1 << (bit % 8)
			compare(t, changed)
			if t.Failed() {
				t.Fatalf("%s: bit %d", name, bit)
			}
		}
	}
}

// compare holds the reader to what the others do with a blob.
func compare(t *testing.T, blob []byte) {
	t.Helper()
	got, err := unpack(bytes.NewReader(blob))
	if pieces, pErr := unpack(iotest.OneByteReader(bytes.NewReader(blob))); !bytes.Equal(pieces, got) || (pErr == nil) != (err == nil) {
		t.Errorf("%d bytes, %v; in pieces %d, %v", len(got), err, len(pieces), pErr)
	}
	k, kErr := unpackKlauspost(bytes.NewReader(blob))
	s, sErr := unpackStandard(bytes.NewReader(blob))
	switch {
	case (err == nil) != (sErr == nil) && !(sErr == nil && kErr != nil): // reserved flags: refused as by klauspost/compress and RFC 1952
		t.Errorf("%v; compress/gzip: %v", err, sErr)
	case err == nil && (!bytes.Equal(got, s) || kErr == nil && !bytes.Equal(got, k)):
		t.Errorf("%d bytes; compress/gzip: %d, klauspost/compress: %d", len(got), len(s), len(k))
	case err != nil && len(got) > len(s) && !bytes.HasPrefix(got, s), err != nil && len(got) <= len(s) && !bytes.HasPrefix(s, got):
		t.Errorf("%d bytes before %v are not those of compress/gzip before %v", len(got), err, sErr)
	}
}

func FuzzGzip(f *testing.F) {
	f.Add(pack(f, []byte("hello, hello"), 6))
	f.Add(slices.Concat(named(f, []byte("aaaaaaaaaaaaaaaaaaaa")), pack(f, nil, 0)))
	f.Add([]byte{0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0, 1, 0, 'x'})
	f.Fuzz(func(t *testing.T, blob []byte) { compare(t, blob) })
}
