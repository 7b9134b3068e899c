package tape_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/davit-runtime/davit/internal/tape"
)

// A reader is one of tape's, or of archive/tar's.
type reader interface {
	io.Reader
	Next() (*tar.Header, error)
}

// tell lists what a reader finds in an archive: of the content of each entry
// some is left unread, by turns. Last is what of the stream was not read.
func tell(stream io.Reader, open func(io.Reader) reader, skip int) (told []string) {
	r := open(stream)
	for i := 0; ; i++ {
		h, err := r.Next()
		if err != nil {
			told = append(told, fmt.Sprint("next: ", err))
			_, again := r.Next()
			told = append(told, fmt.Sprint("again: ", again))
			break
		}
		told = append(told, fmt.Sprintf("%q to %q, type %q, %d bytes, mode %o, %d:%d, at %v, %d:%d, %v", h.Name, h.Linkname, h.Typeflag, h.Size, h.Mode,
			h.Uid, h.Gid, h.ModTime, h.Devmajor, h.Devminor, h.PAXRecords))
		if (i+skip)%3 == 0 {
			continue
		}
		var content bytes.Buffer
		limit := int64(1 << 16) // a sparse file can be of any size
		if (i+skip)%3 == 1 {
			limit = 700
		}
		_, err = io.CopyBuffer(&content, struct{ io.Reader }{io.LimitReader(r, limit)}, make([]byte, 300))
		told = append(told, fmt.Sprintf("content %d, %x: %v", content.Len(), crc32.ChecksumIEEE(content.Bytes()), err))
	}
	rest, err := io.ReadAll(stream)
	return append(told, fmt.Sprintf("rest %d: %v", len(rest), err))
}

// compare reports where tape does not find what archive/tar does.
func compare(t *testing.T, archive []byte) {
	t.Helper()
	for skip := range 3 {
		want := tell(bytes.NewReader(archive), func(r io.Reader) reader { return tar.NewReader(struct{ io.Reader }{r}) }, skip)
		for name, stream := range map[string]io.Reader{"": bytes.NewReader(archive), "in halves: ": iotest.HalfReader(bytes.NewReader(archive))} {
			got := tell(stream, func(r io.Reader) reader { return tape.NewReader(r) }, skip)
			if !slices.Equal(got, want) {
				t.Errorf("%s\n got %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
		}
	}
}

// samples are archives in all formats, by Go and by GNU tar.
func samples(t testing.TB) (list [][]byte) {
	t.Helper()
	long := strings.Repeat("long/", 18)
	headers := []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1755},
		{Name: "d/f", Typeflag: tar.TypeReg, Size: 600, Mode: 0o644, Uid: 1, Gid: 2, ModTime: time.Unix(1e9, 0), Uname: "u", Gname: "g"},
		{Name: "empty", Typeflag: tar.TypeReg}, {Name: "block", Typeflag: tar.TypeReg, Size: 512}, {Name: "more", Typeflag: tar.TypeReg, Size: 1025},
		{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d/f"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f"},
		{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "p", Typeflag: tar.TypeFifo},
		{Name: long + long, Typeflag: tar.TypeReg, Size: 5}, {Name: long + long + long, Typeflag: tar.TypeSymlink, Linkname: long + long},
		{Name: "ümlaut", Typeflag: tar.TypeReg, Size: 1, Uid: 1 << 22, ModTime: time.Unix(1, 5)}, {Name: "old", Typeflag: tar.TypeReg, ModTime: time.Unix(-5, 0)},
	}
	for _, format := range []tar.Format{tar.FormatUnknown, tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i, h := range headers {
			if format == tar.FormatPAX && i%4 == 3 {
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}); err != nil {
					t.Fatal(err)
				}
			}
			h.Format = format
			if w.WriteHeader(&h) != nil {
				continue // the format has no such header
			}
			if _, err := w.Write(bytes.Repeat([]byte{byte(i + 1)}, int(h.Size))); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		list = append(list, b.Bytes())
	}
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "a"), []byte("content"), 0o600), os.Symlink("a", filepath.Join(dir, "l")),
		os.WriteFile(filepath.Join(dir, "s"), nil, 0o600), os.Truncate(filepath.Join(dir, "s"), 9_000), os.WriteFile(filepath.Join(dir, "z"), []byte("end"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{"--format=v7", "--format=oldgnu", "--format=ustar", "--format=pax", "--format=gnu --sparse", "--format=pax --sparse"} {
		out, err := exec.Command("tar", append(strings.Fields(options), "-C", dir, "-b1", "-c", ".")...).Output()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, out)
	}
	return list
}

// What archive/tar finds in an archive is found here, also where it is cut off,
// and when a byte of it is another.
func TestAsArchiveTar(t *testing.T) {
	for _, archive := range samples(t) {
		compare(t, archive)
		compare(t, append(slices.Clone(archive), "and more"...))
		for n := 0; n < len(archive); n += 512 {
			compare(t, archive[:n])
			compare(t, archive[:n+1])
		}
		for i := 0; i < min(len(archive), 4096); i += 61 {
			other := slices.Clone(archive)
			other[i] ^= 1 << (i % 8)
			compare(t, other)
			compare(t, summed(other))
		}
		star := slices.Clone(archive)
		copy(star[476:512], "x")
		copy(star[508:512], "tar\x00")
		compare(t, summed(star))
		for _, field := range []int{0, 100, 124, 136, 156, 157, 329, 345, 357, 508} {
			for _, text := range []string{"prefix", " 12", "7777777777777", "12 \x003", "\x80\x00\x00\x00\x00\x00\x00\x01", "\xff", "tar\x00"} {
				other := slices.Clone(archive)
				copy(other[field:512], text)
				compare(t, summed(other))
			}
		}
	}
}

// summed gives each block that could be a header the right checksum.
func summed(archive []byte) []byte {
	archive = slices.Clone(archive)
	for b := archive; len(b) >= 512; b = b[512:] {
		if string(b[257:262]) != "ustar" {
			continue
		}
		copy(b[148:156], "        ")
		n := 0
		for _, c := range b[:512] {
			n += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", n))
	}
	return archive
}

// An error of the stream is told as it is, and again.
func TestStreamError(t *testing.T) {
	archive := samples(t)[0]
	broken := errors.New("broken")
	for _, n := range []int{0, 100, 512, 900, 1024, 1200, 1800} {
		stream := io.MultiReader(bytes.NewReader(archive[:n]), iotest.ErrReader(broken))
		r := tape.NewReader(stream)
		var err error
		for err == nil {
			if _, err = r.Next(); err == nil {
				_, err = io.Copy(io.Discard, r)
			}
		}
		if _, again := r.Next(); !errors.Is(err, broken) || !errors.Is(again, broken) {
			t.Errorf("after %d bytes: %v, then %v", n, err, again)
		}
	}
}

func FuzzAsArchiveTar(f *testing.F) {
	for _, archive := range samples(f) {
		f.Add(archive)
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		compare(t, archive)
		compare(t, summed(archive))
	})
}
