package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/layertest"
	"github.com/davit-runtime/davit/internal/testkit"
)

// Images that another program made, of every kind that it can make.
func TestForeignImages(t *testing.T) {
	testkit.Root(t)
	src := t.TempDir()
	plantFew(t, src)
	want := describe(t, src)
	for _, c := range []struct {
		name     string
		options  []string
		incompat uint32
	}{
		{"plain", nil, 0},
		{"all attributes shared", []string{"-x1"}, 0},
		{"compact inodes", []string{"-Eforce-inode-compact"}, 0},
		{"chunks", []string{"--chunksize=4096"}, erofs.IncompatChunks},
		{"chunks with holes", []string{"--chunksize=65536", "-Eforce-chunk-indexes"}, erofs.IncompatChunks},
		{"lz4", []string{"-zlz4"}, erofs.IncompatZeroPadding},
		{"lz4hc, large clusters, packed", []string{"-zlz4hc", "-C65536", "-Eztailpacking,fragments"}, erofs.IncompatZeroPadding},
		{"old lz4", []string{"-zlz4", "-Elegacy-compress"}, 0},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image")
			run(t, "mkfs.erofs", append(c.options, "--quiet", file, src)...)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			i, err := erofs.Open(f, info.Size())
			if err != nil {
				t.Fatal(err)
			}
			if err := i.Check(context.Background()); err != nil {
				t.Error(err)
			}
			if i.Incompat()&c.incompat != c.incompat || c.incompat == 0 && i.Incompat() != 0 {
				t.Errorf("features %#x", i.Incompat())
			}
			compact := strings.HasPrefix(c.name, "compact")
			same(t, "the image", want, walked(t, i), func(name, line string) string {
				line, _, _ = strings.Cut(line, " → ")
				if compact { // these have no room for times
					before, after, _ := strings.Cut(line, " @")
					_, after, _ = strings.Cut(after, " ")
					line = before + after
				}
				return line
			})
		})
	}
}

func plantFew(t *testing.T, dir string) {
	t.Helper()
	for i, size := range sizes[:12] {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("size-%d", size)), pattern(size, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "zeros"), make([]byte, 1<<20+5), 0o600); err != nil {
		t.Fatal(err)
	}
	many := filepath.Join(dir, "many")
	if err := os.Mkdir(many, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(many, fmt.Sprintf("file-%d", i)), bytes.Repeat([]byte("text "), i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"user.a": "b", "trusted.c": strings.Repeat("d", 300)} {
		if err := unix.Lsetxattr(many, name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("many", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "size-1"), filepath.Join(dir, "hard")),
		unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Lchown(filepath.Join(dir, "link"), 5, 6)); err != nil {
		t.Fatal(err)
	}
}

// a small image, in memory, and where in it something is.
func small(t testing.TB, entries ...layertest.Entry) *buffer {
	t.Helper()
	b := &buffer{}
	if _, err := buildIn(b, bytes.NewReader(layertest.Tar(entries...)), 1<<30); err != nil {
		t.Fatal(err)
	}
	return b
}

func check(data []byte) error {
	i, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err
	}
	return i.Check(context.Background())
}

