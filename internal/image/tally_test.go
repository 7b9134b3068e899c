package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// du is what du says of a directory, in bytes and inodes.
func du(t *testing.T, dir string) (size, inodes uint64) {
	t.Helper()
	for _, c := range []struct {
		option string
		to     *uint64
		unit   uint64
	}{{"-skx", &size, 1024}, {"-sx --inodes", &inodes, 1}} {
		out, err := exec.Command("sh", "-c", "du "+c.option+" "+dir).Output()
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		*c.to = n * c.unit
	}
	return size, inodes
}

// makeTree makes all that a tree may have: holes, hard links, links out of it,
// more levels than the walk keeps open, more files than it takes at once.
func makeTree(t *testing.T, root string) {
	t.Helper()
	at := func(name ...string) string { return filepath.Join(root, filepath.Join(name...)) }
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	file := func(path string, size int) { do(os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600)) }
	do(os.MkdirAll(at("sub"), 0o755))
	file(at("big"), 3_000_000)
	file(at("hole"), 1)
	do(os.Truncate(at("hole"), 100<<20))
	do(os.Link(at("big"), at("link")))
	do(os.Link(at("big"), at("sub", "link")))
	do(os.Symlink("/", at("out")))
	do(os.Symlink("nowhere", at("dangling")))
	do(unix.Mkfifo(at("pipe"), 0o600))
	for i := range 2 * pauseEvery {
		do(os.MkdirAll(at("many", fmt.Sprint("d", i)), 0o755))
		file(at("many", fmt.Sprint("f", i)), 0)
	}
	deep := root
	for range 4 * maxOpen {
		deep = filepath.Join(deep, "d")
		do(os.MkdirAll(filepath.Join(deep, "e"), 0o755))
		file(filepath.Join(deep, "e", "x"), 2)
	}
	// Below a directory that is read in pieces, so that it is closed and gone on with.
	for i := range 5 {
		do(os.MkdirAll(at("many", fmt.Sprint("d", i*100), strings.Repeat("d/", 2*maxOpen)), 0o755))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestWalkIsDu(t *testing.T) {
	root := filepath.Join(t.TempDir(), "upper")
	makeTree(t, root)
	open := countFiles(t)
	pauses := 0
	w := walk{pause: func(time.Duration) error { pauses++; return nil }}
	blocks, inodes, err := w.measure(root)
	if err != nil {
		t.Fatal(err)
	}
	size, n := du(t, root)
	const slack = 64 << 10
	// A file system may need some more blocks once it writes the files.
	if blocks*512+slack < size || blocks*512 > size+slack || inodes != n {
		t.Errorf("%d bytes, %d inodes; du says %d, %d", blocks*512, inodes, size, n)
	}
	if pauses < 5 {
		t.Errorf("%d pauses", pauses)
	}
	if left := countFiles(t); left > open {
		t.Errorf("%d descriptors open, %d before", left, open)
	}
}

func countFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A tree whose deep part moves away is counted as far as it was seen, without
// leaving it; a walk that is told to end does.
func TestWalkOfWhatChanges(t *testing.T) {
	root := filepath.Join(t.TempDir(), "upper")
	deep := root
	for range 2 * maxOpen {
		deep = filepath.Join(deep, "d")
	}
	if err := os.MkdirAll(filepath.Join(root, "away"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * pauseEvery {
		if err := os.WriteFile(filepath.Join(deep, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	moved := false
	w := walk{pause: func(time.Duration) error {
		if !moved { // at the very end of the tree: the way back leads elsewhere
			moved = true
			return os.Rename(filepath.Join(root, strings.Repeat("d/", 20)), filepath.Join(root, "away", "d"))
		}
		return nil
	}}
	if _, inodes, err := w.measure(root); err != nil || !moved || inodes < 2*pauseEvery {
		t.Errorf("moved %v, %d inodes, %v", moved, inodes, err)
	}
	w = walk{pause: func(time.Duration) error { return context.Canceled }}
	if _, _, err := w.measure(filepath.Join(root, "away")); err != context.Canceled {
		t.Errorf("a walk that is to end: %v", err)
	}
	if _, _, err := (&walk{}).measure(filepath.Join(root, "nothing")); !os.IsNotExist(err) {
		t.Errorf("no tree: %v", err)
	}
}

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
	const slack = 64 << 10 // as in TestWalkIsDu, and for what an account has beside the layer
	if size, inodes := du(t, filepath.Join(dir, "root/writable/a/upper")); u.Bytes+slack < size || u.Bytes > size+slack || walked && u.Inodes != inodes {
		t.Errorf("%+v; du says %d, %d", u, size, inodes)
	}
	again, err := s.WritableUsage("a")
	if err != nil || walked && !again.At.Equal(u.At) {
		t.Errorf("counted again, within %s: %+v, %v", walkEvery, again, err)
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
