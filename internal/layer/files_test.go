package layer_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/layer/layertest"
	"github.com/davit-runtime/davit/internal/testkit"
)

// erofs skips the test where EROFS files cannot be mounted.
func erofs(t testing.TB) {
	t.Helper()
	testkit.Root(t)
	s, _, _ := open(t, t.TempDir(), layer.Auto, 1)
	if s.Kind() == layer.Directories {
		t.Skip("this kernel mounts no EROFS")
	}
}

func TestFiles(t *testing.T) {
	erofs(t)
	for name, change := range map[string]func(*layer.Store){"files": func(*layer.Store) {}, "loop": layer.ByLoop} {
		t.Run(name, func(t *testing.T) {
			layertest.Run(t, func(t *testing.T) (layertest.Store, func() []string) {
				s, trash, left := open(t, t.TempDir(), layer.EROFS, 1<<30)
				change(s)
				return s, func() []string { trash.Wait(); return left() }
			})
		})
	}
}

var some = layertest.Tar(
	layertest.Entry{Name: "d/", Mode: 0o750}, layertest.Entry{Name: "d/f", Content: strings.Repeat("content ", 5000)},
	layertest.Entry{Name: "d/g", Hard: "d/f"}, layertest.Entry{Name: "l", Link: "d/f"}, layertest.Entry{Name: ".wh.gone"},
)

// fill makes layer some in a new store and returns its ID and its file.
func fill(t *testing.T, dir string) (s *layer.Store, id, file string) {
	t.Helper()
	s, _, _ = open(t, dir, layer.EROFS, 1<<30)
	id = digest.FromBytes(some).String()
	info, err := s.Unpack(context.Background(), id, layer.Blob{Digest: "sha256:b", Size: 7}, bytes.NewReader(some))
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "layers", strings.Replace(id, ":", "-", 1)+".erofs")
	st, err := os.Stat(file)
	if err != nil || st.Size()%4096 != 0 || info.Bytes != uint64(st.Size()) || info.Inodes != 1 || len(info.Implicit) != 1 {
		t.Errorf("%+v %+v %v", info, st, err)
	}
	return s, id, file
}

func pace(context.Context, int) error { return nil }

