package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/testkit"
)

// The stream that a directory was made of can be had again, bit for bit, however
// it was written; where that cannot be, it is an error, and never another stream.
func TestStreamOfDirectory(t *testing.T) {
	testkit.Root(t)
	dir, ctx := t.TempDir(), context.Background()
	s, _, _ := open(t, dir, layer.Directories, 1<<30)
	write := func(headers ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i, h := range headers {
			h.Mode = 0o644
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			_, _ = w.Write(bytes.Repeat([]byte{byte('a' + i)}, int(h.Size)))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	file := func(name string, size int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
	}
	pax := file("pax", 5)
	pax.Format, pax.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.user.a": "b"}
	long := strings.Repeat("long/", 60) + "name"
	for what, c := range map[string]struct {
		tar  []byte
		lost bool
	}{
		"nothing": {tar: write()},
		"files":   {tar: write(file("./a", 3), file("b/c", 5000), file("empty", 0), file("/d", 3<<20))},
		"long names, other entries, links": {tar: write(file(long, 700), &tar.Header{Typeflag: tar.TypeDir, Name: "dir/"},
			&tar.Header{Typeflag: tar.TypeSymlink, Name: "dir/link", Linkname: "/elsewhere"}, &tar.Header{Typeflag: tar.TypeDir, Name: "elsewhere/"},
			file("dir/link/file", 9), &tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "elsewhere/file"}, file("dir/.wh.gone", 0), pax)},
		"after its end":    {tar: append(write(file("a", 3)), bytes.Repeat([]byte("garbage"), 100_000)...)},
		"sparse":           {tar: sparseTar(t, 10<<20)},
		"no end":           {tar: write(file("a", 512))[:1024]},
		"empty, then more": {tar: write(file("a", 0), file("a", 10))},
		"twice":            {tar: write(file("a", 10), file("a", 10)), lost: true},
		"twice, shorter":   {tar: write(file("a", 10), file("a", 1)), lost: true},
		"then a directory": {tar: write(file("a", 10), &tar.Header{Typeflag: tar.TypeDir, Name: "a/"}), lost: true},
		"then a fifo":      {tar: write(file("a", 10), &tar.Header{Typeflag: tar.TypeFifo, Name: "a"}), lost: true},
	} {
		t.Run(what, func(t *testing.T) {
			id := digest.FromBytes(c.tar).String()
			if _, err := s.Unpack(ctx, id, layer.Blob{}, bytes.NewReader(c.tar)); err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			_, err := s.Stream(ctx, id, &got)
			switch {
			case c.lost && !fault.Is(err, fault.Unknown):
				t.Errorf("a stream that cannot be made again: %v", err)
			case !c.lost && (err != nil || !bytes.Equal(got.Bytes(), c.tar)):
				t.Errorf("%d bytes of %d: %v", got.Len(), len(c.tar), err)
			}
		})
	}
	some := write(file("a", 3))
	id := digest.FromBytes(some).String()
	if _, err := s.Unpack(ctx, id, layer.Blob{}, bytes.NewReader(some)); err != nil {
		t.Fatal(err)
	}
	recipe := filepath.Join(dir, "layers", strings.Replace(id, ":", "-", 1), "recipe")
	data, err := os.ReadFile(recipe)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) {
		if err := os.WriteFile(recipe, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stream(ctx, id, io.Discard); !fault.Is(err, fault.Unknown) {
			t.Errorf("%d bytes of a recipe of %d: %v", n, len(data), err)
		}
	}
	if err := os.Remove(recipe); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stream(ctx, id, io.Discard); !fault.Is(err, fault.Unimplemented) {
		t.Errorf("no recipe: %v", err)
	}
}

// Recipes that an earlier davitd wrote can still be read.
func TestRecipeOfZstd(t *testing.T) {
	for _, want := range [][]byte{nil, []byte("a recipe"), bytes.Repeat([]byte("a recipe"), 100_000)} {
		r, err := layer.ReadRecipe(bytes.NewReader(zstded(t, want)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, not %d: %v", len(got), len(want), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
