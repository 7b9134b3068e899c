package image

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// Asking never waits; the answer is of a time that it tells; a layer is walked
// no more often than it should be, and all together within their share.
func TestWritableUsage(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	_, id := reg.image("r", "1", imagespec.Image{}, tarOf("x", "1"))
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := context.Background()
	if _, err := s.Pull(ctx, reg.host()+"/r:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		path, err := s.Mount(ctx, name, id, MountOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Unmount(ctx, name); err != nil {
				t.Error(err)
			}
		}()
		if err := os.WriteFile(filepath.Join(path, "file"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.WritableUsage("c"); !fault.Is(err, fault.NotFound) {
		t.Errorf("no such layer: %v", err)
	}
	u, err := s.WritableUsage("a")
	if err != nil || u.Mountpoint != s.config.Root {
		t.Fatalf("%+v, %v", u, err)
	}
	walked := u.At.IsZero() // not so where the file system keeps accounts
	for deadline := time.Now().Add(10 * time.Second); u.At.IsZero(); u, err = s.WritableUsage("a") {
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("it is not counted: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	const slack = 64 << 10 // as in writable.TestWalkIsDu, and for what an account has beside the layer
	if size, inodes := testkit.DiskUsage(t, filepath.Join(dir, "root/writable/a/upper")); u.Bytes+slack < size || u.Bytes > size+slack || walked && u.Inodes != inodes {
		t.Errorf("%+v; du says %d, %d", u, size, inodes)
	}
	again, err := s.WritableUsage("a")
	if err != nil || walked && !again.At.Equal(u.At) {
		t.Errorf("counted again at once: %+v, %v", again, err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if all := s.WritableUsages(); all.Bytes >= 2<<20 && !all.At.IsZero() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("together %+v", s.WritableUsages())
		}
	}
}

// Where the file system keeps accounts by project, what it says is the answer,
// at once, and also after a restart; files move and are linked as elsewhere.
func TestAccounts(t *testing.T) {
	testkit.Root(t)
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, command := range []string{
		"truncate -s 200M " + disk,
		"mkfs.ext4 -q -O project,quota -E quotatype=prjquota " + disk,
		"mount -o loop,prjquota " + disk + " " + dir,
	} {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil && strings.HasPrefix(command, "mount") {
			t.Skipf("this kernel has no project quotas on ext4: %s", out)
		} else if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	reg := newFakeRegistry(t)
	_, id := reg.image("r", "1", imagespec.Image{}, tarOf("x", "1", "d/", "0755", "d/y", "2"))
	s, err := Open(testConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, err := s.Pull(ctx, reg.host()+"/r:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	path, err := s.Mount(ctx, "a", id, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(ctx, "b", id, MountOptions{}); err != nil {
		t.Fatal(err)
	}
	usage := func() Usage {
		t.Helper()
		u, err := s.WritableUsage("a")
		if err != nil || time.Since(u.At) > time.Minute || u.Mountpoint != s.config.Root {
			t.Fatalf("%+v, %v", u, err)
		}
		return u
	}
	before := usage()
	if before.Bytes == 0 || before.Bytes > 64<<10 || before.Inodes > 8 {
		t.Errorf("an empty layer: %+v", before)
	}
	script := `set -e; cd $0; head -c 2000000 /dev/zero >big; mkdir e; mv d/y e/y; ln big link; mv e d; echo z >d/e/z; mv x x2; rm big`
	if out, err := exec.Command("sh", "-c", script, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after := usage()
	if grown := after.Bytes - before.Bytes; grown < 2_000_000 || grown > 2_100_000 {
		t.Errorf("grown by %d, with a file of 2000000", grown)
	}
	if err := s.Close(); err != nil { // the mounts stay
		t.Fatal(err)
	}
	if s, err = Open(testConfig(dir)); err != nil {
		t.Fatal(err)
	}
	defer func() { closeStore(t, s) }()
	if again := usage(); again.Bytes < after.Bytes {
		t.Errorf("after a restart %+v, before %+v", again, after)
	}
	if all := s.WritableUsages(); all.Bytes <= after.Bytes || time.Since(all.At) > time.Minute {
		t.Errorf("together %+v", all)
	}
	for _, name := range []string{"a", "b"} {
		if err := s.Unmount(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if all := s.WritableUsages(); all.Bytes != 0 || all.Inodes != 0 {
		t.Errorf("after removing both: %+v", all)
	}
}
