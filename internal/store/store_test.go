package store_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/davit-runtime/davit/internal/store"
)

// What a killed writer left goes, and nothing else does.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "seccomp", "crun-1")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := store.WriteFile(filepath.Join(dir, "a.bpf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".a.bpf.123", ".a.bpf.1a", ".hidden", "a.1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Sweep(filepath.Join(root, "seccomp", "*"), filepath.Join(root, "none")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".a.bpf.1a", ".hidden", "a.1", "a.bpf"}; !slices.Equal(left, want) {
		t.Errorf("left is %q, not %q", left, want)
	}
}
