package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/layer/layertest"
)

// changed returns p with another byte at an offset.
func changed(p string, at int) string {
	return p[:at] + string(p[at]^1) + p[at+1:]
}

// checkStream reports what is wrong with an image in memory: its checksum, its
// metadata, and that its stream can be had again.
func checkStream(t *testing.T, stream []byte, recipe *bytes.Buffer, b *buffer, s erofs.Summary) {
	t.Helper()
	if int64(len(b.data)) != s.Bytes {
		t.Errorf("%d bytes, not %d", len(b.data), s.Bytes)
	}
	if sum, err := erofs.Sum(context.Background(), b, s.Bytes); err != nil || sum != s.Sum {
		t.Errorf("the sum is %s, not %s: %v", sum, s.Sum, err)
	}
	if err := check(b.data); err != nil {
		t.Error(err)
	}
	var again bytes.Buffer
	if err := erofs.Rebuild(context.Background(), recipe, b, &again); err != nil || !bytes.Equal(again.Bytes(), stream) {
		t.Errorf("the stream is not the same again: %v", err)
	}
}

// Files with the same content take the room of one, whatever stands between
// them, and however their content lies in what is written at a time. Files that
// only seem to have the same do not.
func TestSameContentOnce(t *testing.T) {
	const mib = 1 << 20
	body := string(pattern(mib+3*4096, 1))
	padding := string(pattern(256*4096, 2))
	for _, c := range []struct {
		name   string
		twins  []string
		blocks int // of content that there are
	}{
		{"the same", []string{body, body, body}, 259},
		{"another end", []string{body, body + "end", body + "dne" + strings.Repeat("x", 4000)}, 259},
		{"an end with a block of its own", []string{body, body + strings.Repeat("x", 4090)}, 259 + 260},
		{"another last byte", []string{body, changed(body, len(body)-1), body}, 2 * 259},
		{"another byte behind the first MiB", []string{body, changed(body, mib+4096)}, 2 * 259},
		{"another byte in the second block", []string{body, changed(body, 4096)}, 2 * 259},
		{"another first byte", []string{body, changed(body, 0), changed(body, 0)}, 2 * 259},
		{"shorter by a block", []string{body, body[:len(body)-4096]}, 259 + 258},
		{"small ones", []string{body[:4096], body[:4096], body[:4096] + "end", body[:4095], body[:4095]}, 1 + 2},
		{"zeros", []string{strings.Repeat("\x00", mib), strings.Repeat("\x00", mib)}, 256},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, pad := range []int{0, 1, 100, 249, 250, 251, 252, 253, 254} {
				var entries []layertest.Entry
				for i, twin := range c.twins {
					entries = append(entries,
						layertest.Entry{Name: fmt.Sprintf("pad%d", i), Content: fmt.Sprint(i, padding)[:pad*4096]},
						layertest.Entry{Name: fmt.Sprintf("twin%d", i), Content: twin, Mode: int64(0o600 + i)})
				}
				stream := layertest.Tar(entries...)
				var recipe bytes.Buffer
				b := &buffer{}
				s, err := erofs.Build(context.Background(), bytes.NewReader(stream), b, erofs.Options{Limit: 1 << 30, Recipe: &recipe})
				if err != nil {
					t.Fatal(err)
				}
				checkStream(t, stream, &recipe, b, s)
				// Beside content there are the superblock's block and some of metadata.
				if most := int64(c.blocks+len(c.twins)*pad+8) * 4096; s.Bytes > most || s.Bytes < most-8*4096 {
					t.Errorf("with %d blocks before each, the image has %d bytes, want some less than %d", pad, s.Bytes, most)
				}
			}
		})
	}
}

// A stream that ends while a file is the same as another is not whole.
func TestStreamThatEndsInATwin(t *testing.T) {
	body := string(pattern(3<<20, 1))
	whole := layertest.Tar(layertest.Entry{Name: "a", Content: body}, layertest.Entry{Name: "b", Content: body})
	for _, n := range []int{1 << 10, 1<<20 - 1, 1 << 20, 2<<20 + 5, 3<<20 - 1} {
		stream := whole[:len(body)+1024+n]
		if _, err := buildIn(&buffer{}, bytes.NewReader(stream), 1<<30); err == nil || !strings.Contains(err.Error(), "no whole tar archive") {
			t.Errorf("after %d bytes of the second: %v", n, err)
		}
	}
}
