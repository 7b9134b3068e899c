package erofs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/layertest"
)

// A buffer is an image in memory. It fails with err beyond max bytes, if those
// are not 0, and remembers where it was written last.
type buffer struct {
	data []byte
	max  int64
	err  error
	last int64
}

func (b *buffer) WriteAt(p []byte, at int64) (int, error) {
	end := at + int64(len(p))
	if b.max > 0 && end > b.max {
		return 0, b.err
	}
	if end > int64(len(b.data)) {
		b.data = append(b.data, make([]byte, end-int64(len(b.data)))...)
	}
	b.last = at
	return copy(b.data[at:], p), nil
}

func (b *buffer) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(b.data).ReadAt(p, at)
}

func buildIn(b *buffer, stream io.Reader, limit int64) (erofs.Summary, error) {
	return erofs.Build(context.Background(), stream, b, erofs.Options{Limit: limit})
}

func TestBuildErrors(t *testing.T) {
	large := layertest.Tar(layertest.Entry{Name: "a", Content: strings.Repeat("x", 3<<20)}, layertest.Entry{Name: "b", Content: "y"})
	attr := func(name, value string) []byte {
		return layertest.Tar(layertest.Entry{Name: "a", Content: "x", Xattrs: map[string]string{name: value}})
	}
	many := map[string]string{}
	for i := range 300 {
		many[fmt.Sprintf("user.%d", i)] = fmt.Sprintf("%d%s", i, strings.Repeat("v", 1500))
	}
	trouble := fault.New(fault.Denied, "", "the stream's own error")
	for _, c := range []struct {
		name   string
		stream io.Reader
		out    *buffer
		limit  int64
		kind   fault.Kind
		text   string
	}{
		{"more content than allowed", bytes.NewReader(large), &buffer{}, 3 << 20, fault.Exhausted, "more than"},
		{"a size that overflows", bytes.NewReader(hugeSize(t)), &buffer{}, 1<<63 - 1, fault.Exhausted, "larger than EROFS"},
		{"the disk is full in a file", bytes.NewReader(large), &buffer{max: 1 << 20, err: unix.ENOSPC}, 1 << 30, fault.Exhausted, "no space"},
		{"the disk is full at the end", bytes.NewReader(large), &buffer{max: 3 << 20, err: unix.ENOSPC}, 1 << 30, fault.Exhausted, "no space"},
		{"the disk fails", bytes.NewReader(large), &buffer{max: 1 << 20, err: unix.EIO}, 1 << 30, fault.Internal, "write the layer's image"},
		{"the stream fails in a file", io.MultiReader(bytes.NewReader(large[:1<<20]), failing{trouble}), &buffer{}, 1 << 30, fault.Denied, "own error"},
		{"the stream fails where it ends", io.MultiReader(bytes.NewReader(large), failing{trouble}), &buffer{}, 1 << 30, fault.Denied, "own error"},
		{"the stream fails in a file, of no kind", io.MultiReader(bytes.NewReader(large[:1<<20]), failing{errors.New("odd")}), &buffer{}, 1 << 30, fault.Internal, "odd"},
		{"cut off", bytes.NewReader(large[:1<<20]), &buffer{}, 1 << 30, fault.Unknown, "no whole tar"},
		{"an attribute too large", bytes.NewReader(attr("user.a", strings.Repeat("v", 65536))), &buffer{}, 1 << 30, fault.Unknown, "65536 bytes"},
		{"an attribute's name too long", bytes.NewReader(attr("user."+strings.Repeat("n", 251), "v")), &buffer{}, 1 << 30, fault.Unknown, "too long"},
		{"too many attributes", bytes.NewReader(layertest.Tar(layertest.Entry{Name: "a", Content: "x", Xattrs: many})), &buffer{}, 1 << 30, fault.Unknown, "too many"},
		{"no capability", bytes.NewReader(attr("security.capability", "yes")), &buffer{}, 1 << 30, fault.Unknown, "security.capability"},
	} {
		_, err := buildIn(c.out, c.stream, c.limit)
		if !fault.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: kind %v: %v", c.name, fault.KindOf(err), err)
		}
		if _, err := erofs.Open(c.out, int64(len(c.out.data))); !fault.Is(err, fault.Unknown) {
			t.Errorf("%s: there is an image: %v", c.name, err)
		}
	}
}

