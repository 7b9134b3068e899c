package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/overlay"
	"github.com/davit-runtime/davit/internal/testkit"
)

// volumeStore returns a store with an image of two layers and one without any.
func volumeStore(t *testing.T, dir string) (s *Store, id, none string) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	_, id = reg.image("v", "1", imagespec.Image{}, tarOf(
		"./", "0751", "etc/", "0755", "etc/passwd", "old", "etc/gone", "1", "bin/sh", "sh",
		"out", "-> ../../../../etc", "abs", "-> /etc/passwd", "climb", "-> etc/../../../../../etc/passwd", "loop", "-> loop",
	), tarOf("etc/passwd", "new", "etc/.wh.gone", ""))
	_, none = reg.image("none", "1", imagespec.Image{})
	s = openStore(t, dir)
	for _, ref := range []string{"/v:1", "/none:1"} {
		if _, err := s.Pull(t.Context(), reg.host()+ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return s, id, none
}

func TestVolume(t *testing.T) {
	s, id, none := volumeStore(t, t.TempDir())
	path, err := s.MountVolume(t.Context(), Volume{Container: "c", ImageID: id})
	if err != nil {
		t.Fatal(err)
	}
	if read(t, path, "etc/passwd") != "new" || read(t, path, "bin/sh") != "sh" {
		t.Error("not the image's content")
	}
	if _, err := os.Lstat(path + "/etc/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that the upper layer removed: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 || fs.Flags&unix.ST_NOEXEC != 0 {
		t.Errorf("flags %x, %v", fs.Flags, err)
	}
	if err := os.WriteFile(path+"/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	other, err := s.MountVolume(t.Context(), Volume{Container: "c", Index: 7, ImageID: none})
	if err != nil || other == path || len(names(t, other)) != 0 {
		t.Errorf("an image without layers: %v", err)
	}
	if _, err := s.MountVolume(t.Context(), Volume{Container: "c2", ImageID: "absent"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
	// Of the container whose ID begins likewise, nothing goes.
	third, err := s.MountVolume(t.Context(), Volume{Container: "cc", ImageID: id})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.UnmountVolumes(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	if mounted, err := overlay.IsMount(third); !mounted || err != nil {
		t.Errorf("another container's volume has gone: %v", err)
	}
	if err := s.UnmountVolumes(t.Context(), "cc"); err != nil {
		t.Fatal(err)
	}
}

func TestSubPath(t *testing.T) {
	s, id, _ := volumeStore(t, t.TempDir())
	overlay.Old.Store(true) // for once, as on old kernels
	defer overlay.Old.Store(false)
	for part, want := range map[string]string{
		"etc": "passwd", "/etc/": "passwd", "etc/passwd": "new", "abs": "new", "": "etc", "/": "etc", "etc/..": "etc",
		// As the image's own root has it: the image's /etc, not the host's.
		"out": "passwd", "climb": "new", "etc/../../../etc": "passwd", "out/passwd": "new",
	} {
		path, err := s.MountVolume(t.Context(), Volume{Container: "c", ImageID: id, SubPath: part})
		if err != nil {
			t.Errorf("%q: %v", part, err)
			continue
		}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			if _, err := os.Lstat(filepath.Join(path, want)); err != nil || part != "" && part != "/" && want == "etc" && len(names(t, path)) < 5 {
				t.Errorf("%q: %v", part, names(t, path))
			}
		} else if got := read(t, path); got != want {
			t.Errorf("%q: %q", part, got)
		}
	}
	for part, kind := range map[string]fault.Kind{
		"nope": fault.NotFound, "etc/passwd/x": fault.NotFound, "loop": fault.Precondition, "out/../../../../root": fault.NotFound,
	} {
		if _, err := s.MountVolume(t.Context(), Volume{Container: "c", ImageID: id, SubPath: part}); !fault.Is(err, kind) {
			t.Errorf("%q: %v", part, err)
		}
	}
	if err := s.UnmountVolumes(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
}

// The layers stay for as long as the volume, also across a restart, whatever
// becomes of the image; and after a reboot what was there can be released.
func TestVolumeOutlivesImage(t *testing.T) {
	dir := t.TempDir()
	s, id, none := volumeStore(t, dir)
	path, err := s.MountVolume(t.Context(), Volume{Container: "c", ImageID: id, SubPath: "etc"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for _, image := range []string{id, none} {
		if err := s.Remove(ctx, image); err != nil {
			t.Fatal(err)
		}
	}
	closeUnchecked(t, s)
	s = openStore(t, dir)
	if all := names(t, filepath.Join(dir, "root/layers")); read(t, path, "passwd") != "new" || len(all) < 3 {
		t.Errorf("layers: %v", all)
	}
	// Made again by a davitd that took over.
	if again, err := s.MountVolume(ctx, Volume{Container: "c", ImageID: id, SubPath: "etc"}); err != nil || again != path || read(t, path, "passwd") != "new" {
		t.Errorf("%v", err)
	}
	if err := s.UnmountVolumes(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	s.trash.Wait()
	for d, want := range map[string]int{"root/layers": 1, "root/writable": 0, "state/rootfs": 0} { // layers/staging stays
		if left := names(t, filepath.Join(dir, d)); len(left) != want {
			t.Errorf("%s: left %v", d, left)
		}
	}
}
