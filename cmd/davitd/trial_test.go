package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/testkit"
)

// What a trial had made when davitd was killed is gone before davitd serves again.
func TestTrialCutShort(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	d := testkit.NewDaemon(t, "")
	d.Kill()
	dir := filepath.Join(d.State, "trials", strings.Repeat("ab", 32))
	if err := namespace.New().Create(soon(t), dir, namespace.Spec{Net: true, IPC: true}); err != nil {
		t.Fatal(err)
	}
	if err := (idmap.Tree{Source: "/sys", ReadOnly: true}).Attach(filepath.Join(dir, "trees", "sys")); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v\n%s", dir, err, d.Log())
	}
}
