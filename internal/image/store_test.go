package image

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/testkit"
)

// openStore opens a store in dir and, at the end, closes it and checks that
// nothing of it is mounted or left in staging.
func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(testConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func testConfig(dir string) Config {
	return Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Platform: "linux/amd64/v3",
		Registry: registry.Config{Stall: 30 * time.Second},
		Log:      slog.New(slog.DiscardHandler),
	}
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if s.ctx.Err() != nil {
		return
	}
	s.trash.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"layers/staging", "trash"} {
		if left := names(t, filepath.Join(s.config.Root, dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), s.config.State) {
		t.Errorf("mounts left below %s", s.config.State)
	}
}

// layerPath returns the file or directory of a layer.
func layerPath(t testing.TB, dir, id string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "root/layers", strings.Replace(id, ":", "-", 1)+"*"))
	if err != nil || len(all) != 1 {
		t.Fatalf("layer %s: %v %v", id, all, err)
	}
	return all[0]
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func read(t testing.TB, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPullMountRemove(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	config := imagespec.Image{Config: imagespec.ImageConfig{Cmd: []string{"/bin/sh"}, User: "7"}}
	m, id := reg.image("library/web", "1", config,
		tarOf("etc/", "0750", "etc/passwd", "root", "etc/gone", "x"),
		tarOf("etc/.wh.gone", "", "usr/share/page", "hello"),
		tarOf("etc/motd", "hi"))
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := context.Background()
	ref := reg.host() + "/library/web:1"

	var seen []Progress
	got, err := s.Pull(ctx, ref, PullOptions{Progress: func(p Progress) { seen = append(seen, p) }})
	if err != nil {
		t.Fatal(err)
	}
	want := Image{
		ID: id, RepoTags: []string{ref}, RepoDigests: []string{reg.host() + "/library/web@" + m.Digest.String()},
		SizeBytes: got.SizeBytes, Config: got.Config, PulledAt: got.PulledAt,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.SizeBytes == 0 || got.Config.Config.User != "7" {
		t.Errorf("%+v", got)
	}
	done := 0
	for _, p := range seen {
		if p.Phase == Done && p.Bytes == p.Total {
			done++
		}
	}
	if done != 3 {
		t.Errorf("progress of %d layers ended: %v", done, seen)
	}

	for _, name := range []string{ref, id, id[7:], id[7:14], id[:12], reg.host() + "/library/web@" + m.Digest.String(), ref + "@" + m.Digest.String()} {
		if got, err := s.Get(name); err != nil || got.ID != id {
			t.Errorf("Get(%s): %v %v", name, got.ID, err)
		}
	}
	if _, err := s.Get(reg.host() + "/library/web:2"); !fault.Is(err, fault.NotFound) {
		t.Errorf("an absent image: %v", err)
	}

	path, err := s.Mount(ctx, "c1", id, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Mount(ctx, "c1", id, MountOptions{}); err != nil || again != path {
		t.Errorf("mounted again: %s %v", again, err)
	}
	if read(t, path, "etc/passwd") != "root" || read(t, path, "etc/motd") != "hi" || read(t, path, "usr/share/page") != "hello" {
		t.Error("content differs")
	}
	if _, err := os.Lstat(filepath.Join(path, "etc/gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that a layer removed: %v", err)
	}
	if info, err := os.Lstat(filepath.Join(path, "etc")); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("etc, of which upper layers say nothing: %v %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(path, "etc/passwd"), []byte("changed"), 0o600); err != nil {
		t.Error(err)
	}

	if s.Usage().Bytes == 0 || s.Usage().Inodes < 3 {
		t.Errorf("%+v", s.Usage())
	}
	if err := s.Remove(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if len(s.List()) != 0 {
		t.Error("still listed")
	}
	if read(t, path, "etc/motd") != "hi" {
		t.Error("a container lost its image's layers")
	}
	closeUnchecked(t, s)
	s = openStore(t, dir) // the lease keeps the layers also over a restart
	if read(t, path, "etc/motd") != "hi" || len(names(t, filepath.Join(dir, "root/layers"))) != 5 {
		t.Error("a container lost its image's layers: ", names(t, filepath.Join(dir, "root/layers")))
	}
	for range 2 {
		if err := s.Unmount(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 {
		t.Errorf("layers left: %v", left)
	}
	if left := append(names(t, filepath.Join(dir, "root/writable")), names(t, filepath.Join(dir, "state/rootfs"))...); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if u := s.Usage(); u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("%+v", u)
	}
	if err := s.Remove(ctx, ref); err != nil {
		t.Errorf("removed again: %v", err)
	}
}

// A container's layers stay though its lease on them is lost, and its image
// gone from the database; then they go.
func TestLeaseLost(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("a", "1", imagespec.Image{}, tarOf("f", "1"), tarOf("g", "1"))
	for name, harm := range map[string]func(path string) error{
		"deleted":       os.Remove,
		"empty":         func(path string) error { return os.Truncate(path, 0) },
		"other version": func(path string) error { return os.WriteFile(path, []byte(`{"version": 99, "data": {}}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, ctx := t.TempDir(), context.Background()
			s := openStore(t, dir)
			id, err := s.Pull(ctx, reg.host()+"/a:1", PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			path, err := s.Mount(ctx, "c", id.ID, MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			closeUnchecked(t, s)
			if err := harm(filepath.Join(dir, "root/writable/c/lease.json")); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				s = openStore(t, dir)
				if err := s.Remove(ctx, reg.host()+"/a:1"); err != nil {
					t.Fatal(err)
				}
				s.trash.Wait()
				if read(t, path, "f") != "1" || read(t, path, "g") != "1" {
					t.Error("the container lost its layers")
				}
				closeUnchecked(t, s)
			}
			s = openStore(t, dir)
			if err := s.Unmount(ctx, "c"); err != nil {
				t.Error(err)
			}
			if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 {
				t.Errorf("layers left: %v", left)
			}
		})
	}
}

func closeUnchecked(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
