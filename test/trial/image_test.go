package trial

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/layout"
)

// A sample is an image and what a container must see of it.
type sample struct {
	tag  string
	id   string
	want tree
}

// A tree says of each path all that a container can tell of it, in one line.
type tree map[string]string

// born is when the first of an image's files was last changed.
var born = time.Date(2023, 5, 4, 3, 2, 1, 0, time.UTC)

// A maker makes layers, and keeps count of what they come to.
type maker struct {
	*layout.TarWriter
	random *rand.Rand
	want   tree
	mix    string
}

// samples makes three images of some megabytes each; they have their two
// lowest layers in common, which are about half of each.
func samples(t testing.TB, dir layout.Dir, layerMB int) []sample {
	t.Helper()
	var made []sample
	var common []layout.Layer
	base := tree{}
	add := func(want tree, seed uint64, write func(*maker)) layout.Layer {
		l, err := dir.Layer(func(w *layout.TarWriter) error {
			write(&maker{TarWriter: w, random: rand.New(rand.NewPCG(seed, 1)), want: want, mix: fmt.Sprint(seed)})
			return nil
		}, "gzip", "zstd")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	common = append(common, add(base, 0, func(m *maker) { m.system(t) }), add(base, 1, func(m *maker) { m.files("common", layerMB) }))
	for i := range 3 {
		want := maps.Clone(base)
		layers := slices.Concat(common, []layout.Layer{
			add(want, uint64(10+i), func(m *maker) { m.files(fmt.Sprintf("own%d", i), layerMB) }),
			add(want, uint64(20+i), func(m *maker) { m.changes() }),
			add(want, uint64(30+i), func(m *maker) { m.files(fmt.Sprintf("more%d", i), layerMB/2) }),
		})
		tag := fmt.Sprint("sample", i)
		config := imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Author: tag}
		config.Config.Cmd = []string{"/bin/busybox", "sleep", "1000000"}
		id, err := dir.Image(tag, i%2, config, layers)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, sample{tag: tag, id: id.String(), want: want})
	}
	return made
}

// put writes one entry and notes what becomes of it.
func (m *maker) put(h *tar.Header, data []byte) {
	h.ModTime, h.Format = born.Add(time.Duration(len(h.Name))*time.Second), tar.FormatPAX
	h.Size = int64(len(data))
	if err := m.WriteHeader(h); err != nil {
		panic(err)
	}
	if _, err := m.Write(data); err != nil {
		panic(err)
	}
	at := "/" + strings.TrimSuffix(h.Name, "/")
	line := fmt.Sprintf("%c %04o %d:%d %d", kindOf(h.Typeflag), h.Mode, h.Uid, h.Gid, h.ModTime.Unix())
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		line += fmt.Sprintf(" %s=%q", strings.TrimPrefix(key, "SCHILY.xattr."), h.PAXRecords[key])
	}
	switch h.Typeflag {
	case tar.TypeReg:
		line += fmt.Sprintf(" %x", sha256.Sum256(data))
	case tar.TypeSymlink:
		line += " -> " + h.Linkname
	}
	m.want[at] = line
}

func kindOf(flag byte) byte {
	return map[byte]byte{tar.TypeReg: 'f', tar.TypeDir: 'd', tar.TypeSymlink: 'l', tar.TypeFifo: 'p', tar.TypeChar: 'c'}[flag]
}

func (m *maker) dir(name string, mode int64) {
	m.put(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (m *maker) file(name string, data []byte) {
	m.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uid: len(data) % 3 * 70000, Gid: 5}, data)
}

// system is what lets a container be made, and nothing that making one changes.
func (m *maker) system(t testing.TB) {
	for _, name := range []string{"bin", "dev", "etc", "proc", "sys", "run", "tmp", "data"} {
		m.dir(name, 0o755)
	}
	for _, name := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf"} {
		m.file(name, []byte("made for the trial\n"))
	}
	files, err := testkit.BusyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if path.Clean(f.Name) == "bin/busybox" {
			m.put(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, f.Data)
		}
	}
}

