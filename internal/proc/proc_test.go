package proc

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestFind(t *testing.T) {
	root := t.TempDir()
	own := strconv.Itoa(os.Getuid())
	for path, text := range map[string]string{
		"12/cmdline": "/usr/bin/d\x00--a\x00\x00", "12/status": "Name:\td\nUid:\t0\t0\t0\t0\nNSpid:\t12\n",
		"3/cmdline": "d\x00", "3/status": "Uid:\t7\t" + own + "\t7\t7\n",
		"4/cmdline": "d\x00", "4/status": "Uid:\t0\t65533\t0\t0\n", // others'
		"5/cmdline": "d\x00", "5/status": "Uid:\t0\t0\t0\t0\nNSpid:\t5\t1\n", // nested
		"6/cmdline": "d\x00",       // nothing to be seen
		"7/cmdline": "", "8/x": "", // the kernel's; ended
		"9/cmdline":  "other\x00d\x00",
		"10/cmdline": "d\x00", "11/cmdline": "d\x00",
	} {
		path = filepath.Join(root, "proc", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for dir, namespace := range map[string]string{"self": "mnt:[1]", "10": "mnt:[1]", "11": "mnt:[2]"} {
		if err := os.MkdirAll(filepath.Join(root, "proc", dir, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(namespace, filepath.Join(root, "proc", dir, "ns/mnt")); err != nil {
			t.Fatal(err)
		}
	}
	found := Find(root, func(p Process) bool { return p.Name() == "d" })
	var pids []int
	for _, p := range found {
		pids = append(pids, p.Pid)
	}
	if len(pids) != 4 || pids[0] != 3 || pids[1] != 6 || pids[2] != 10 || pids[3] != 12 {
		t.Fatalf("found %v, want 3, 6, 10 and 12", pids)
	}
	p := found[3]
	if len(p.Args) != 3 || p.Args[1] != "--a" || p.Args[2] != "" || p.Path("exe") != "/proc/12/exe" {
		t.Errorf("%q, %s", p.Args, p.Path("exe"))
	}
}