// Whatever of a file is not as it was written is found: at once where it ends,
// begins, or what it tells of itself is wrong, else when it is read whole.
func TestDamage(t *testing.T) {
	erofs(t)
	s, id, file := fill(t, t.TempDir())
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	size := len(good)
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 4; return b }
	}
	trailer := bytes.LastIndex(good, []byte(`{"ID"`))
	for _, c := range []struct {
		name   string
		harm   func([]byte) []byte
		atOnce bool
	}{
		{"nothing", func(b []byte) []byte { return b }, false},
		{"empty", func([]byte) []byte { return nil }, true},
		{"all zeros", func(b []byte) []byte { return make([]byte, len(b)) }, true},
		{"cut", func(b []byte) []byte { return b[:4096] }, true},
		{"cut within a block", func(b []byte) []byte { return b[:len(b)-1] }, true},
		{"longer", func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, true},
		{"its magic", flip(size - 40), true},
		{"its footer", flip(size - 20), true},
		{"its version", flip(size - 32), true},
		{"its trailer", flip(trailer + 30), true},
		{"the superblock", flip(1024 + 40), true},
		{"the first byte", flip(0), true},
		{"content", flip(9000), false},
		{"the recipe", flip(size - 4096), false},
		{"of another layer", func(b []byte) []byte { return bytes.Clone(b) }, true},
	} {
		if err := os.WriteFile(file, c.harm(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		at := id
		if c.name == "of another layer" {
			at = "sha256:" + strings.Repeat("0", 64)
			if err := os.Rename(file, filepath.Join(filepath.Dir(file), strings.Replace(at, ":", "-", 1)+".erofs")); err != nil {
				t.Fatal(err)
			}
		}
		_, quick := s.Inspect(at)
		_, done, used := s.Use(at)
		if used == nil {
			done()
		}
		if c.atOnce && !(fault.Is(quick, fault.Unknown) && fault.Is(used, fault.Unknown)) || !c.atOnce && quick != nil {
			t.Errorf("%s: quickly: %v, used: %v", c.name, quick, used)
		}
		err := s.Verify(context.Background(), at, pace)
		if (c.name == "nothing") != (err == nil) || err != nil && (!fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), at)) {
			t.Errorf("%s: verified: %v", c.name, err)
		}
		if !c.atOnce {
			if err := s.Remove(at); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := s.Inspect("sha256:none"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	// Made again, it is as it was before.
	if _, err := s.Unpack(context.Background(), id, layer.Blob{}, bytes.NewReader(some)); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(context.Background(), id, pace); err != nil {
		t.Error(err)
	}
	stop := errors.New("enough")
	if err := s.Verify(context.Background(), id, func(context.Context, int) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

// A layer whose checksum is of two CRC-32, as an earlier davitd wrote it, is as
// good as others, and damage of it is found.
func TestLayerOfTwoCRC32(t *testing.T) {
	erofs(t)
	stream := layertest.Tar(
		layertest.Entry{Name: "etc/"}, layertest.Entry{Name: "etc/hosts", Content: "127.0.0.1 localhost\n"},
		layertest.Entry{Name: "data", Content: strings.Repeat("as it was before\n", 1<<16)}, layertest.Entry{Name: "link", Hard: "etc/hosts"},
	)
	id := digest.FromBytes(stream).String()
	packed, err := os.Open("testdata/crc-mib.erofs.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	image, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, _, _ := open(t, dir, layer.EROFS, 1<<30)
	file := filepath.Join(dir, "layers", strings.Replace(id, ":", "-", 1)+".erofs")
	for _, at := range []int{-1, 9000, 1<<20 + 5000} { // in one chunk, in another
		harmed := bytes.Clone(image)
		if at >= 0 {
			harmed[at] ^= 4
		}
		if err := os.WriteFile(file, harmed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Inspect(id); err != nil {
			t.Errorf("%d: %v", at, err)
		}
		err := s.Verify(context.Background(), id, pace)
		if at < 0 && err != nil || at >= 0 && (!fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "checksum crc-mib:")) {
			t.Errorf("%d: %v", at, err)
		}
		var got bytes.Buffer
		if _, err := s.Stream(context.Background(), id, &got); at < 0 && (err != nil || !bytes.Equal(got.Bytes(), stream)) {
			t.Errorf("%d bytes of %d: %v", got.Len(), len(stream), err)
		}
	}
}

// The stream that a layer was made of can be had again, bit for bit.
func TestStream(t *testing.T) {
	erofs(t)
	s, id, file := fill(t, t.TempDir())
	var got bytes.Buffer
	if native, err := s.Stream(context.Background(), id, &got); err != nil || native || !bytes.Equal(got.Bytes(), some) {
		t.Errorf("%d bytes of %d, native: %v, %v", got.Len(), len(some), native, err)
	}
	// A wrong byte is never passed on as right.
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte("content content"))
	if _, err := f.WriteAt([]byte("C"), int64(at)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stream(context.Background(), id, io.Discard); !fault.Is(err, fault.Unknown) {
		t.Error(err)
	}
	if _, err := s.Stream(context.Background(), "sha256:none", io.Discard); err == nil {
		t.Error("a stream of nothing")
	}
	d, _, _ := open(t, t.TempDir(), layer.Directories, 1<<30)
	if _, err := d.Unpack(context.Background(), id, layer.Blob{}, bytes.NewReader(some)); err != nil {
		t.Fatal(err)
	}
	got.Reset()
	if native, err := d.Stream(context.Background(), id, &got); err != nil || native || !bytes.Equal(got.Bytes(), some) {
		t.Errorf("%d bytes of %d, native: %v, %v", got.Len(), len(some), native, err)
	}
}

func mounts(t *testing.T, dir string) (n int) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(data), " "+dir+"/state/")
}

// A layer is mounted once, stays mounted while somebody is about to stack it,
// and for a while; another process finds it mounted.
func TestMountedOnce(t *testing.T) {
	erofs(t)
	dir := t.TempDir()
	s, id, _ := fill(t, dir)
	first, doneFirst, err := s.Use(id)
	if err != nil {
		t.Fatal(err)
	}
	second, doneSecond, err := s.Use(id)
	if err != nil || first != second || mounts(t, dir) != 1 {
		t.Errorf("%s, %s, %v, %d mounts", first, second, err, mounts(t, dir))
	}
	no := func(string) bool { return false }
	sweep := func(idle time.Duration, keep func(string) bool, want int) {
		t.Helper()
		if err := s.Sweep(idle, keep); err != nil || mounts(t, dir) != want {
			t.Errorf("%v, %d mounts, not %d", err, mounts(t, dir), want)
		}
	}
	doneFirst()
	doneFirst() // once is enough
	sweep(0, no, 1)
	doneSecond()
	sweep(time.Hour, no, 1)
	sweep(0, func(got string) bool { return got == id }, 1)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s, _, _ = open(t, dir, layer.Auto, 1<<30)
	again, done, err := s.Use(id)
	if err != nil || again != first || mounts(t, dir) != 1 {
		t.Errorf("%s, %v, %d mounts", again, err, mounts(t, dir))
	}
	done()
	sweep(0, no, 0)
}

// A layer that is removed, or made again, while it is stacked stays for those.
func TestRemovedWhileUsed(t *testing.T) {
	erofs(t)
	dir := t.TempDir()
	s, id, _ := fill(t, dir)
	path, done, err := s.Use(id)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(path, "d/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	removed := make(chan error)
	go func() { removed <- s.Remove(id) }()
	select {
	case err := <-removed:
		t.Errorf("it did not wait for who stacks: %v", err)
	case <-time.After(50 * time.Millisecond): // it waits
	}
	done()
	if err := <-removed; err != nil || mounts(t, dir) != 0 {
		t.Errorf("%v, %d mounts", err, mounts(t, dir))
	}
	if data, err := io.ReadAll(f); err != nil || !strings.HasPrefix(string(data), "content") {
		t.Errorf("%.10q %v", data, err)
	}
	if _, err := s.Unpack(context.Background(), id, layer.Blob{}, bytes.NewReader(some)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		path, done, err := s.Use(id)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(path, "l")); err != nil || len(data) != 40000 {
			t.Errorf("%d bytes %v", len(data), err)
		}
		done()
		// Made again, it is the new one that is mounted.
		if _, err := s.Unpack(context.Background(), id, layer.Blob{}, bytes.NewReader(some)); err != nil || mounts(t, dir) != 0 {
			t.Errorf("%v, %d mounts", err, mounts(t, dir))
		}
	}
}

// What was made as one kind is used while new layers are of the other, and
// goes by the same call. Files that cannot be mounted are not there.
func TestBothKinds(t *testing.T) {
	erofs(t)
	dir := t.TempDir()
	s, id, _ := fill(t, dir)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s, _, _ = open(t, dir, layer.Directories, 1<<30)
	upper := layertest.Tar(layertest.Entry{Name: "d/x", Content: "x"})
	upperID := digest.FromBytes(upper).String()
	if _, err := s.Unpack(context.Background(), upperID, layer.Blob{}, bytes.NewReader(upper)); err != nil {
		t.Fatal(err)
	}
	info, made, err := s.Mend(context.Background(), "mend:1", []layer.Part{{ID: upperID, Implicit: []string{".", "d"}}, {ID: id, Implicit: []string{"."}}})
	if err != nil || !made || info.Inodes == 0 {
		t.Errorf("%+v %v %v", info, made, err)
	}
	ids := []string{"mend:1", upperID, id}
	if err := s.Sync(ids); err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		if info, err := s.Inspect(id); err != nil || info == nil || info.Bytes == 0 {
			t.Errorf("%s: %+v %v", id, info, err)
		}
		path, done, err := s.Use(id)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(path, "d")); err != nil || (id != upperID) != (st.Mode().Perm() == 0o750) {
			t.Errorf("%s: %v %v", id, st, err)
		}
		done()
	}
	bytes, inodes, err := s.SizeOnDisk()
	if err != nil || bytes < 40000 || inodes < 5 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
	layer.WithoutMounts(s)
	if _, err := s.Inspect(id); !fault.Is(err, fault.Precondition) {
		t.Error(err)
	}
	for _, id := range ids {
		if err := s.Remove(id); err != nil {
			t.Error(err)
		}
	}
	if ids, err := s.IDs(); err != nil || len(ids) > 0 {
		t.Errorf("%v %v", ids, err)
	}
}

// A full disk, wherever in the file it comes, leaves nothing.
func TestDiskFullOfFiles(t *testing.T) {
	erofs(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, _, left := open(t, dir, layer.EROFS, 1<<30)
	big := layertest.Tar(layertest.Entry{Name: "a", Content: "x"}, layertest.Entry{Name: "b", Content: strings.Repeat("y", 8<<20)})
	for _, stream := range [][]byte{big} {
		if _, err := s.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(stream)); !fault.Is(err, fault.Exhausted) {
			t.Errorf("kind %v: %v", fault.KindOf(err), err)
		}
	}
	ids, err := s.IDs()
	if l := left(); len(l)+len(ids) > 0 || err != nil {
		t.Errorf("left %v %v %v", l, ids, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks-st.Bfree > 16 {
		t.Errorf("%d blocks are in use, %v", st.Blocks-st.Bfree, err)
	}
}

// foreignImage is what Debian's mkfs.erofs makes of a file f with that content.
func foreignImage(t *testing.T, content string, options ...string) []byte {
	t.Helper()
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "f"), []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mkfs.erofs", append(options, file, from)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs (Debian: erofs-utils): %v\n%s", err, out)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// What is compressed or in chunks is taken where the kernel mounts it. On a
// kernel that does not, it is refused, and one that is there is found out.
func TestAdoptCompressed(t *testing.T) {
	erofs(t)
	s, _, left := open(t, t.TempDir(), layer.EROFS, 1<<30)
	content := strings.Repeat("some text ", 50000)
	for _, options := range [][]string{
		{"-zlz4"}, {"-zlz4hc", "-C65536", "-Eztailpacking"}, {"-zlz4", "-Elegacy-compress"}, {"--chunksize=4096"},
	} {
		image := foreignImage(t, content, options...)
		id := digest.FromBytes(image).String()
		if _, err := s.Adopt(context.Background(), id, layer.Blob{}, bytes.NewReader(image)); err != nil {
			t.Fatalf("%v: %v", options, err)
		}
		path, done, err := s.Use(id)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(data) != content {
			t.Errorf("%v: %d bytes: %v", options, len(data), err)
		}
		done()
		if err := s.Sweep(0, func(string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Inspect(id); err != nil {
			t.Errorf("%v: %v", options, err)
		}
	}
	image := foreignImage(t, content, "-zlz4hc", "-C65536")
	const super = 1024
	image[super+8] &^= 1    // no checksum
	image[super+85] |= 0x80 // an algorithm that no kernel has
	_, err := s.Adopt(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(image))
	if !fault.Is(err, fault.Unimplemented) || !strings.Contains(err.Error(), "does not mount") || !strings.Contains(err.Error(), "lz4") {
		t.Errorf("an image that needs more: %v", err)
	}
	planted := bytes.Clone(image)
	image[super+80] |= 0x80 // 48bit
	_, err = s.Adopt(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(image))
	if !fault.Is(err, fault.Unimplemented) || !strings.Contains(err.Error(), "cannot be checked: 48bit") {
		t.Errorf("an image that cannot be checked: %v", err)
	}
	if err := layer.Plant(s, "sha256:1", planted); err != nil { // under another kernel, as it were
		t.Fatal(err)
	}
	if _, err := s.Inspect("sha256:1"); !fault.Is(err, fault.Precondition) {
		t.Errorf("an image that this kernel does not mount: %v", err)
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left %v", l)
	}
}

// Images that come as such are taken as they are, if they are sound.
func TestAdopt(t *testing.T) {
	erofs(t)
	image := foreignImage(t, "content")
	id := digest.FromBytes(image).String()
	s, _, left := open(t, t.TempDir(), layer.EROFS, 1<<30)
	if _, err := s.Adopt(context.Background(), id, layer.Blob{}, bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	path, done, err := s.Use(id)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if data, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(data) != "content" {
		t.Errorf("%q %v", data, err)
	}
	var got bytes.Buffer
	if native, err := s.Stream(context.Background(), id, &got); err != nil || !native || !bytes.Equal(got.Bytes(), image) {
		t.Errorf("%d bytes, native: %v, %v", got.Len(), native, err)
	}
	if err := s.Verify(context.Background(), id, pace); err != nil {
		t.Error(err)
	}
	trouble := fault.New(fault.Denied, "", "the stream's own error")
	for name, stream := range map[string]io.Reader{
		"nothing": strings.NewReader(""), "no image": strings.NewReader(strings.Repeat("no", 9000)), "cut": bytes.NewReader(image[:2000]),
		"an error": io.MultiReader(bytes.NewReader(image), failing{trouble}),
	} {
		_, err := s.Adopt(context.Background(), "sha256:1", layer.Blob{}, stream)
		if want := map[bool]fault.Kind{true: fault.Denied, false: fault.Unknown}[name == "an error"]; !fault.Is(err, want) {
			t.Errorf("%s: kind %v: %v", name, fault.KindOf(err), err)
		}
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left %v", l)
	}
	layer.WithoutMounts(s)
	if _, err := s.Adopt(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(image)); !fault.Is(err, fault.Unimplemented) {
		t.Error(err)
	}
}
