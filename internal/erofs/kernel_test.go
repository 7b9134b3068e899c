package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/layer/layertest"
	"github.com/davit-runtime/davit/internal/testkit"
)

// The sizes at which content is kept in another way.
var sizes = []int{0, 1, 2000, 4031, 4032, 4033, 4095, 4096, 4097, 8127, 8128, 8129, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 4000}

// plant fills a directory with every kind of file there is.
func plant(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for i, size := range sizes {
		must(os.WriteFile(at(fmt.Sprintf("size-%d", size)), pattern(size, i), 0o644))
	}
	twin := pattern(sizes[len(sizes)-1], len(sizes)-1) // of the last of them
	must(os.WriteFile(at("twin"), twin, 0o600))
	must(os.WriteFile(at("twin-with-another-end"), append(twin, 1), 0o640))
	twin[3<<20] ^= 1
	must(os.WriteFile(at("twin-no-more"), twin, 0o644))
	must(os.Mkdir(at("many"), 0o755))
	for i := range 300 {
		must(os.WriteFile(at(fmt.Sprintf("many/%s%d", strings.Repeat("n", i%240), i)), pattern(i*7%3000, i), 0o600))
	}
	for _, name := range []string{"!", "+", "-", ".a", "..b", "...", "a b", "new\nline", "\xff\xfe", strings.Repeat("x", 255)} {
		must(os.WriteFile(at("many/"+name), []byte(name), 0o644))
	}
	deep := dir
	for range 60 {
		deep = filepath.Join(deep, strings.Repeat("d", 40))
	}
	must(os.MkdirAll(deep, 0o755))
	for _, n := range []int{1, 100, 4000, 4031, 4032, 4033, 4095} {
		must(os.Symlink(strings.Repeat("l", n), at(fmt.Sprintf("link-%d", n))))
	}
	must(os.Lchown(at("link-100"), 7, 8))
	must(os.Link(at("size-2000"), at("many/hard")))
	must(os.Link(at("size-2000"), at("zhard")))
	must(os.Link(at("size-5246880"), at("hard-big")))
	must(os.Link(at("link-100"), at("hard-link")))
	must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("large-number"), unix.S_IFBLK|0o600, int(unix.Mkdev(4095, 1<<20-1))))
	must(unix.Mkfifo(at("fifo"), 0o640))
	must(os.Chown(at("fifo"), 65536, 1<<32-2))
	must(os.Chmod(at("size-1"), 0o644|os.ModeSetuid))
	must(os.Chmod(at("many"), 0o1777))
	must(unix.Chmod(at("many"), 0o3775))
	for name, value := range map[string]string{
		"user.small": "v", "user.empty": "", "trusted.x": strings.Repeat("t", 900), "security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"user.large": strings.Repeat("u", 1500),
		"system.posix_acl_access": "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
			"\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff",
	} {
		must(unix.Lsetxattr(at("size-4097"), name, []byte(value), 0))
	}
	must(unix.Lsetxattr(at("size-4031"), "user.large", []byte(strings.Repeat("u", 1500)), 0)) // the same
	must(unix.Lsetxattr(at("link-4000"), "trusted.of-a-link", []byte("v"), 0))
	must(unix.Lsetxattr(at("many"), "user.of-a-directory", []byte("v"), 0))
	must(unix.Lsetxattr(deep, "system.posix_acl_default", []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"), 0))
	for name, when := range map[string]time.Time{
		"size-0": time.Unix(0, 0), "size-1": time.Unix(-1000000000, 500), "size-2000": time.Unix(1, 999999999), "size-4096": time.Unix(1<<33, 7), "many": time.Unix(5, 5),
	} {
		must(os.Chtimes(at(name), when, when))
	}
	sparse, err := os.Create(at("sparse"))
	must(err)
	for _, piece := range []int64{4096, 1<<20 - 100, 3<<20 + 1, 9 << 20} {
		_, err = sparse.WriteAt(pattern(10000, int(piece)), piece)
		must(err)
	}
	must(sparse.Truncate(20<<20 + 123))
	must(sparse.Close())
}

// pattern returns bytes that are not the same anywhere.
func pattern(n, seed int) []byte {
	p := make([]byte, n)
	x := uint32(seed)*2654435761 + 12345
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

// What the kernel shows of an image is what GNU tar unpacks of the same stream,
// in each of its formats; fsck.erofs has nothing against it, and the stream can
// be had again.
func TestAsGNUTarUnpacks(t *testing.T) {
	testkit.Root(t)
	src := t.TempDir()
	plant(t, src)
	for _, c := range []struct {
		name    string
		options []string
	}{
		{"pax", []string{"--format=pax", "--xattrs", "--xattrs-include=*", "--acls"}},
		{"pax sparse 0.0", []string{"--format=pax", "--sparse", "--sparse-version=0.0", "--exclude=./many"}},
		{"pax sparse 0.1", []string{"--format=pax", "--sparse", "--sparse-version=0.1", "--exclude=./many"}},
		{"pax sparse 1.0", []string{"--format=pax", "--sparse", "--sparse-version=1.0", "--exclude=./many"}},
		{"gnu", []string{"--format=gnu", "--sparse"}},
		{"ustar", []string{"--format=ustar", "--exclude=./many", "--exclude=./ddd*", "--exclude=./link-*", "--exclude=hard-link", "--exclude=fifo", "--exclude=size-1", "--exclude=size-4096"}},
		{"v7", []string{"--format=v7", "--exclude=./many", "--exclude=./ddd*", "--exclude=./link-*", "--exclude=hard-link", "--exclude=fifo", "--exclude=size-1", "--exclude=null", "--exclude=large-number", "--exclude=size-4096"}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "tar")
			run(t, "tar", append(c.options, "--numeric-owner", "-C", src, "-cf", archive, ".")...)
			stream, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			unpacked := t.TempDir()
			run(t, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--same-owner", "-xpf", archive, "-C", unpacked)
			m := build(t, stream)
			same(t, "the image", describe(t, unpacked), checkImage(t, m), nil)
			var again bytes.Buffer
			if err := erofs.Rebuild(context.Background(), &m.recipe, m, &again); err != nil || !bytes.Equal(again.Bytes(), stream) {
				t.Errorf("the stream is not the same again: %v", err)
			}
			var st unix.Stat_t
			if err := unix.Stat(m.Name(), &st); err != nil || st.Blocks*512 > 30<<20 {
				t.Errorf("%d bytes on the disk: holes are no holes", st.Blocks*512)
			}
		})
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// From a loop device, as kernels before Linux 6.12 have it, it is the same.
func TestLoopDevice(t *testing.T) {
	testkit.Root(t)
	m := build(t, layertest.Tar(
		layertest.Entry{Name: "d/a", Content: "x", UID: 100000}, layertest.Entry{Name: "d/b", Content: strings.Repeat("y", 100000)},
		layertest.Entry{Name: "l", Link: "d/a"}, layertest.Entry{Name: ".wh.c"}, layertest.Entry{Name: "d/.wh..wh..opq"},
	))
	want := checkImage(t, m)
	loop := attach(t, m.File)
	defer loop.Close()
	same(t, "from a loop device", want, describe(t, mount(t, loop.Name())), nil)
}

// attach returns a loop device of a file, which goes with its last user.
func attach(t testing.TB, file *os.File) *os.File {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	for range 100 { // somebody else may be quicker
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return loop
		}
		_ = loop.Close()
	}
	t.Fatal("no loop device")
	return nil
}

// Hard links to what was written long ago, to each kind of file, to what is
// gone since.
func TestHardLinks(t *testing.T) {
	testkit.Root(t)
	entries := []layertest.Entry{
		{Name: "first", Content: "1"}, {Name: "gone", Content: "2"}, {Name: "link", Link: "nowhere"}, {Name: "dir/in", Content: "3"}, {Name: "dir/keep", Content: "4"},
		{Name: "dev", Type: '3', Major: 1, Minor: 3}, {Name: ".wh.white"},
	}
	for i := range 21 {
		entries = append(entries, layertest.Entry{Name: fmt.Sprintf("big%d", i), Content: string(pattern(1<<20-1000*i, i))})
	}
	entries = append(entries,
		layertest.Entry{Name: "first2", Hard: "first"}, layertest.Entry{Name: "first3", Hard: "/first2"},
		layertest.Entry{Name: "gone2", Hard: "gone"}, layertest.Entry{Name: "gone", Content: "other"},
		layertest.Entry{Name: "link2", Hard: "link"}, layertest.Entry{Name: "dev2", Hard: "dev"}, layertest.Entry{Name: "white2", Hard: "white"},
		layertest.Entry{Name: "out", Hard: "dir/in"}, layertest.Entry{Name: "out2", Hard: "dir/keep"}, layertest.Entry{Name: "dir", Content: "now a file"},
		layertest.Entry{Name: "big0-too", Hard: "big0"}, layertest.Entry{Name: "big20-too", Hard: "big20"}, layertest.Entry{Name: "big20-three", Hard: "big20"},
	)
	stream := layertest.Tar(entries...)
	m := build(t, stream)
	got := checkImage(t, m)
	for name, links := range map[string]int{
		"first": 3, "first3": 3, "gone": 1, "gone2": 1, "link": 2, "dev2": 2, "white": 2, "out": 1, "dir": 1, "big0": 2, "big20": 3, "big1": 1,
	} {
		if !strings.Contains(got[name], fmt.Sprintf(" links %d ", links)) {
			t.Errorf("%s has not %d links: %s", name, links, got[name])
		}
	}
	sum, err := erofs.Sum(context.Background(), m, m.Bytes)
	if err != nil || sum != m.Sum {
		t.Errorf("%s, not %s: %v", sum, m.Sum, err)
	}
	other := build(t, stream)
	if a, b := content(t, m), content(t, other); !bytes.Equal(a, b) {
		t.Error("a second time it is another image")
	}
	if err := os.WriteFile(other.Name(), slices.Concat(content(t, m)[:1<<20], []byte{1}, content(t, m)[1<<20+1:]), 0o600); err != nil {
		t.Fatal(err)
	}
	if sum, err := erofs.Sum(context.Background(), other, m.Bytes); err != nil || sum == m.Sum {
		t.Errorf("damage has the same sum: %v", err)
	}
}

func content(t testing.TB, m *made) []byte {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(m, 0, m.Bytes))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
