package image

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// artifact puts an artifact there, of files, name → content, and returns its ID.
func (f *fakeRegistry) artifact(repo, tag string, files ...string) string {
	m := imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, ArtifactType: "application/vnd.test.model",
		Config: f.blob(imagespec.MediaTypeEmptyJSON, []byte("{}")),
	}
	for i := 0; i < len(files); i += 2 {
		d := f.blob([]string{"text/plain", imagespec.MediaTypeImageLayerGzip}[i/2%2], []byte(files[i+1]))
		if files[i] != "" {
			d.Annotations = map[string]string{imagespec.AnnotationTitle: files[i]}
		}
		m.Layers = append(m.Layers, d)
	}
	m.Layers = append(m.Layers, m.Config) // as those without files have it
	return f.manifest(repo, tag, imagespec.MediaTypeImageManifest, m).Digest.String()
}

// An artifact is listed, mounted as a volume, kept over restarts and removed as
// an image is, in a store of either kind. No container is made of it.
func TestArtifact(t *testing.T) {
	testkit.Root(t)
	for _, kind := range []layer.Kind{layer.Auto, layer.Directories} {
		t.Run(string(kind), func(t *testing.T) {
			ctx, dir, reg := t.Context(), t.TempDir(), newFakeRegistry(t)
			open := func() *Store {
				config := testConfig(dir)
				config.Layers = kind
				s, err := Open(config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { closeStore(t, s) })
				return s
			}
			weights := make([]byte, 1<<20+100)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(weights)
			packed := string(gzipped(tarOf("x", "1")))
			want := reg.artifact("model", "1", "model/weights.bin", string(weights), "model/pack.tar.gz", packed,
				"config.json", "older", "./config.json", "{}", "empty", "", "", "without a title")
			ref := reg.host() + "/model:1"
			s := open()
			for range 2 {
				i, err := s.Pull(ctx, ref, PullOptions{})
				if err != nil || i.ID != want || i.Artifact != "application/vnd.test.model" || i.SizeBytes < 1<<20 || !slices.Equal(i.RepoTags, []string{ref}) {
					t.Fatalf("%+v %v", i, err)
				}
			}
			for blob, n := range reg.fetched {
				if n > 1 {
					t.Errorf("%s was fetched %d times", blob, n)
				}
			}
			untitled := strings.Replace(digest.FromString("without a title").String(), ":", "-", 1)
			look := func(s *Store, part string, files ...string) {
				t.Helper()
				path, err := s.MountVolume(ctx, Volume{Container: "c", ImageID: want, SubPath: part})
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(files); i += 2 {
					if got := read(t, path, files[i]); got != files[i+1] {
						t.Errorf("%s: %.40q", files[i], got)
					}
				}
				if part == "" {
					if all := names(t, path); !slices.Equal(all, []string{"config.json", "empty", "model", untitled}) {
						t.Errorf("files: %q", all)
					}
					info, err := os.Stat(filepath.Join(path, "model/weights.bin"))
					if err != nil || info.Mode() != 0o644 || os.WriteFile(path+"/x", nil, 0o600) == nil {
						t.Errorf("%v %v", info, err)
					}
				}
				if err := s.UnmountVolumes(ctx, "c"); err != nil {
					t.Fatal(err)
				}
			}
			look(s, "", "config.json", "{}", "empty", "", "model/weights.bin", string(weights), "model/pack.tar.gz", packed, untitled, "without a title")
			look(s, "model", "pack.tar.gz", packed)
			look(s, "model/pack.tar.gz", "", packed)
			if _, err := s.Mount(ctx, "r", want, MountOptions{}); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "application/vnd.test.model") {
				t.Errorf("as a root: %v", err)
			}
			if err := s.Unmount(ctx, "r"); err != nil {
				t.Error(err)
			}
			if _, err := s.Export(ref); !fault.Is(err, fault.Unimplemented) {
				t.Errorf("saved: %v", err)
			}
			// With a database, and without.
			for _, gone := range []string{"none", "root/images.db"} {
				closeStore(t, s)
				if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
					t.Fatal(err)
				}
				s = open()
				if i, err := s.Get(ref); err != nil || i.ID != want || i.Artifact == "" || len(s.List()) != 1 {
					t.Fatalf("%+v %v", i, err)
				}
				look(s, "", "config.json", "{}", "model/weights.bin", string(weights))
			}
			// It comes back when a file of it was lost.
			if err := s.condemn(ctx, s.view.Load().images[want].Layers[0], errors.New("test")); err != nil || len(s.List()) != 0 {
				t.Fatal(err, s.List())
			}
			s.heal(ctx, time.Now())
			look(s, "", untitled, "without a title", "model/weights.bin", string(weights))
			if err := s.Remove(ctx, ref); err != nil {
				t.Fatal(err)
			}
			s.trash.Wait()
			if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 || len(s.List()) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// What names files that cannot be, or has other content, is refused whole.
func TestBadArtifacts(t *testing.T) {
	testkit.Root(t)
	reg, dir := newFakeRegistry(t), t.TempDir()
	s := openStore(t, dir)
	for i, name := range []string{"../x", "/etc/x", "a/../../x", ".", "..", ".wh.x", "a/.wh..wh..opq", ".wh.d/x", "x\x00y", strings.Repeat("n", 300), "a/" + strings.Repeat("n/", 3000)} {
		reg.artifact("bad", "1", "good", "1", name, "2")
		if _, err := s.Pull(t.Context(), reg.host()+"/bad:1", PullOptions{}); !fault.Is(err, fault.Unknown) {
			t.Errorf("%d: %.50q: %v", i, name, err)
		}
	}
	reg.artifact("bad", "1", "good", "1", "other", "content")
	reg.blobs[digest.FromString("content").String()] = []byte("CONTENT")
	if _, err := s.Pull(t.Context(), reg.host()+"/bad:1", PullOptions{}); !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "other content") {
		t.Error(err)
	}
	var many []string
	for i := range maxLayers + 1 {
		many = append(many, fmt.Sprint("file-", i), "1")
	}
	reg.artifact("bad", "1", many...)
	if _, err := s.Pull(t.Context(), reg.host()+"/bad:1", PullOptions{}); !fault.Is(err, fault.Unimplemented) {
		t.Error(err)
	}
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 || len(s.List()) != 0 {
		t.Errorf("left: %v, %v", left, s.List())
	}
	// The stream of a file is what a tar is, whatever its size.
	for _, size := range []int{0, 1, 511, 512, 513} {
		stream, err := fileStream("a/b", int64(size), bytes.NewReader(make([]byte, size)))
		var all bytes.Buffer
		if _, copied := all.ReadFrom(stream); err != nil || copied != nil || all.Len()%512 != 0 {
			t.Errorf("%d: %d bytes, %v", size, all.Len(), err)
		}
	}
}
