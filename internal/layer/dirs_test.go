package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/layer/layertest"
	"github.com/davit-runtime/davit/internal/store"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestDirs(t *testing.T) {
	testkit.Root(t)
	layertest.Run(t, func(t *testing.T) (layertest.Store, func() []string) {
		s, trash, left := open(t, t.TempDir(), layer.Directories, 1<<30)
		return s, func() []string { trash.Wait(); return left() }
	})
}

// Before Linux 5.6 names have to be resolved step by step.
func TestDirsWithoutOpenat2(t *testing.T) {
	layer.NoOpenat2.Store(true)
	defer layer.NoOpenat2.Store(false)
	TestDirs(t)
}

// open opens a store in dir. left returns what there is besides whole layers.
func open(t testing.TB, dir string, kind layer.Kind, limit int64) (s *layer.Store, trash *layer.Trash, left func() []string) {
	t.Helper()
	root, state := filepath.Join(dir, "layers"), filepath.Join(dir, "state")
	trash, err := layer.OpenTrash(filepath.Join(dir, "trash"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(trash.Close)
	s, err = layer.Open(layer.Config{Root: root, State: state, Kind: kind, Limit: limit, Trash: trash, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Sweep(0, func(string) bool { return false }), s.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		if entries, err := os.ReadDir(state); err != nil || len(entries) > 0 {
			t.Errorf("left: %v %v", entries, err)
		}
	})
	return s, trash, func() []string {
		var left []string
		for _, sub := range []string{filepath.Join(root, "staging"), filepath.Join(dir, "trash")} {
			entries, err := os.ReadDir(sub)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				left = append(left, e.Name())
			}
		}
		return left
	}
}

// What an earlier process left undone goes when the store is opened, and what
// nobody knows when that is said.
func TestOpenClearsAway(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	for _, name := range []string{"layers/staging/123/fs/a", "layers/.probe-1/x", "layers/sha256-1/fs/b", "layers/sha256-2/fs/c", "trash/4/d", "state/sha256-7", "state/.probe-1/x"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"layers/sha256-3.erofs", "layers/sha256-4.erofs"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, trash, _ := open(t, dir, layer.Auto, 1)
	ids, err := s.IDs()
	if got := strings.Join(ids, " "); err != nil || got != "sha256:1 sha256:2 sha256:3 sha256:4" {
		t.Errorf("%s %v", got, err)
	}
	if err := s.Retain(func(id string) bool { return id == "sha256:2" || id == "sha256:4" }); err != nil {
		t.Error(err)
	}
	trash.Wait()
	if _, err := s.Inspect("sha256:2"); err != nil {
		t.Error(err)
	}
	if _, err := s.Inspect("sha256:4"); !fault.Is(err, fault.Unknown) {
		t.Error(err)
	}
	var left []string
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(path, dir))
		return err
	})
	if got := strings.Join(left, " "); err != nil || got != " /layers /layers/sha256-2 /layers/sha256-2/fs /layers/sha256-2/fs/c /layers/sha256-4.erofs /layers/staging /state /trash" {
		t.Errorf("%s %v", got, err)
	}
}

// A directory that a power cut left, with files that are empty, is replaced by
// the layer that is pulled; one of this boot may be in use, and stays.
func TestLeftByPowerCut(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	content := layertest.Tar(layertest.Entry{Name: "f", Content: "data"})
	at := filepath.Join(dir, "layers/sha256-1")
	for _, left := range []struct {
		from string // which boot
		size int64  // of the file, after another pull
	}{{"another", 4}, {"", 4}, {"this", 0}} {
		if err := os.RemoveAll(at); err != nil {
			t.Fatal(err)
		}
		s, _, _ := open(t, dir, layer.Directories, 1<<20)
		unpack := func() {
			t.Helper()
			if _, err := s.Unpack(t.Context(), "sha256:1", layer.Blob{}, bytes.NewReader(content)); err != nil {
				t.Fatal(err)
			}
		}
		unpack()
		if err := os.Truncate(filepath.Join(at, "fs/f"), 0); err != nil {
			t.Fatal(err)
		}
		info := filepath.Join(at, "info.json")
		switch left.from {
		case "":
			if err := os.Truncate(info, 0); err != nil {
				t.Fatal(err)
			}
		case "another":
			if err := store.SaveJSON(info, 1, struct{ Boot string }{"another"}); err != nil {
				t.Fatal(err)
			}
		}
		unpack()
		st, err := os.Lstat(filepath.Join(at, "fs/f"))
		if err != nil || st.Size() != left.size {
			t.Errorf("left by boot %q: %v %v", left.from, st, err)
		}
	}
}