// files is a directory of all that a layer may have, mb megabytes of it.
func (m *maker) files(under string, mb int) {
	under = "data/" + under
	m.dir(under, 0o750)
	left := mb << 20
	for i := 0; left > 0; i++ {
		dir := fmt.Sprintf("%s/d%d", under, i%13)
		if i < 13 {
			m.dir(dir, 0o755-int64(i%2)*5)
		}
		size := m.random.IntN(40000)
		if i%29 == 28 {
			size = 1 << 20
		}
		left -= size + 2000
		m.file(fmt.Sprintf("%s/f%d", dir, i), m.bytes(size))
		if i%7 == 0 {
			m.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("%s/s%d", dir, i), Linkname: fmt.Sprintf("f%d", i), Mode: 0o777}, nil)
		}
		if i%11 == 0 {
			m.hardLink(fmt.Sprintf("%s/h%d", dir, i), fmt.Sprintf("%s/f%d", dir, i))
		}
	}
	m.put(&tar.Header{Typeflag: tar.TypeReg, Name: under + "/attributes", Mode: 0o4711, PAXRecords: map[string]string{
		"SCHILY.xattr.user.trial": "of " + m.mix, "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}}, m.bytes(5000))
	m.put(&tar.Header{Typeflag: tar.TypeFifo, Name: under + "/fifo", Mode: 0o600}, nil)
}

// bytes is data that can be compressed to a half or so.
func (m *maker) bytes(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(m.random.Uint32()) & 0x3f
		if i%5 == 0 {
			data[i] = 'x'
		}
	}
	return data
}

func (m *maker) hardLink(name, to string) {
	if err := m.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, ModTime: born, Mode: 0o644}); err != nil {
		panic(err)
	}
	m.want["/"+to] += " linked"
	m.want["/"+name] = m.want["/"+to]
}

// changes removes, replaces and hides what the common layer has, and adds to
// its directories without an entry for them.
func (m *maker) changes() {
	whiteout := func(name string) {
		if err := m.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: born, Mode: 0o644}); err != nil {
			panic(err)
		}
	}
	gone := func(prefix string) {
		for at := range m.want {
			if at == prefix || strings.HasPrefix(at, prefix+"/") {
				delete(m.want, at)
			}
		}
	}
	whiteout("data/common/.wh.d3")
	gone("/data/common/d3")
	whiteout("data/common/d4/.wh.f4")
	gone("/data/common/d4/f4")
	keep := m.want["/data/common/d5"]
	gone("/data/common/d5")
	m.want["/data/common/d5"] = keep
	m.dir("data/common/d5", 0o700)
	whiteout("data/common/d5/.wh..wh..opq")
	m.file("data/common/d5/only", m.bytes(100))
	m.file("data/common/d6/f6", m.bytes(10000))
	m.file("data/common/d6/new", m.bytes(3000))
	for _, at := range []string{"/data/common", "/data/common/d4", "/data/common/d6"} {
		m.want[at] = timeless(m.want[at])
	}
}

// timeless leaves out of a line when the file was changed: a directory that a
// layer has no entry for has no time of its own.
func timeless(line string) string {
	fields := strings.SplitN(line, " ", 5)
	if len(fields) > 3 {
		fields[3] = "*"
	}
	return strings.Join(fields, " ")
}

// diff compares two trees, and shows the first few differences.
func (want tree) diff(got tree) string {
	var lines []string
	for at := range want {
		if want[at] != got[at] && want[at] != timeless(got[at]) {
			lines = append(lines, fmt.Sprintf("%s: %s", at, cmp.Diff(want[at], got[at])))
		}
	}
	for at := range got {
		if _, ok := want[at]; !ok {
			lines = append(lines, fmt.Sprintf("%s should not be there: %s", at, got[at]))
		}
	}
	slices.Sort(lines)
	if len(lines) > 10 {
		lines = append(lines[:10], fmt.Sprintf("and %d more", len(lines)-10))
	}
	return strings.Join(lines, "\n")
}
