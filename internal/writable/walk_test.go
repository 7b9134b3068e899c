package writable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

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
	size, n := testkit.DiskUsage(t, root)
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
