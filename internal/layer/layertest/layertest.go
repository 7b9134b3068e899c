// Package layertest is the contract of a layer store, as tests: what an image's
// layers have to look like once they are stacked, and what must never happen
// when they are unpacked. Each implementation of the store runs it.
//
// It needs root and a mount namespace of the test's own.
package layertest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
)

// Store is a layer store, as package image uses it.
type Store interface {
	Unpack(ctx context.Context, id string, blob layer.Blob, tar io.Reader) (layer.Info, error)
	Mend(ctx context.Context, id string, stack []layer.Part) (layer.Info, bool, error)
	Sync(ids []string) error
	Use(id string) (dir string, done func(), err error)
	Remove(id string) error
}

// An Opener opens an empty store. left returns what there is besides whole
// layers.
type Opener func(t *testing.T) (s Store, left func() []string)

// Run runs the suite. The caller has seen to root and the namespace.
func Run(t *testing.T, open Opener) {
	for _, c := range stacks {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s, left := open(t)
			checkStack(t, s, c)
			checkLeft(t, left)
		})
	}
	for _, c := range refused {
		t.Run("refused/"+strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s, left := open(t)
			checkRefused(t, s, c)
			checkLeft(t, left)
		})
	}
	t.Run("streams", func(t *testing.T) { checkStreams(t, open) })
	t.Run("remove", func(t *testing.T) { checkRemove(t, open) })
	t.Run("usage", func(t *testing.T) { checkUsage(t, open) })
}