// The disk fills in the middle of a layer: Exhausted, and the space is free again.
func TestDiskFull(t *testing.T) {
	testkit.Root(t)
	for _, c := range []struct {
		name, options string
		layer         []byte
	}{
		{"bytes", "size=4m", layertest.Tar(layertest.Entry{Name: "a", Content: "x"}, layertest.Entry{Name: "b", Content: strings.Repeat("y", 8<<20)})},
		{"inodes", "nr_inodes=40", layertest.Tar(layertest.Entry{Name: strings.Repeat("d/", 60) + "a", Content: "x"})},
	} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, c.options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		d, trash, left := open(t, dir, layer.Directories, 1<<30)
		var before, after unix.Statfs_t
		if err := unix.Statfs(dir, &before); err != nil {
			t.Fatal(err)
		}
		_, err := d.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(c.layer))
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("%s: kind %v: %v", c.name, fault.KindOf(err), err)
		}
		trash.Wait()
		if err := unix.Statfs(dir, &after); err != nil {
			t.Fatal(err)
		}
		if l := left(); len(l) > 0 || after.Bfree != before.Bfree || after.Ffree != before.Ffree {
			t.Errorf("%s: left %v, %d blocks and %d inodes free of %d and %d", c.name, l, after.Bfree, after.Ffree, before.Bfree, before.Ffree)
		}
	}
}

func TestLimits(t *testing.T) {
	testkit.Root(t)
	d, trash, left := open(t, t.TempDir(), layer.Directories, 1<<20)
	big := layertest.Tar(layertest.Entry{Name: "a", Content: strings.Repeat("x", 1<<20)}, layertest.Entry{Name: "b", Content: "y"})
	_, err := d.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(big))
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("kind %v: %v", fault.KindOf(err), err)
	}
	trash.Wait()
	if l := left(); len(l) > 0 {
		t.Errorf("left %v", l)
	}
}

// A sparse file of a terabyte in an archive of 2 KiB must neither fill the disk
// nor take long; within the limit its holes stay holes.
func TestSparse(t *testing.T) {
	testkit.Root(t)
	const size = 64 << 20
	stream := sparseTar(t, size)
	d, _, _ := open(t, t.TempDir(), layer.Directories, 1<<30)
	info, err := d.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	lower, done, err := d.Use("sha256:1")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	st, err := os.Stat(filepath.Join(lower, "sparse"))
	if err != nil || st.Size() != size || st.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 || info.Bytes > 1<<20 {
		t.Errorf("%+v %v, %d bytes", st, err, info.Bytes)
	}
	small, _, _ := open(t, t.TempDir(), layer.Directories, size-1)
	if _, err := small.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(stream)); !fault.Is(err, fault.Exhausted) {
		t.Errorf("beyond the limit: %v", err)
	}
}

// What is remembered of directories is bounded, however small the blob.
func TestTooManyDirectories(t *testing.T) {
	testkit.Root(t)
	defer func(n int) { *layer.MaxNoted = n }(*layer.MaxNoted)
	*layer.MaxNoted = 1 << 20
	archive := layertest.Tar(layertest.Entry{Name: strings.Repeat("d/", 500), Mode: 0o755})
	entry := archive[:len(archive)-1024] // without the archive's end
	var parts []io.Reader
	for range 2000 {
		parts = append(parts, bytes.NewReader(entry))
	}
	d, trash, left := open(t, t.TempDir(), layer.Directories, 1<<30)
	_, err := d.Unpack(context.Background(), "sha256:1", layer.Blob{}, io.MultiReader(parts...))
	if !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "too many directories") {
		t.Error(err)
	}
	trash.Wait()
	if l := left(); len(l) > 0 {
		t.Errorf("left %v", l)
	}
}

// sparseTar makes an old GNU archive with one file that is a hole but for its
// last 4 bytes; archive/tar writes none.
func sparseTar(t *testing.T, size int64) []byte {
	t.Helper()
	h := make([]byte, 512)
	copy(h, "sparse")
	octal := func(at, n int, v int64) {
		for i := n - 2; i >= 0; i-- {
			h[at+i] = byte('0' + v&7)
			v >>= 3
		}
	}
	octal(100, 8, 0o644)
	octal(108, 8, 0)
	octal(116, 8, 0)
	octal(124, 12, 4)
	octal(136, 12, 0)
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	octal(386, 12, size-4) // offset and length of the one piece
	octal(398, 12, 4)
	octal(483, 12, size)
	copy(h[148:], "        ")
	sum := int64(0)
	for _, b := range h {
		sum += int64(b)
	}
	octal(148, 8, sum)
	data := make([]byte, 512)
	copy(data, "tail")
	return append(append(h, data...), make([]byte, 1024)...)
}