// Each change below makes of a good image one that must be refused.
func TestDamage(t *testing.T) {
	var dirs []layertest.Entry
	for _, name := range []string{"d1/", "d1/sub/", "d2/", "d2/sub/"} {
		dirs = append(dirs, layertest.Entry{Name: name})
	}
	good := small(t, append(dirs, layertest.Entry{Name: "d1/file", Content: strings.Repeat("x", 10000)}, layertest.Entry{Name: "link", Link: "target"},
		layertest.Entry{Name: "d2/.wh..wh..opq"}, layertest.Entry{Name: "d2/attr", Content: "a", Xattrs: map[string]string{"trusted.shorter.op": "y"}})...).data
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	at := func(name string) int { // of an inode
		i, err := erofs.Open(bytes.NewReader(good), int64(len(good)))
		if err != nil {
			t.Fatal(err)
		}
		e, err := i.Finder().Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return int(e.Inode) * 32
	}
	const root = 1024 + 128
	names := root + 64 // of the root: ".", "..", "d1", "d2", "link"
	for _, c := range []struct {
		name   string
		change func(p []byte) []byte
		text   string
	}{
		{"cut off", func(p []byte) []byte { return p[:len(p)-1] }, "cut off"},
		{"cut off early", func(p []byte) []byte { return p[:1100] }, "outside"},
		{"empty", func(p []byte) []byte { return nil }, "outside"},
		{"no magic", func(p []byte) []byte { p[1024]++; return p }, "no superblock"},
		{"large blocks", func(p []byte) []byte { p[1024+12] = 20; return p }, "blocks of"},
		{"more blocks", func(p []byte) []byte { le.PutUint32(p[1024+36:], 1<<31); return p }, "cut off"},
		{"the root is elsewhere", func(p []byte) []byte { le.PutUint16(p[1024+14:], uint16(at("link")/32)); return p }, "no directory"},
		{"an unknown feature", func(p []byte) []byte { p[1024+82] = 1; return p }, "features"},
		{"more devices", func(p []byte) []byte { p[1024+80], p[1024+86] = 8, 1; return p }, "devices"},
		{"a name that is another directory's", func(p []byte) []byte {
			copy(p[names+12*3:][:8], p[names+12*2:][:8])
			return p
		}, "several directories"},
		{"the root in itself", func(p []byte) []byte { le.PutUint64(p[names+12*2:], root/32); return p }, "several directories"},
		{"a directory of another parent", func(p []byte) []byte { le.PutUint64(p[at("d1")+64+12:], 7); return p }, "wrong"},
		{"a name of another type", func(p []byte) []byte { p[names+12*4+10] = 1; return p }, "another type"},
		{"names out of order", func(p []byte) []byte {
			name := bytes.Index(p[names:], []byte("d1d2"))
			p[names+name+1] = '3'
			return p
		}, "comes after"},
		{"a name with a slash", func(p []byte) []byte { p[bytes.Index(p, []byte("d1d2"))+1] = '/'; return p }, "has the name"},
		{"names outside", func(p []byte) []byte { le.PutUint16(p[names+12+8:], 5000); return p }, "outside"},
		{"no names", func(p []byte) []byte { le.PutUint16(p[names+8:], 0); return p }, "0 names"},
		{"a directory without its parent", func(p []byte) []byte {
			i := at("d1/sub") + 64
			le.PutUint16(p[i+8:], 12)
			p[i+12] = '.'
			clear(p[i+13 : i+27])
			return p
		}, "lacks"},
		{"an inode outside", func(p []byte) []byte { le.PutUint64(p[names+12*4:], 1<<40); return p }, "no inode"},
		{"an inode of no format", func(p []byte) []byte { p[at("link")] = 0xff; return p }, "format"},
		{"an inode of no type", func(p []byte) []byte { p[at("link")+5] = 0xf0; return p }, "unknown type"},
		{"a link without end", func(p []byte) []byte { le.PutUint64(p[at("link")+8:], 5000); return p }, "bytes"},
		{"a link across blocks", func(p []byte) []byte { le.PutUint64(p[at("link")+8:], 4090); return p }, "not in one block"},
		{"a file that is huge", func(p []byte) []byte { le.PutUint64(p[at("d1/file")+8:], 1<<50+10000); return p }, "outside"},
		{"a file of less than nothing", func(p []byte) []byte { p[at("d1/file")+15] = 0xff; return p }, "bytes"},
		{"a file elsewhere", func(p []byte) []byte { le.PutUint32(p[at("d1/file")+16:], 1<<30); return p }, "outside"},
		{"a directory that is huge", func(p []byte) []byte { le.PutUint64(p[at("d1")+8:], 1<<50); return p }, "used several times"},
		{"many attributes", func(p []byte) []byte { le.PutUint16(p[at("d2")+2:], 65535); return p }, "several times"},
		{"shared attributes elsewhere", func(p []byte) []byte { p[at("d2")+64+4] = 200; return p }, "shared"},
		{"an attribute of no prefix", func(p []byte) []byte { p[at("d2")+64+12+1] = 99; return p }, "prefix"},
		{"an attribute that is long", func(p []byte) []byte { p[at("d2")+64+12] = 250; return p }, "longer"},
		{"an attribute of overlayfs", func(p []byte) []byte {
			copy(p[bytes.Index(p, []byte("shorter.op")):], "overlay.op")
			return p
		}, "trusted.overlay"},
		{"an opaque file", func(p []byte) []byte { copy(p[bytes.Index(p, []byte("overlay.opaquey"))+14:], "z"); return p }, "trusted.overlay"},
	} {
		p := c.change(bytes.Clone(good))
		erofs.FixChecksum(p)
		kind := fault.Unknown
		if c.text == "features" {
			kind = fault.Unimplemented
		}
		if err := check(p); !fault.Is(err, kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	p := bytes.Clone(good)
	p[2000]++
	if err := check(p); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("without a checksum that fits: %v", err)
	}
	i, err := erofs.Open(failingAt{}, 1<<20)
	if i != nil || !isDisk(err) {
		t.Errorf("a disk that fails: %v", err)
	}
}

// Of a compressed file, how it is compressed and the size of its index.
func TestDamageOfCompressed(t *testing.T) {
	src, file := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(filepath.Join(src, "f"), bytes.Repeat([]byte("text "), 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.erofs", "-zlz4hc", "-C65536", "--quiet", file, src)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	i, err := erofs.Open(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	e, err := i.Finder().Stat("f")
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	inode := int(le.Uint32(good[1024+40:]))*4096 + int(e.Inode)*32 // behind meta_blkaddr
	head := inode + 32 + 32*int(good[inode]&1)
	for _, c := range []struct {
		name   string
		change func(p []byte)
		text   string
	}{
		{"nothing", func(p []byte) {}, ""},
		{"an unknown algorithm", func(p []byte) { p[head+6] = 4 }, "unknown algorithms"},
		{"a second unknown algorithm", func(p []byte) { p[head+6] = 0xf0 }, "unknown algorithms"},
		{"its end in no file", func(p []byte) { p[head+4] |= 0x20 }, "there is none"},
		{"all of it in no file", func(p []byte) { p[head+7] = 0x80 }, "outside of the packed file"},
		{"too large for its index", func(p []byte) { le.PutUint32(p[inode+8:], 1<<31) }, "is outside"},
		{"fragments in a directory", func(p []byte) { p[1024+80] |= 0x20; le.PutUint64(p[1024+96:], uint64(le.Uint16(p[1024+14:]))) }, "is no file"},
		{"fragments nowhere", func(p []byte) { p[1024+80] |= 0x20; le.PutUint64(p[1024+96:], 1<<40) }, "no inode"},
	} {
		p := bytes.Clone(good)
		c.change(p)
		erofs.FixChecksum(p)
		err := check(p)
		if c.text == "" && err != nil || c.text != "" && (!fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

type failingAt struct{}

func (failingAt) ReadAt([]byte, int64) (int, error) { return 0, unix.EIO }

func TestStat(t *testing.T) {
	b := small(t, layertest.Entry{Name: "d/e/f", Content: "x"}, layertest.Entry{Name: "l", Link: "d"})
	i, err := erofs.Open(b, int64(len(b.data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "d/none", "d/e/f/g", "l/e", "", "d/", "/d"} {
		if e, err := i.Finder().Stat(name); !fault.Is(err, fault.NotFound) {
			t.Errorf("%q: %+v %v", name, e, err)
		}
	}
	if e, err := i.Finder().Stat("l"); err != nil || e.Target != "d" || e.Mode != unix.S_IFLNK|0o777 {
		t.Errorf("%+v %v", e, err)
	}
}

func TestRebuildErrors(t *testing.T) {
	m := build(t, layertest.Tar(layertest.Entry{Name: "a", Content: strings.Repeat("x", 9000)}))
	recipe := m.recipe.Bytes()
	for n := range len(recipe) {
		if n == len(recipe)-1 || n > 100 && n%97 != 0 {
			continue
		}
		var out bytes.Buffer
		err := erofs.Rebuild(context.Background(), bytes.NewReader(recipe[:n]), m, &out)
		if err != nil && !fault.Is(err, fault.Unknown) || err == nil && n > 1 && out.Len() >= 9000 {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
	for _, c := range []string{"", "\x02", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x01\x00\x05\x01", "\x01\x00\xff\xff\xff\xff\x0f\x00", "\x01\x05ab"} {
		var out bytes.Buffer
		if err := erofs.Rebuild(context.Background(), strings.NewReader(c), m, &out); !fault.Is(err, fault.Unknown) {
			t.Errorf("%q: %v", c, err)
		}
	}
}