// hugeSize is an archive with one file of 2^63-1 bytes.
func hugeSize(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1<<63 - 1, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Whatever happens between, there is no superblock until all else is written.
func TestSuperblockIsLast(t *testing.T) {
	b := &buffer{}
	stream := layertest.Tar(layertest.Entry{Name: "a", Content: string(pattern(5<<20, 1))}, layertest.Entry{Name: "b/c", Content: "y"}, layertest.Entry{Name: "h", Hard: "a"})
	if _, err := buildIn(b, bytes.NewReader(stream), 1<<30); err != nil || b.last != 0 {
		t.Errorf("written last: %d, %v", b.last, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := erofs.Build(ctx, bytes.NewReader(stream), &buffer{}, erofs.Options{Limit: 1 << 30}); !fault.Is(err, fault.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What is kept in memory of a layer is bounded, however small its blob.
func TestMemory(t *testing.T) {
	defer func(n int64) { *erofs.MaxTree = n }(*erofs.MaxTree)
	*erofs.MaxTree = 1 << 20
	for _, c := range []struct {
		name  string
		entry func(i int) layertest.Entry
	}{
		{"files", func(i int) layertest.Entry { return layertest.Entry{Name: fmt.Sprintf("some-name-%d", i)} }},
		{"directories without an entry", func(i int) layertest.Entry {
			return layertest.Entry{Name: fmt.Sprintf("%d/", i) + strings.Repeat("d/", 1500) + "x"}
		}},
		{"attributes", func(i int) layertest.Entry {
			return layertest.Entry{Name: fmt.Sprintf("%d/", i), Xattrs: map[string]string{"user.a": strings.Repeat("v", 2000)}}
		}},
		{"hard links", func(i int) layertest.Entry {
			if i == 0 {
				return layertest.Entry{Name: "f"}
			}
			return layertest.Entry{Name: fmt.Sprintf("l%d", i), Hard: "f"}
		}},
	} {
		r := &endless{entry: c.entry}
		_, err := buildIn(&buffer{}, r, 1<<40)
		if !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "too many files") {
			t.Errorf("%s: after %d entries: %v", c.name, r.count, err)
		}
	}
	// Names that only look many: an archive that says the same again and again.
	r := io.MultiReader(&endless{max: 20000, entry: func(i int) layertest.Entry { return layertest.Entry{Name: fmt.Sprintf("a/%d/", i%7), Mode: 0o700} }}, bytes.NewReader(make([]byte, 1024)))
	if s, err := buildIn(&buffer{}, r, 1<<40); err != nil || s.Inodes != 9 {
		t.Errorf("%d inodes, %v", s.Inodes, err)
	}
}

// Directories in each other to any depth: their paths would be endless.
func TestDepth(t *testing.T) {
	entries := []layertest.Entry{{Name: "l0", Link: "."}}
	for i := range 10 {
		entries = append(entries, layertest.Entry{Name: fmt.Sprintf("l%d/%sx", i, strings.Repeat("d/", 500))}, layertest.Entry{Name: fmt.Sprintf("l%d", i+1), Link: fmt.Sprintf("l%d/%s", i, strings.Repeat("d/", 499)+"d")})
	}
	if _, err := buildIn(&buffer{}, bytes.NewReader(layertest.Tar(entries...)), 1<<30); !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
}

// An endless archive, or one of max entries.
type endless struct {
	entry func(i int) layertest.Entry
	count int
	max   int
	rest  []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.max > 0 && e.count == e.max {
			return 0, io.EOF
		}
		archive := layertest.Tar(e.entry(e.count))
		e.rest = archive[:len(archive)-1024]
		e.count++
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// A layer of many files takes little memory.
func TestHeap(t *testing.T) {
	const files = 30000
	r := io.MultiReader(&endless{max: files, entry: func(i int) layertest.Entry {
		return layertest.Entry{Name: fmt.Sprintf("usr/share/directory-%d/some-file-name-%d", i/50, i), Content: strings.Repeat("x", i%5000)}
	}}, bytes.NewReader(make([]byte, 1024)))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	peak := uint64(0)
	out := &counting{each: func() {
		runtime.GC() // what nobody holds is not counted, however late it is found
		runtime.ReadMemStats(&after)
		peak = max(peak, after.HeapAlloc)
	}}
	s, err := erofs.Build(context.Background(), r, out, erofs.Options{Limit: 1 << 40})
	if err != nil || s.Inodes != files+files/50+3 {
		t.Fatalf("%d inodes, %v", s.Inodes, err)
	}
	used := int64(peak) - int64(before.HeapAlloc)
	t.Logf("%d MiB of heap", used>>20)
	if used > 20<<20 {
		t.Error("too much")
	}
}

// A counting file keeps nothing.
type counting struct{ each func() }

func (c *counting) WriteAt(p []byte, _ int64) (int, error) { c.each(); return len(p), nil }
func (c *counting) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
