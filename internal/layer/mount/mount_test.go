package mount

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// image makes an EROFS image by the tool that all others use.
func image(t *testing.T) string {
	t.Helper()
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "f"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mkfs.erofs", to, from).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs (Debian: erofs-utils): %v\n%s", err, out)
	}
	return to
}

// ways returns those that this kernel has; the test is skipped if it has none.
func ways(t *testing.T) []Way {
	t.Helper()
	data, err := os.ReadFile(image(t))
	if err != nil {
		t.Fatal(err)
	}
	way, why := Probe(data, t.TempDir(), t.TempDir(), func(string) error { return nil })
	switch way {
	case File:
		return []Way{File, Loop}
	case Loop:
		return []Way{Loop}
	}
	t.Skip("this kernel mounts no EROFS: ", why)
	return nil
}

// attached returns the files that loop devices read, of those below dir.
func attached(t *testing.T, dir string) (files []string) {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if data, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(data), dir) {
			files = append(files, strings.TrimSpace(string(data)))
		}
	}
	return files
}

// An image is mounted both ways, with more bytes behind it and unlinked while
// it is mounted; then nothing of it is left.
func TestMount(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	for _, way := range ways(t) {
		file := image(t)
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		target := t.TempDir()
		if is, err := Is(target); is || err != nil {
			t.Errorf("%v: mounted before: %v", way, err)
		}
		if err := way.Mount(file, target); err != nil {
			t.Fatalf("%v: %v", way, err)
		}
		if n := len(attached(t, filepath.Dir(file))); n != int(way)-1 {
			t.Errorf("%v: %d loop devices", way, n)
		}
		if is, err := Is(target); !is || err != nil {
			t.Errorf("%v: not mounted: %v", way, err)
		}
		if is, err := Is(filepath.Join(target, "f")); is || err != nil {
			t.Errorf("%v: a file in it is mounted: %v", way, err)
		}
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(data) != "content" {
			t.Errorf("%v: %q %v", way, data, err)
		}
		if err := os.WriteFile(filepath.Join(target, "g"), nil, 0o600); err == nil {
			t.Errorf("%v: it can be written to", way)
		}
		for range 2 {
			if err := Unmount(target); err != nil {
				t.Errorf("%v: %v", way, err)
			}
		}
		if is, err := Is(target); is || err != nil {
			t.Errorf("%v: still mounted: %v", way, err)
		}
		if left := attached(t, filepath.Dir(file)); len(left) > 0 {
			t.Errorf("%v: left: %v", way, left)
		}
	}
	if err := Unmount(filepath.Join(t.TempDir(), "absent")); err != nil {
		t.Error(err)
	}
}

// What is no image is refused both ways, and leaves nothing.
func TestNoImage(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "noise")
	if err := os.WriteFile(file, []byte(strings.Repeat("noise", 9000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, way := range ways(t) {
		for _, name := range []string{file, filepath.Join(dir, "absent")} {
			if err := way.Mount(name, t.TempDir()); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v: %v", way, err)
			}
		}
	}
	if left := attached(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A file system that files cannot be mounted from needs loop devices; where the
// image shows something else than it should, there is no way.
func TestProbe(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	best := ways(t)[0]
	data, err := os.ReadFile(image(t))
	if err != nil {
		t.Fatal(err)
	}
	good := func(root string) error { _, err := os.Lstat(filepath.Join(root, "f")); return err }
	bad := func(root string) error { _, err := os.Lstat(filepath.Join(root, "absent")); return err }
	memory := t.TempDir()
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(memory, unix.MNT_DETACH) }()
	for _, c := range []struct {
		dir   string
		check func(string) error
		image []byte
		want  Way
		why   string
	}{
		{t.TempDir(), good, data, best, ""},
		{memory, good, data, Loop, "from files: "},
		{t.TempDir(), bad, data, None, "absent"},
		{t.TempDir(), good, data[:1050], None, "by loop devices: mount the EROFS image"},
	} {
		at := t.TempDir()
		way, why := Probe(c.image, c.dir, at, c.check)
		if way != c.want || why == nil && c.why != "" || why != nil && !strings.Contains(why.Error(), c.why) {
			t.Errorf("%+v: %v %v", c.want, way, why)
		}
		for _, dir := range []string{c.dir, at} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v: left %v %v", c.want, left, err)
			}
		}
		if left := attached(t, c.dir); len(left) > 0 {
			t.Errorf("%v: left: %v", c.want, left)
		}
	}
}
