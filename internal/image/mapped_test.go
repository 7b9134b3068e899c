package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/overlay"
	"github.com/davit-runtime/davit/internal/testkit"
)

// pinned returns a user namespace that maps 0 to host, until the test ends.
func pinned(t *testing.T, host uint32) *idmap.Users {
	t.Helper()
	ids := []idmap.Range{{Container: 0, Host: host, Length: 65536}}
	users := &idmap.Users{Map: idmap.Map{UIDs: ids, GIDs: ids}, Path: filepath.Join(t.TempDir(), "user")}
	f, err := users.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(users.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), users.Path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(users.Path, unix.MNT_DETACH) })
	return users
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != st.Gid {
		t.Errorf("%s: user %d, group %d", path, st.Uid, st.Gid)
	}
	return st.Uid
}

// Two pods with other maps share the layers: nothing is copied, and each sees
// its own root as the owner, also of what it changes.
func TestMappedRoot(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	testkit.Leftovers(t, filepath.Join(dir, "state/mapped"), filepath.Join(dir, "state/rootfs")).Ignore("^cgroup |^mount .*/user |state/mapped$")
	reg := newFakeRegistry(t)
	_, id := reg.image("r", "1", imagespec.Image{}, tarOf("etc/", "755", "etc/f", "1"), tarOf("g", "2"))
	s := openStore(t, dir)
	ctx := context.Background()
	if _, err := s.Pull(ctx, reg.host()+"/r:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	first, second := pinned(t, 100000), pinned(t, 300000)
	for _, old := range []bool{false, true} {
		overlay.Old.Store(old)
		for name, users := range map[string]*idmap.Users{"a": first, "b": second} {
			path, err := s.Mount(ctx, name, id, MountOptions{Users: users})
			if err != nil {
				t.Fatalf("old API: %v: %v", old, err)
			}
			root, _ := users.Host(0, 0)
			for _, file := range []string{".", "etc", "etc/f", "g"} {
				if got := owner(t, filepath.Join(path, file)); got != root {
					t.Errorf("old API: %v: %s belongs to %d, want %d", old, file, got, root)
				}
			}
			// Copied up, it stays its owner's.
			if err := os.WriteFile(filepath.Join(path, "etc/f"), []byte("changed"), 0); err != nil {
				t.Error(err)
			}
			if got := owner(t, filepath.Join(path, "etc/f")); got != root {
				t.Errorf("copied up, etc/f belongs to %d, want %d", got, root)
			}
			if again, err := s.Mount(ctx, name, id, MountOptions{Users: users}); err != nil || again != path {
				t.Errorf("again: %s %v", again, err)
			}
		}
		for _, name := range []string{"a", "b"} {
			if err := s.Unmount(ctx, name); err != nil {
				t.Error(err)
			}
		}
	}
	overlay.Old.Store(false)
	// What a crash left of the trees goes with the container.
	if err := (idmap.Tree{Source: "/usr", Users: first}).Attach(filepath.Join(s.config.mapped("c"), "0")); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
}
