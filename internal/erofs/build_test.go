package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/layertest"
)

// A made image is one of a test.
type made struct {
	*os.File
	erofs.Summary
	recipe bytes.Buffer
}

// build makes an image that must be possible.
func build(t testing.TB, stream []byte) *made {
	t.Helper()
	m := &made{File: newFile(t)}
	var err error
	m.Summary, err = erofs.Build(context.Background(), bytes.NewReader(stream), m.File, erofs.Options{Limit: 1 << 30, Recipe: &m.recipe})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestSumAndRebuild(t *testing.T) {
	stream := layertest.Tar(
		layertest.Entry{Name: "a", Content: "x"}, layertest.Entry{Name: "d/"}, layertest.Entry{Name: "d/b", Content: strings.Repeat("y", 3<<20+17)},
		layertest.Entry{Name: "h", Hard: "a"}, layertest.Entry{Name: "e", Content: strings.Repeat("z", 4096)}, layertest.Entry{Name: "f", Content: strings.Repeat("w", 8191)},
	)
	stream = append(stream, "and more behind the end"...)
	m := build(t, stream)
	sum, err := erofs.Sum(context.Background(), m, m.Bytes)
	if err != nil || sum != m.Sum {
		t.Errorf("%s, not %s: %v", sum, m.Sum, err)
	}
	var again bytes.Buffer
	if err := erofs.Rebuild(context.Background(), &m.recipe, m, &again); err != nil || !bytes.Equal(again.Bytes(), stream) {
		t.Errorf("%d bytes, not %d: %v", again.Len(), len(stream), err)
	}
}

// Sums are told by their kind, and one that a later program made is not damage.
func TestSumsOfKinds(t *testing.T) {
	image := bytes.Repeat([]byte("what an image is made of\n"), 50_000)
	for earlier, want := range map[string]string{
		"crc64-mib:00": "crc64-mib:f8739edfd17443d0f0c9da516fabbf7fae28916a2c21b3e15d72cc2f33d7ed0c",
		"crc-mib:00":   "crc-mib:4525760c4f69e38da6dc1996938799e7b739d9df0b63457ef1a1ef2758f06cb7",
	} {
		if sum, err := erofs.SumLike(context.Background(), bytes.NewReader(image), int64(len(image)), earlier); err != nil || sum != want {
			t.Errorf("%s: %s, not %s: %v", earlier, sum, want, err)
		}
	}
	for _, earlier := range []string{"", "crc128-mib:00", "0011"} {
		if sum, err := erofs.SumLike(context.Background(), bytes.NewReader(image), int64(len(image)), earlier); !fault.Is(err, fault.Precondition) {
			t.Errorf("%q: %s, %v", earlier, sum, err)
		}
	}
}

// Links are counted in inodes of chunks of which a part was written already, and
// passed by the chunk's memory.
func TestLinksToWhatIsWritten(t *testing.T) {
	random := rand.New(rand.NewPCG(0, 39))
	content := func(n int) string {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		return string(p)
	}
	for _, small := range []int{5, 20, 100} {
		entries := []layertest.Entry{{Name: "first", Content: "x"}, {Name: "large", Content: content(1<<20 + 300<<10)}}
		for i := range small {
			entries = append(entries, layertest.Entry{Name: fmt.Sprint("small", i), Content: content(2500)})
		}
		for i := range small {
			entries = append(entries, layertest.Entry{Name: fmt.Sprint("link", i), Hard: fmt.Sprint("small", i)})
		}
		stream := layertest.Tar(entries...)
		m := build(t, stream)
		sum, err := erofs.Sum(context.Background(), m, m.Bytes)
		if err != nil || sum != m.Sum {
			t.Errorf("%d files: %s, not %s: %v", small, sum, m.Sum, err)
		}
		var again bytes.Buffer
		if err := erofs.Rebuild(context.Background(), &m.recipe, m, &again); err != nil || !bytes.Equal(again.Bytes(), stream) {
			t.Errorf("%d files: %d bytes, not %d: %v", small, again.Len(), len(stream), err)
		}
	}
}

// What was in memory before is in no image: not a byte that is not said.
func TestSameImageAgain(t *testing.T) {
	entries := []layertest.Entry{{Name: "link", Link: strings.Repeat("l", 100)}}
	for i := range 300 {
		dir := strings.Repeat("d", i%200+1) + "/"
		entries = append(entries, layertest.Entry{Name: dir}, layertest.Entry{Name: dir + strings.Repeat("n", (i*37)%250+1), Content: strings.Repeat("x", i*97)})
	}
	stream, other := layertest.Tar(entries...), layertest.Tar(layertest.Entry{Name: "other", Content: strings.Repeat("\xee", 12<<20)})
	var images [3][]byte
	for i := range images {
		b := &buffer{}
		if _, err := buildIn(b, bytes.NewReader(stream), 1<<30); err != nil {
			t.Fatal(err)
		}
		images[i] = b.data
		build(t, other)
	}
	if !bytes.Equal(images[0], images[1]) || !bytes.Equal(images[1], images[2]) {
		t.Error("the same stream makes different images")
	}
	if bytes.Contains(images[2], []byte("\xee\xee\xee\xee")) {
		t.Error("the image has something of another")
	}
}
