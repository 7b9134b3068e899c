package image

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/testkit"
)

// openErofs opens a store that keeps layers as files, or skips the test.
func openErofs(t *testing.T, dir string) *Store {
	t.Helper()
	s := openStore(t, dir)
	if s.layers.Kind() == layer.Directories {
		t.Skip("this kernel mounts no EROFS")
	}
	return s
}

// harm turns a bit in the middle of a layer's content, or cuts it off.
func harm(t *testing.T, dir, id string, cut bool) {
	t.Helper()
	path := layerPath(t, dir, id)
	if cut {
		if err := os.Truncate(path, 8192); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), "content")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("C"), int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func twoLayers(t *testing.T, reg *fakeRegistry) (ref, id string, layers []string) {
	t.Helper()
	lower, upper := tarOf("f", "content of f", "big", strings.Repeat("content", 9000)), tarOf("g", "1")
	_, id = reg.image("a", "1", imagespec.Image{}, lower, upper)
	return reg.host() + "/a:1", id, []string{digest.FromBytes(lower).String(), digest.FromBytes(upper).String()}
}

func check(t *testing.T, s *Store, quick bool) (found []Finding) {
	t.Helper()
	sum, err := s.Check(context.Background(), quick, func(f Finding) { found = append(found, f) }, func(string, int64, int64) {})
	if err != nil || sum.Damaged != len(found) || quick != (sum.Bytes == 0) {
		t.Errorf("%+v %v", sum, err)
	}
	return found
}

