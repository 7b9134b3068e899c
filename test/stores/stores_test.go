// Package stores imports images from the stores of other runtimes as these
// themselves have filled them: containerd, and containers/storage, which CRI-O
// and Podman use. make e2e-stores builds both and runs it.
package stores

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/archive"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/testkit"
)

var programs = flag.String("programs", os.Getenv("DAVIT_STORES"), "directory of containerd and storage, see build.sh")

func TestMain(m *testing.M) {
	flag.Parse()
	testkit.Main(m)
}

// program returns one that was built, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	if *programs == "" {
		t.Skip("needs other runtimes' programs: make e2e-stores")
	}
	testkit.Root(t)
	path, err := filepath.Abs(filepath.Join(*programs, name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// images pushes images of every kind and returns their references.
func images(t *testing.T, reg *testkit.Registry) []string {
	t.Helper()
	base := []testkit.File{
		{Name: "etc/", Mode: 0o750}, {Name: "etc/passwd", Data: []byte("root:x:0:0::/:/bin/sh\n")}, {Name: "etc/gone", Data: []byte("x")},
		{Name: "full/a", Data: []byte("a")}, {Name: "full/b", Data: []byte("b")}, {Name: "hard", Hard: true, Linkname: "etc/passwd"},
		{Name: "link", Linkname: "/../../etc/shadow"}, {Name: "suid", Data: bytes.Repeat([]byte("0123456789"), 100_000), Mode: 0o4755, UID: 70_000, GID: 1},
		{Name: "implicit/dir/" + strings.Repeat("long", 60), Data: []byte("long")}, {Name: "empty"}, {Name: "Ünïcode \n name", Data: []byte("u")},
	}
	upper := []testkit.File{{Name: "etc/.wh.gone"}, {Name: "full/.wh..wh..opq"}, {Name: "full/c", Data: []byte("c")}}
	var refs []string
	push := func(name string, spec testkit.ImageSpec) v1.Image {
		img, err := testkit.NewImage(spec)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, reg.Push(t, name, img))
		return img
	}
	config := v1.Config{Env: []string{"A=b"}, Cmd: []string{"/suid"}}
	push("kinds/gzip:1", testkit.ImageSpec{Layers: [][]testkit.File{base, upper}, Config: config})
	push("kinds/zstd:1", testkit.ImageSpec{Layers: [][]testkit.File{base, upper, {{Name: "zstd"}}}, Config: config, Compression: "zstd"})
	push("kinds/plain:1", testkit.ImageSpec{Layers: [][]testkit.File{base, {{Name: "plain"}}}, Config: config, Compression: "none"})
	push("kinds/docker:1", testkit.ImageSpec{Layers: [][]testkit.File{upper, base, upper}, Config: config, Docker: true})
	mine := push("kinds/two-names:1", testkit.ImageSpec{Layers: [][]testkit.File{base}, Config: config})
	refs = append(refs, reg.Push(t, "kinds/two-names:2", mine))
	other, err := testkit.NewImage(testkit.ImageSpec{Layers: [][]testkit.File{upper}, Arch: "riscv64"})
	if err != nil {
		t.Fatal(err)
	}
	index, err := testkit.NewIndex(other, mine)
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.Host + "/kinds/index:1"
	if err := testkit.PushIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	return append(refs, ref)
}

func openStore(t *testing.T) *image.Store {
	t.Helper()
	dir := t.TempDir()
	s, err := image.Open(image.Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// compare imports everything that a has, with the registry gone, and compares
// it with what was pulled from there.
func compare(t *testing.T, pulled *image.Store, refs []string, a *archive.Archive) {
	t.Helper()
	s := openStore(t)
	for _, offer := range a.Offers {
		if _, err := s.Import(context.Background(), offer, image.PullOptions{}); err != nil {
			t.Errorf("%v: %v", offer.Names, err)
		}
	}
	for _, ref := range refs {
		want, err := pulled.Get(ref)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(ref)
		if err != nil {
			t.Error(err)
			continue
		}
		// containers/storage does not know which digest is of which of its names.
		missing := slices.DeleteFunc(slices.Clone(want.RepoDigests), func(d string) bool { return slices.Contains(got.RepoDigests, d) })
		if got.ID != want.ID || !slices.Equal(got.RepoTags, want.RepoTags) || len(missing) > 0 {
			t.Errorf("%s:\n%s %v %v, pulled\n%s %v %v", ref, got.ID, got.RepoTags, got.RepoDigests, want.ID, want.RepoTags, want.RepoDigests)
		}
		if a, b := listing(t, s, ref), listing(t, pulled, ref); a != b {
			t.Errorf("%s:\n%s\npulled:\n%s", ref, a, b)
		}
	}
}

// listing describes an image's files.
func listing(t *testing.T, s *image.Store, ref string) string {
	t.Helper()
	ctx := context.Background()
	root, err := s.Mount(ctx, "c", ref, image.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root { // which is of the writable layer
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		_, err = fmt.Fprintf(&b, "%q %o %d:%d %d links, at %d", path[len(root):], st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec)
		if d.Type().IsRegular() {
			var data []byte
			if data, err = os.ReadFile(path); err == nil {
				_, err = fmt.Fprintf(&b, " %d bytes, %.20q", len(data), data)
			}
		}
		b.WriteString("\n")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// pull pulls all into a store, to compare with.
func pull(t *testing.T, refs []string) *image.Store {
	t.Helper()
	s := openStore(t)
	for _, ref := range refs {
		if _, err := s.Pull(context.Background(), ref, image.PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

const settings = `version = 3
root = '%[1]s/root'
state = '%[1]s/state'
temp = ''
imports = []
disabled_plugins = ['io.containerd.nri.v1.nri']
[plugins.'io.containerd.server.v1.grpc']
  address = '%[1]s/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '%[1]s/containerd.sock.ttrpc'
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '%[1]s/s'
[plugins.'io.containerd.internal.v1.opt']
  path = '%[1]s/opt'
`

// A containerd's store, while it runs and after.
func TestContainerd(t *testing.T) {
	binary := program(t, "containerd")
	reg := testkit.NewRegistry(t)
	refs := images(t, reg)
	pulled := pull(t, refs)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), fmt.Appendf(nil, settings, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(binary, "--config", filepath.Join(dir, "config.toml"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { _ = cmd.Process.Signal(unix.SIGTERM); _ = cmd.Wait() }
	defer stop()
	c, err := testkit.Dial("unix://" + filepath.Join(dir, "containerd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, ref := range refs {
		for {
			_, err := c.Pull(ctx, ref)
			if err == nil {
				break
			}
			if !strings.Contains(err.Error(), "connect") && !strings.Contains(err.Error(), "Unimplemented") || ctx.Err() != nil {
				stop()
				t.Fatalf("%v\n%s", err, said.String())
			}
			time.Sleep(50 * time.Millisecond) // it starts
		}
	}
	reg.Stop()
	for _, when := range []string{"running", "stopped"} {
		t.Run(when, func(t *testing.T) {
			a, err := archive.Containerd(filepath.Join(dir, "root"), "k8s.io")
			if err != nil {
				t.Fatal(err)
			}
			compare(t, pulled, refs, a)
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
		stop()
	}
}

// A store of containers/storage.
func TestStorage(t *testing.T) {
	binary := program(t, "storage")
	reg := testkit.NewRegistry(t)
	refs := images(t, reg)
	pulled := pull(t, refs)
	dir := t.TempDir()
	if out, err := exec.Command(binary, append([]string{dir}, refs...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	reg.Stop()
	a, err := archive.Storage(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, pulled, refs, a)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
