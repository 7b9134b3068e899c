package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

// What DiskUsage tells adds up to what the file system says, within 2 %, and
// each image's part is told.
func TestDiskUsage(t *testing.T) {
	testkit.Root(t)
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, command := range []string{"truncate -s 500M " + disk, "mkfs.ext4 -q -m 0 " + disk, "mount -o loop " + disk + " " + dir} {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	used := func() uint64 {
		t.Helper()
		if err := exec.Command("sync", "-f", dir).Run(); err != nil {
			t.Fatal(err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return (st.Blocks - st.Bfree) * uint64(st.Bsize)
	}
	before := used()
	s := openStore(t, dir)
	ctx := context.Background()
	reg := newFakeRegistry(t)
	files := func(name string, n, size int) (all []string) {
		for i := range n {
			all = append(all, name+strings.Repeat("x", i), strings.Repeat(fmt.Sprintf("%s%03d", name, i), size/4)) // each another
		}
		return all
	}
	shared := tarOf(files("s", 100, 50_000)...)
	_, a := reg.image("a", "1", imagespec.Image{}, shared, tarOf(files("a", 100, 20_000)...))
	_, b := reg.image("b", "1", imagespec.Image{}, shared, tarOf(files("b", 200, 3000)...))
	for _, ref := range []string{"/a:1", "/b:1"} {
		if _, err := s.Pull(ctx, reg.host()+ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) DiskUsage {
		t.Helper()
		truth := used() - before
		u, err := s.DiskUsage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if sum := u.Bytes(); sum*100 < truth*98 || sum*100 > truth*102 {
			t.Errorf("%s: %d bytes; the file system says %d: %+v", when, sum, truth, u)
		}
		if f := u.FileSystem; f.UsedBytes < truth || f.FreeBytes == 0 || f.UsedBytes+f.FreeBytes != f.TotalBytes {
			t.Errorf("%s: %+v", when, f)
		}
		return u
	}
	u := check("two images")
	if len(u.Images) != 2 || len(u.Layers) != 3 {
		t.Fatalf("%+v", u)
	}
	for _, i := range u.Images {
		if i.SharedBytes < 5_000_000 || i.SharedBytes >= i.Bytes || len(i.Names) != 2 || i.Containers != 0 {
			t.Errorf("%+v", i)
		}
		if own := i.Bytes - i.SharedBytes; i.ID == a && own < 2_000_000 || i.ID == b && (own < 600_000 || own > 1_500_000) {
			t.Errorf("not shared: %d: %+v", own, i)
		}
	}
	path, err := s.Mount(ctx, "c", a, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.MountVolume(ctx, Volume{Container: "c", ImageID: b}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(path, name), make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(ctx, b); err != nil { // a volume still has its layers
		t.Fatal(err)
	}
	u = check("a container")
	for _, l := range u.Layers {
		if l.Kind == "" || l.Mounted != (l.Kind == "erofs") {
			t.Errorf("%+v", l)
		}
	}
	if len(u.Writable) != 1 || u.Writable[0].Container != "c" || u.Writable[0].Bytes < 8<<20 {
		t.Errorf("%+v", u.Writable)
	}
	if len(u.Images) != 1 || u.Images[0].Containers != 1 || u.Images[0].SharedBytes != 0 || len(u.Layers) != 3 {
		t.Errorf("%+v", u)
	}
	for _, unmount := range []func(context.Context, string) error{s.UnmountVolumes, s.Unmount} {
		if err := unmount(ctx, "c"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Remove(ctx, a); err != nil {
		t.Fatal(err)
	}
	s.trash.Wait()
	if u, err := s.DiskUsage(ctx); err != nil || len(u.Images)+len(u.Layers)+len(u.Writable) != 0 || u.Bytes() > 1<<20 {
		t.Errorf("of nothing: %+v, %v", u, err)
	}
	closeUnchecked(t, s)
}