// A layer with one bit turned is found, its image is not there any more but
// told of, and that layer alone is fetched again. Containers run on.
func TestHeal(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	ref, id, layers := twoLayers(t, reg)
	_, other := reg.image("b", "1", imagespec.Image{}, tarOf("h", "2"))
	dir, ctx := t.TempDir(), context.Background()
	s := openErofs(t, dir)
	for _, ref := range []string{ref, reg.host() + "/b:1"} {
		if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	path, err := s.Mount(ctx, "c", id, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if found := check(t, s, false); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	harm(t, dir, layers[0], false)
	if found := check(t, s, true); len(found) != 0 {
		t.Errorf("quickly: %+v", found)
	}
	found := check(t, s, false)
	if len(found) != 1 || found[0].Subject != "layer "+layers[0] || strings.Join(found[0].Images, " ") != ref || !strings.Contains(found[0].Problem, "damaged") {
		t.Errorf("%+v", found)
	}
	if list := s.List(); len(list) != 1 || list[0].ID != other {
		t.Errorf("%+v", list)
	}
	if lines := s.Troubles(); len(lines) != 1 || !strings.Contains(lines[0], ref) || !strings.Contains(lines[0], layers[0]) || !strings.Contains(lines[0], "fetched again") {
		t.Errorf("%q", lines)
	}
	if _, err := s.Mount(ctx, "d", id, MountOptions{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	if read(t, path, "g") != "1" {
		t.Error("a container lost its layers")
	}
	s.heal(ctx, time.Now())
	if got, err := s.Get(ref); err != nil || got.ID != id || len(s.Troubles()) != 0 {
		t.Errorf("%v %v %q", got.ID, err, s.Troubles())
	}
	again := 0
	for d, n := range reg.fetched {
		if n > 1 {
			again++
			t.Logf("%s was fetched %d times", d, n)
		}
	}
	if again > 2 { // the layer, and the configuration
		t.Errorf("%d blobs were fetched again", again)
	}
	fresh, err := s.Mount(ctx, "e", id, MountOptions{})
	if err != nil || read(t, fresh, "f") != "content of f" || len(read(t, fresh, "big")) != 63000 {
		t.Errorf("%v", err)
	}
	for _, c := range []string{"c", "e"} {
		if err := s.Unmount(ctx, c); err != nil {
			t.Error(err)
		}
	}
	if found := check(t, s, false); len(found) != 0 {
		t.Errorf("%+v", found)
	}
}

// A loss outlives davitd. Where the image is not to be had without credentials
// the next pull brings it back; else, in the end, what is left of it goes.
func TestLossOutlives(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	ref, id, layers := twoLayers(t, reg)
	dir, ctx := t.TempDir(), context.Background()
	s := openErofs(t, dir)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	harm(t, dir, layers[0], true)
	for range 2 {
		s = openStore(t, dir)
		if len(s.List()) != 0 || len(s.Troubles()) != 1 {
			t.Errorf("%v %q", s.List(), s.Troubles())
		}
		closeStore(t, s)
	}
	s = openStore(t, dir)
	if err := s.reconcile(); err != nil {
		t.Error(err)
	}
	reg.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	s.heal(ctx, time.Now())
	if lines := s.Troubles(); len(lines) != 1 || !strings.Contains(lines[0], "without being asked for") {
		t.Errorf("%q", lines)
	}
	reg.before = nil
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil || len(s.Troubles()) != 0 {
		t.Errorf("%v %q", err, s.Troubles())
	}
	if names := names(t, filepath.Join(dir, "root/records")); len(names) != 1 || strings.Contains(names[0], "lost") {
		t.Errorf("%v", names)
	}
	for name, end := range map[string]func(){
		"removed":   func() { _ = s.Remove(ctx, ref) },
		"given up":  func() { s.heal(ctx, time.Now().Add(patience+time.Hour)) },
		"by its ID": func() { _ = s.Remove(ctx, id) },
	} {
		if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		harm(t, dir, layers[0], true)
		if found := check(t, s, true); len(found) != 1 {
			t.Errorf("%s: %+v", name, found)
		}
		end()
		left := append(names(t, filepath.Join(dir, "root/layers")), names(t, filepath.Join(dir, "root/records"))...)
		if len(s.Troubles()) != 0 || len(left) != 1 {
			t.Errorf("%s: %q %v", name, s.Troubles(), left)
		}
	}
}

// A layer that is found to be damaged when a container is made is given up, too.
func TestDamagedAtUse(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	ref, id, layers := twoLayers(t, reg)
	dir, ctx := t.TempDir(), context.Background()
	s := openErofs(t, dir)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	harm(t, dir, layers[0], true)
	if _, err := s.Mount(ctx, "c", id, MountOptions{}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), layers[0]) {
		t.Errorf("kind %v: %v", fault.KindOf(err), err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
	if len(s.List()) != 0 {
		t.Errorf("%v", s.List())
	}
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Error(err)
	}
	if path, err := s.Mount(ctx, "c", id, MountOptions{}); err != nil || read(t, path, "f") != "content of f" {
		t.Error(err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
}

// Images that were pulled as files are used where directories are asked for,
// and the other way round; a database that is lost is made again of both.
func TestChangeOfKind(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	ref, id, _ := twoLayers(t, reg)
	reg.image("b", "1", imagespec.Image{}, tarOf("dir/", "0700"), tarOf("dir/f", "2"))
	dir, ctx := t.TempDir(), context.Background()
	s := openErofs(t, dir)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	config := testConfig(dir)
	config.Layers = layer.Directories
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(ctx, reg.host()+"/b:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.Remove(filepath.Join(dir, "root/images.db")); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if len(s.List()) != 2 {
		t.Errorf("%+v", s.List())
	}
	if path, err := s.Mount(ctx, "c", id, MountOptions{}); err != nil || read(t, path, "f") != "content of f" {
		t.Error(err)
	}
	path, err := s.Mount(ctx, "d", reg.host()+"/b:1", MountOptions{})
	if err != nil || read(t, path, "dir/f") != "2" {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Join(path, "dir")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st, err)
	}
	for _, c := range []string{"c", "d"} {
		if err := s.Unmount(ctx, c); err != nil {
			t.Error(err)
		}
	}
}

// A layer may come as an EROFS image, plain or compressed as a whole.
func TestNativeLayer(t *testing.T) {
	testkit.Root(t)
	from, file := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(filepath.Join(from, "f"), []byte("native"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.erofs", file, from).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs (Debian: erofs-utils): %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	reg := newFakeRegistry(t)
	tar := tarOf("g", "1")
	config := reg.blob(imagespec.MediaTypeImageConfig, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["`+
		digest.FromBytes(tar).String()+`","`+digest.FromBytes(data).String()+`"]}}`))
	const native = "application/vnd.erofs.layer.v1"
	s := openErofs(t, t.TempDir())
	for tag, blob := range map[string]imagespec.Descriptor{"plain": reg.blob(native, data), "zstd": reg.blob(native+"+zstd", zstded(data))} {
		reg.manifest("n", tag, imagespec.MediaTypeImageManifest, imagespec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, Config: config,
			Layers: []imagespec.Descriptor{reg.blob(imagespec.MediaTypeImageLayerGzip, gzipped(tar)), blob},
		})
		ctx, ref := context.Background(), reg.host()+"/n:"+tag
		if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if path, err := s.Mount(ctx, "c", ref, MountOptions{}); err != nil || read(t, path, "f") != "native" || read(t, path, "g") != "1" {
			t.Error(err)
		}
		if err := s.Unmount(ctx, "c"); err != nil {
			t.Error(err)
		}
		if err := s.Remove(ctx, ref); err != nil {
			t.Error(err)
		}
	}
}
