package erofs_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
)

// mount mounts an image from its file, or as older kernels need it, and returns
// where.
func mount(t testing.TB, file string) string {
	t.Helper()
	target := t.TempDir()
	err := unix.Mount(file, target, "erofs", unix.MS_RDONLY, "")
	if errors.Is(err, unix.ENOTBLK) {
		f, openErr := os.Open(file)
		if openErr != nil {
			t.Fatal(openErr)
		}
		defer f.Close()
		loop := attach(t, f)
		defer loop.Close()
		err = unix.Mount(loop.Name(), target, "erofs", unix.MS_RDONLY, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

// What a file shows, in one line each, of what the kernel shows of a tree.
// first has the names of inodes with several.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	lines := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		target, content := "", ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", sha256.Sum256(data))[:16]
		}
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size, st.Nlink = 0, 0 // each file system has its own idea
		}
		same := ""
		if st.Nlink > 1 {
			if same = first[st.Ino]; same == "" {
				first[st.Ino] = name
			}
		}
		lines[name] = line(st.Mode, st.Uid, st.Gid, uint32(st.Nlink), uint64(st.Rdev), size, st.Mtim.Sec, st.Mtim.Nsec, xattrs(t, path), target) + " " + content + " " + same
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func line(mode, uid, gid, links uint32, rdev uint64, size, sec, nsec int64, attrs map[string]string, target string) string {
	var list []string
	for name, value := range attrs {
		list = append(list, fmt.Sprintf("%s=%x", name, value))
	}
	slices.Sort(list)
	return fmt.Sprintf("%06o %d:%d links %d dev %d,%d size %d @%d.%09d %s → %s", mode, uid, gid, links, unix.Major(rdev), unix.Minor(rdev), size, sec, nsec, strings.Join(list, " "), target)
}

// walked is describe for an image that is not mounted, without content.
func walked(t testing.TB, i *erofs.Image) map[string]string {
	t.Helper()
	lines := map[string]string{}
	first := map[uint64]string{}
	err := i.Walk(context.Background(), func(e erofs.Entry) error {
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.Size, e.Links = 0, 0
		}
		same := ""
		if e.Links > 1 {
			if same = first[e.Inode]; same == "" {
				first[e.Inode] = e.Name
			}
		}
		rdev := unix.Mkdev(e.Rdev>>8&0xfff, e.Rdev&0xff|e.Rdev>>12&^0xff)
		lines[e.Name] = line(e.Mode, e.UID, e.GID, e.Links, rdev, e.Size, e.Time.Unix(), int64(e.Time.Nanosecond()), e.Xattrs, e.Target) + "  " + same
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrs(t testing.TB, path string) map[string]string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		all[name] = string(value[:n])
	}
	return all
}

// same requires two descriptions to be equal, but for what but says.
func same(t testing.TB, what string, want, got map[string]string, but func(name, line string) string) {
	t.Helper()
	if but == nil {
		but = func(_, line string) string { return line }
	}
	names := map[string]bool{}
	for name := range want {
		names[name] = true
	}
	for name := range got {
		names[name] = true
	}
	wrong := 0
	for name := range names {
		w, g := but(name, want[name]), but(name, got[name])
		if w == g {
			continue
		}
		if wrong++; wrong <= 5 {
			t.Errorf("%s: %.80s:\n\t%s\nis not\n\t%s", what, name, g, w)
		}
	}
	if wrong > 5 {
		t.Errorf("%s: and %d more", what, wrong-5)
	}
}

// checkImage requires an image to be sound and what the kernel shows of it to
// be what Walk says. It returns that.
func checkImage(t testing.TB, m *made) map[string]string {
	t.Helper()
	info, err := m.Stat()
	if err != nil || info.Size() != m.Bytes {
		t.Errorf("%d bytes, not %d: %v", info.Size(), m.Bytes, err)
	}
	i, err := erofs.Open(m, m.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Check(context.Background()); err != nil {
		t.Error(err)
	}
	if i.Incompat() != 0 || i.Size() != m.Bytes {
		t.Errorf("features %#x, %d bytes", i.Incompat(), i.Size())
	}
	fsck(t, m.Name())
	shown := describe(t, mount(t, m.Name()))
	same(t, "what Walk says", shown, walked(t, i), func(name, line string) string {
		if at := strings.LastIndexByte(line, ' '); at > 0 { // no content
			line = line[:strings.LastIndexByte(line[:at], ' ')] + line[at:]
		}
		return line
	})
	inodes := map[uint64]bool{}
	for name := range shown {
		e, err := i.Finder().Stat(name)
		if err != nil || e.Name != name {
			t.Errorf("Stat of %q: %+v %v", name, e, err)
		}
		inodes[e.Inode] = true
	}
	if uint64(len(inodes)) != m.Inodes {
		t.Errorf("%d inodes, not %d", m.Inodes, len(inodes))
	}
	return shown
}

// isDisk reports whether an error is one of the file system's.
func isDisk(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}
