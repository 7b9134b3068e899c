package unzstd

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

// Processors without assembly have a reader, too, with the same manners.
func TestWithoutAssembly(t *testing.T) {
	z, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("to be read without assembly; "), 10_000)
	blob := z.EncodeAll(data, nil)
	r := newLibrary(64 << 10)
	read := func(src io.Reader) ([]byte, error) {
		if err := r.Reset(src); err != nil {
			return nil, err
		}
		return io.ReadAll(struct{ io.Reader }{r})
	}
	gone := errors.New("gone")
	if _, err := read(io.MultiReader(bytes.NewReader(blob[:20]), iotest.ErrReader(gone))); !errors.Is(err, gone) {
		t.Errorf("the source's error: %v", err)
	}
	if _, err := read(bytes.NewReader(blob[:20])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an end before the end: %v", err)
	}
	blob[len(blob)-1]++ // of the checksum
	if got, err := read(bytes.NewReader(blob)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
	r = newLibrary(32 << 10)
	if got, err := read(bytes.NewReader(blob)); err == nil {
		t.Errorf("a window that is too large: %d bytes", len(got))
	}
}
