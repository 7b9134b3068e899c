package testkit

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestNamespacesArePrivate(t *testing.T) {
	Root(t)
	for _, ns := range []string{"mnt", "net"} {
		inside, _ := os.Readlink("/proc/self/ns/" + ns)
		outside, err := os.Readlink("/proc/" + os.Getenv(stage) + "/ns/" + ns)
		if err != nil || inside == outside {
			t.Errorf("%s namespace inside %s, outside %s, %v", ns, inside, outside, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("loopback is not up: %v", err)
	}
	_ = l.Close()
}

func TestLeftoversSeesEachKind(t *testing.T) {
	Root(t)
	dir := t.TempDir()
	b := NewBaseline(dir)

	run(t, "ip", "link", "add", "left0", "type", "bridge")
	run(t, "nft", "add", "table", "inet", "left")
	if err := unix.Mount("left", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sh", "-c", "sleep 61 >/dev/null 2>&1 & ")
	group := ""
	for _, m := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		if _, err := os.Stat(m + "/cgroup.procs"); err == nil {
			group = m + "/testkit-left"
			break
		}
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}

	left := present(b.dirs, false)
	left = slices.DeleteFunc(left, func(s string) bool { return b.have[s] })
	for _, want := range []string{"link left0", "nft table inet left", "mount " + dir, "file " + dir + "/file", "sleep 61", "cgroup /testkit-left"} {
		if !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("%q is not among what is left: %q", want, left)
		}
	}

	run(t, "ip", "link", "del", "left0")
	run(t, "nft", "delete", "table", "inet", "left")
	_ = unix.Unmount(dir, 0)
	_ = os.Remove(group)
	for _, p := range descendants(outermost()) {
		if p.name == "sleep" {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
	if left := b.Left(); len(left) > 0 {
		t.Errorf("still left after clearing away: %q", left)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