func checkLeft(t *testing.T, left func() []string) {
	t.Helper()
	if l := left(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// Tar returns a tar stream of entries.
func Tar(entries ...Entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.header()
		if err := w.WriteHeader(h); err != nil {
			panic(fmt.Sprintf("%s: %v", h.Name, err))
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.Content); err != nil {
				panic(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// An Entry is one entry of a layer. A Name that ends in "/" is a directory.
type Entry struct {
	Name         string
	Content      string // of a file
	Link         string // target of a symbolic link
	Hard         string // target of a hard link
	Type         byte   // of a device or fifo
	Major, Minor int64
	Mode         int64 // 0644 or 0755 if zero
	UID, GID     int
	Xattrs       map[string]string
	Time         int64 // Unix
}

func (e Entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.Name, Typeflag: tar.TypeReg, Size: int64(len(e.Content)), Mode: e.Mode, Uid: e.UID, Gid: e.GID,
		ModTime: time.Unix(e.Time, 0), Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	for name, value := range e.Xattrs {
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	switch {
	case e.Link != "":
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.Link, 0
	case e.Hard != "":
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, e.Hard, 0
	case e.Type != 0:
		h.Typeflag, h.Devmajor, h.Devminor, h.Size = e.Type, e.Major, e.Minor, 0
	case strings.HasSuffix(e.Name, "/"):
		h.Typeflag, h.Size = tar.TypeDir, 0
		if h.Mode == 0 {
			h.Mode = 0o755
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	return h
}

// unpack unpacks layers, lowest first, mends, and returns what to stack,
// topmost first.
func unpack(t *testing.T, s Store, layers [][]byte) []string {
	t.Helper()
	ctx := context.Background()
	var stack []layer.Part
	for _, l := range layers {
		id := digest.FromBytes(l).String()
		info, err := s.Unpack(ctx, id, layer.Blob{}, bytes.NewReader(l))
		if err != nil {
			t.Fatal(err)
		}
		stack = slices.Insert(stack, 0, layer.Part{ID: id, Implicit: info.Implicit})
	}
	var ids []string
	_, made, err := s.Mend(ctx, "mend:1", stack)
	if err != nil {
		t.Fatal(err)
	}
	if made {
		ids = append(ids, "mend:1")
	}
	for _, part := range stack {
		ids = append(ids, part.ID)
	}
	if err := s.Sync(ids); err != nil {
		t.Fatal(err)
	}
	return ids
}

// merged mounts layers under overlayfs and calls f with the path.
func merged(t *testing.T, s Store, ids []string, f func(root string)) {
	t.Helper()
	empty, target := t.TempDir(), t.TempDir()
	var lowers []string
	for _, id := range ids {
		lower, done, err := s.Use(id)
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		lowers = append(lowers, lower)
	}
	options := "index=off,lowerdir=" + strings.Join(append(lowers, empty), ":")
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, options); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	}()
	f(target)
}

// describe returns one line for each file of a tree, in order.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no inode")
		}
		line := fmt.Sprintf("%s %s", name, describeOne(path, st))
		if st.Nlink > 1 && !e.IsDir() {
			if other, ok := first[st.Ino]; ok {
				line = name + " = " + other
			} else {
				first[st.Ino] = name
			}
		}
		if name != "." || st.Mode&0o7777 != 0o755 || st.Uid != 0 {
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func describeOne(path string, st *syscall.Stat_t) string {
	line := fmt.Sprintf("%04o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		content, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		line = "- " + line + fmt.Sprintf(" %.20q", content)
	case syscall.S_IFDIR:
		line = "d " + line
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("l %d:%d %s", st.Uid, st.Gid, target)
	case syscall.S_IFCHR:
		line = fmt.Sprintf("c %s %d,%d", line, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case syscall.S_IFBLK:
		line = fmt.Sprintf("b %s %d,%d", line, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case syscall.S_IFIFO:
		line = "p " + line
	}
	for _, name := range []string{"user.test", "security.capability", "trusted.test"} {
		value := make([]byte, 100)
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			line += fmt.Sprintf(" %s=%x", name, value[:n])
		}
	}
	if st.Mtim.Sec < 1_000_000_000 {
		line += fmt.Sprintf(" @%d", st.Mtim.Sec)
	}
	return line
}

func checkStack(t *testing.T, s Store, c stack) {
	var layers [][]byte
	for _, entries := range c.layers {
		layers = append(layers, Tar(entries...))
	}
	ids := unpack(t, s, layers)
	if mended := strings.HasPrefix(ids[0], "mend:"); mended != c.mended {
		t.Errorf("mended: %v", mended)
	}
	merged(t, s, ids, func(root string) {
		var got []string
		for _, line := range describe(t, root) {
			got = append(got, strings.TrimSuffix(line, " @0"))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func checkRefused(t *testing.T, s Store, c refusal) {
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	entries := c.entries(outside)
	l := Tar(entries...)
	id := digest.FromBytes(l).String()
	_, err := s.Unpack(context.Background(), id, layer.Blob{}, bytes.NewReader(l))
	switch {
	case c.contained:
		if err != nil {
			t.Fatalf("was to be unpacked inside: %v", err)
		}
	case !fault.Is(err, fault.Unknown):
		t.Errorf("kind %v: %v", fault.KindOf(err), err)
	default:
		if _, _, err := s.Use(id); !fault.Is(err, fault.NotFound) {
			t.Errorf("there is a layer: %v", err)
		}
	}
	for _, line := range describe(t, outside) {
		if !strings.HasPrefix(line, "canary - 0600 0:0 \"alive\"") {
			t.Errorf("something happened outside: %s", line)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside there is now %v %v", entries, err)
	}
}

func checkStreams(t *testing.T, open Opener) {
	s, left := open(t)
	l := Tar(Entry{Name: "a", Content: strings.Repeat("x", 5000)}, Entry{Name: "b/", Mode: 0o700})
	trouble := fault.New(fault.Denied, "", "the stream's own error")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		stream io.Reader
		kind   fault.Kind
	}{
		{"cut off in a file", context.Background(), bytes.NewReader(l[:3000]), fault.Unknown},
		{"an error in a file", context.Background(), io.MultiReader(bytes.NewReader(l[:3000]), broken{trouble}), fault.Denied},
		{"an error behind the end", context.Background(), io.MultiReader(bytes.NewReader(l), broken{trouble}), fault.Denied},
		{"no tar", context.Background(), strings.NewReader(strings.Repeat("no tar", 500)), fault.Unknown},
		{"cancelled", ctx, bytes.NewReader(l), fault.Canceled},
	} {
		if _, err := s.Unpack(c.ctx, "sha256:1", layer.Blob{}, c.stream); !fault.Is(err, c.kind) {
			t.Errorf("%s: kind %v: %v", c.name, fault.KindOf(err), err)
		}
		if _, _, err := s.Use("sha256:1"); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: there is a layer: %v", c.name, err)
		}
	}
	checkLeft(t, left)
	for range 2 { // a second time changes nothing
		if _, err := s.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(l)); err != nil {
			t.Fatal(err)
		}
	}
	checkLeft(t, left)
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

func checkRemove(t *testing.T, open Opener) {
	s, left := open(t)
	l := Tar(Entry{Name: "a", Content: "x"}, Entry{Name: "b/c", Content: "y"})
	if _, err := s.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(l)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Remove("sha256:1"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Use("sha256:1"); !fault.Is(err, fault.NotFound) {
			t.Errorf("there is still a layer: %v", err)
		}
	}
	checkLeft(t, left)
}

// checkUsage requires a layer to account for the space that it takes.
func checkUsage(t *testing.T, open Opener) {
	s, _ := open(t)
	entries := []Entry{{Name: "big", Content: strings.Repeat("x", 3<<20)}, {Name: "hard", Hard: "big"}}
	for i := range 100 {
		entries = append(entries, Entry{Name: fmt.Sprintf("d%d/f", i), Content: strings.Repeat("y", 50*i)})
	}
	info, err := s.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(Tar(entries...)))
	if err != nil {
		t.Fatal(err)
	}
	if info.Bytes < 3<<20 || info.Bytes > 5<<20 || info.Inodes < 1 || info.Inodes > 250 {
		t.Errorf("%d bytes, %d inodes", info.Bytes, info.Inodes)
	}
}
