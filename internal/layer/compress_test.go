package layer_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/layer"
)

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(data, nil)
}

// Decompressors are used again: after an error, and by one reader at a time.
func TestDecompressorsAgain(t *testing.T) {
	one, other := bytes.Repeat([]byte("one "), 1<<18), bytes.Repeat([]byte("another "), 1<<18)
	open := func(blob, data []byte) io.ReadCloser {
		t.Helper()
		r, err := layer.NewReader(bytes.NewReader(blob), digest.FromBytes(data), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for range 4 {
		blob := zstded(t, one)
		r := open(blob[:len(blob)-5], one)
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Error("a blob that was cut off is whole")
		}
		for range 2 {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		if n, err := r.Read(make([]byte, 10)); n > 0 || err == nil {
			t.Errorf("%d bytes of a closed reader, %v", n, err)
		}
		a, b := open(blob, one), open(zstded(t, other), other)
		for range 16 {
			for r, data := range map[io.Reader][]byte{a: one, b: other} {
				p := make([]byte, 8)
				if _, err := io.ReadFull(r, p); err != nil || !bytes.Equal(p, data[:8]) {
					t.Errorf("%q, %v", p, err)
				}
			}
		}
		for _, r := range []io.ReadCloser{a, b} {
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			_ = r.Close()
		}
	}
}
