package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/overlay"
	"github.com/davit-runtime/davit/internal/testkit"
)

// Hundreds of layers stack, and long paths do, with the mount API of any kernel.
func TestManyLayers(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	const n = 200
	var tars [][]byte
	for i := range n {
		tars = append(tars, tarOf("top", fmt.Sprint(i), fmt.Sprintf("f%d", i), "x"))
	}
	tars = append(tars, tars[0]) // and one of them twice: it is on top again
	_, id := reg.image("many", "1", imagespec.Image{}, tars...)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-name/", 20))
	s := openStore(t, dir)
	if _, err := s.Pull(context.Background(), reg.host()+"/many:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{false, true} {
		overlay.Old.Store(old)
		path, err := s.Mount(context.Background(), "c", id, MountOptions{})
		if err != nil {
			t.Fatalf("old API: %v: %v", old, err)
		}
		if got := len(names(t, path)); got != n+1 || read(t, path, "top") != "0" {
			t.Errorf("old API: %v: %d files, %q on top", old, got, read(t, path, "top"))
		}
		if err := os.WriteFile(filepath.Join(path, "f7"), []byte("y"), 0o600); err != nil {
			t.Error(err)
		}
		if err := s.Unmount(context.Background(), "c"); err != nil {
			t.Error(err)
		}
	}
	overlay.Old.Store(false)
}

func TestRootOfContainer(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	_, id := reg.image("r", "1", imagespec.Image{}, tarOf("./", "0511", "tmp/", "1777"), tarOf("tmp/x", "1"))
	_, none := reg.image("none", "1", imagespec.Image{Author: "no layers"})
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	for _, ref := range []string{"/r:1", "/none:1"} {
		if _, err := s.Pull(ctx, reg.host()+ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		image, dir string
		mode       fs.FileMode
	}{{id, ".", 0o511}, {id, "tmp", 0o777 | fs.ModeSticky}, {none, ".", 0o755}} {
		path, err := s.Mount(ctx, "c", c.image, MountOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(path, c.dir)); err != nil || info.Mode() != c.mode|fs.ModeDir {
			t.Errorf("%s: %v %v", c.dir, info.Mode(), err)
		}
		if err := s.Unmount(ctx, "c"); err != nil {
			t.Error(err)
		}
	}
	if got, err := s.Get(none); err != nil || got.SizeBytes == 0 {
		t.Errorf("%+v %v", got, err) // the kubelet takes size 0 for an error
	}
}

// A mount that a crash of the machine took away can be made again, and what
// Mount did not finish Unmount releases.
func TestMountAgain(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	_, id := reg.image("a", "1", imagespec.Image{}, tarOf("f", "1"))
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := context.Background()
	if _, err := s.Pull(ctx, reg.host()+"/a:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	path, err := s.Mount(ctx, "c", id, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "kept"), []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	closeUnchecked(t, s)
	if err := unix.Unmount(path, 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, filepath.Join(dir, "state/layers")) {
		if err := unix.Unmount(filepath.Join(dir, "state/layers", name), 0); err != nil {
			t.Fatal(err)
		}
	}
	// As if the machine had gone: the mark of a volatile mount is still there.
	if err := os.MkdirAll(filepath.Join(dir, "root/writable/c/work/work/incompat/volatile"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if path, err = s.Mount(ctx, "c", id, MountOptions{}); err != nil || read(t, path, "kept") != "2" || read(t, path, "f") != "1" {
		t.Errorf("%v", err)
	}
	// In use by a process of the host: detached.
	f, err := os.Open(filepath.Join(path, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
	if _, err := s.Mount(ctx, "d", "absent", MountOptions{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b", ".hidden"} {
		if _, err := s.Mount(ctx, bad, id, MountOptions{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
		if err := s.Unmount(ctx, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "root/writable/half"), 0o700); err != nil { // killed before the lease
		t.Fatal(err)
	}
	if err := errors.Join(s.Unmount(ctx, "half"), s.Unmount(ctx, "never")); err != nil {
		t.Error(err)
	}
	if left := names(t, filepath.Join(dir, "root/writable")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func BenchmarkMount(b *testing.B) {
	testkit.Root(b)
	reg := newFakeRegistry(b)
	var tars [][]byte
	for i := range 8 {
		tars = append(tars, tarOf(fmt.Sprint(i), "x"))
	}
	_, id := reg.image("a", "1", imagespec.Image{}, tars...)
	s := openStore(b, b.TempDir())
	ctx := context.Background()
	if _, err := s.Pull(ctx, reg.host()+"/a:1", PullOptions{}); err != nil {
		b.Fatal(err)
	}
	var mount, unmount []time.Duration
	for i := 0; b.Loop(); i++ {
		c := fmt.Sprint(i)
		start := time.Now()
		if _, err := s.Mount(ctx, c, id, MountOptions{}); err != nil {
			b.Fatal(err)
		}
		mounted := time.Now()
		if err := s.Unmount(ctx, c); err != nil {
			b.Fatal(err)
		}
		unmounted := time.Now()
		s.trash.Wait()
		mount, unmount = append(mount, mounted.Sub(start)), append(unmount, unmounted.Sub(mounted))
	}
	slices.Sort(mount)
	slices.Sort(unmount)
	b.ReportMetric(float64(mount[len(mount)/2].Microseconds()), "µs/mount-median")
	b.ReportMetric(float64(unmount[len(unmount)/2].Microseconds()), "µs/unmount-median")
}