func FuzzUnpack(f *testing.F) {
	testkit.Root(f)
	f.Add(layertest.Tar(layertest.Entry{Name: "a/b", Content: "x"}, layertest.Entry{Name: "a/.wh.c"}, layertest.Entry{Name: "l", Link: "/a"}, layertest.Entry{Name: "l/d/", Mode: 0o700}))
	f.Add(layertest.Tar(layertest.Entry{Name: "../x", Content: "x"}))
	f.Add(layertest.Tar(layertest.Entry{Name: "h", Hard: "../../x"}, layertest.Entry{Name: ".wh..wh..opq"}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		dir := t.TempDir()
		canary := filepath.Join(dir, "canary")
		if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		d, trash, left := open(t, filepath.Join(dir, "store"), layer.Directories, 1<<20)
		info, err := d.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(stream))
		trash.Wait()
		if l := left(); len(l) > 0 {
			t.Errorf("left %v", l)
		}
		if data, err := os.ReadFile(canary); err != nil || string(data) != "alive" {
			t.Errorf("%q %v", data, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Errorf("%v %v", entries, err)
		}
		if _, lowerErr := d.Inspect("sha256:1"); (lowerErr == nil) != (err == nil) {
			t.Errorf("%v, but: %v", lowerErr, err)
		}
		if err == nil {
			if _, _, err := d.Mend(context.Background(), "mend:1", []layer.Part{{ID: "sha256:1", Implicit: info.Implicit}}); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestReader(t *testing.T) {
	plain := layertest.Tar(layertest.Entry{Name: "a", Content: strings.Repeat("x", 100000)})
	id := digest.FromBytes(plain)
	packed := zstded(t, plain)
	wrongSum := bytes.Clone(packed)
	wrongSum[len(packed)-1] ^= 1 // the frame's own checksum is its last 4 bytes
	wrongByte := zstded(t, bytes.Replace(plain, []byte("x"), []byte("y"), 1))
	copy(wrongByte[len(wrongByte)-4:], packed[len(packed)-4:])
	trouble := fault.New(fault.Denied, "", "the blob's own error")
	for _, c := range []struct {
		name  string
		blob  io.Reader
		id    digest.Digest
		limit int64
		want  error
		kind  fault.Kind
		text  string
	}{
		{"plain", bytes.NewReader(plain), id, 1 << 20, nil, 0, ""},
		{"gzip", bytes.NewReader(gzipped(t, plain)), id, 1 << 20, nil, 0, ""},
		{"zstd", bytes.NewReader(zstded(t, plain)), id, 1 << 20, nil, 0, ""},
		{"zstd after a frame to skip", bytes.NewReader(append([]byte{0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2}, packed...)), id, 1 << 20, nil, 0, ""},
		{"zstd whose content is right", bytes.NewReader(wrongSum), id, 1 << 20, nil, 0, ""},
		{"zstd whose content is wrong", bytes.NewReader(wrongByte), id, 1 << 20, nil, fault.Unknown, "unpacks to other content"},
		{"zstd that is cut off", bytes.NewReader(packed[:len(packed)-1]), id, 1 << 20, nil, fault.Unknown, "cannot be decompressed"},
		{"empty", strings.NewReader(""), digest.FromString(""), 1, nil, 0, ""},
		{"other content", bytes.NewReader(gzipped(t, append(plain, 0))), id, 1 << 20, nil, fault.Unknown, id.String()},
		{"damaged", bytes.NewReader(append(gzipped(t, plain)[:100], "rubbish"...)), id, 1 << 20, nil, fault.Unknown, "cannot be decompressed"},
		{"cut off", bytes.NewReader(gzipped(t, plain)[:100]), id, 1 << 20, nil, fault.Unknown, "cannot be decompressed"},
		{"a bomb", bytes.NewReader(zstded(t, plain)), id, 1000, nil, fault.Exhausted, "1000"},
		{"the blob's error", io.MultiReader(bytes.NewReader(gzipped(t, plain)[:100]), failing{trouble}), id, 1 << 20, trouble, fault.Denied, ""},
		{"the blob's error behind the end", io.MultiReader(bytes.NewReader(zstded(t, plain)), failing{trouble}), id, 1 << 20, trouble, fault.Denied, ""},
		{"no digest", bytes.NewReader(plain), "sha256:1", 1 << 20, nil, fault.Unknown, "diff ID"},
	} {
		var got []byte
		r, err := layer.NewReader(c.blob, c.id, c.limit)
		if err == nil {
			got, err = io.ReadAll(r)
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		switch {
		case c.kind == 0 && c.text == "" && c.want == nil:
			if err != nil || (len(got) > 0 && !bytes.Equal(got, plain)) {
				t.Errorf("%s: %d bytes, %v", c.name, len(got), err)
			}
		case !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || (c.want != nil && !errors.Is(err, c.want)):
			t.Errorf("%s: kind %v: %v", c.name, fault.KindOf(err), err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
