package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"go.etcd.io/bbolt"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/testkit"
)

func openStore(t *testing.T) *image.Store {
	t.Helper()
	return openStoreOf(t, layer.Auto)
}

func openStoreOf(t *testing.T, kind layer.Kind) *image.Store {
	t.Helper()
	dir := t.TempDir()
	s, err := image.Open(image.Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Platform: "linux/amd64", Layers: kind, Log: slog.New(slog.DiscardHandler),
	})
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

// tarOf makes a tar stream of files: name, content, …; a content of "-> x" is a
// symbolic link.
func tarOf(files ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if to, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, to
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = w.Write([]byte(files[i+1]))
		}
	}
	_ = w.Close()
	return b.Bytes()
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(data)
	_ = z.Close()
	return b.Bytes()
}

func zstded(data []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer z.Close()
	return z.EncodeAll(data, nil)
}

func asJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// A sample is an image as files of a layout.
type sample struct {
	files    map[string][]byte
	manifest imagespec.Descriptor
	config   digest.Digest
	layers   [][]byte // tar streams
}

func (s *sample) put(mediaType string, data []byte) imagespec.Descriptor {
	d := imagespec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	s.files[blobName(d.Digest)] = data
	return d
}

func newSample(arch string) *sample {
	s := &sample{files: map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion": "1.0.0"}`)}}
	s.layers = [][]byte{tarOf("etc/arch", arch, "etc/gone", "x"), tarOf("etc/.wh.gone", "", "big", strings.Repeat("0123456789abcdef", 1<<16))}
	config := imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: arch}, RootFS: imagespec.RootFS{Type: "layers"}}
	m := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
	for _, l := range s.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, s.put(imagespec.MediaTypeImageLayerGzip, gzipped(l)))
	}
	m.Config = s.put(imagespec.MediaTypeImageConfig, asJSON(config))
	s.config = m.Config.Digest
	s.manifest = s.put(imagespec.MediaTypeImageManifest, asJSON(m))
	return s
}

// index lists descriptors under names; "" is none.
func (s *sample) index(names ...string) *sample {
	index := imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex}
	for _, name := range names {
		d := s.manifest
		if name != "" {
			d.Annotations = map[string]string{imagespec.AnnotationRefName: name}
		}
		index.Manifests = append(index.Manifests, d)
	}
	s.files["index.json"] = asJSON(index)
	return s
}

func (s *sample) tar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Size: int64(len(s.files[name])), Mode: 0o644})
		_, _ = w.Write(s.files[name])
	}
	_ = w.Close()
	return b.Bytes()
}

func (s *sample) dir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, s.files)
	return dir
}

func writeFiles(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// docker makes a docker-archive of a sample, as old programs write it: a layer
// that is there twice is a link, one is compressed.
func (s *sample) docker() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, data []byte) {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644})
		_, _ = w.Write(data)
	}
	put("a/layer.tar", s.layers[0])
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "b/layer.tar", Linkname: "../a/layer.tar"})
	put("c.tar.gz", gzipped(s.layers[1]))
	put(s.config.Encoded()+".json", s.files[blobName(s.config)])
	put("manifest.json", asJSON([]dockerImage{{Config: s.config.Encoded() + ".json", RepoTags: []string{"sample:1"}, Layers: []string{"b/layer.tar", "c.tar.gz"}}}))
	_ = w.Close()
	return b.Bytes()
}

// imported imports everything and returns what the store has then.
func imported(t *testing.T, s *image.Store, a *Archive, err error) []image.Image {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, o := range a.Offers {
		if _, err := s.Import(context.Background(), o, image.PullOptions{}); err != nil {
			t.Fatalf("%v: %v", o.Names, err)
		}
	}
	return s.List()
}

func TestLoad(t *testing.T) {
	testkit.Root(t)
	const full = "docker.io/library/sample:1"
	ctx := context.Background()
	one := newSample("amd64")
	byDigest := "docker.io/library/sample@" + one.manifest.Digest.String()
	other := newSample("arm64")
	both := newSample("amd64")
	for name, data := range other.files {
		both.files[name] = data
	}
	mine, others := both.manifest, other.manifest
	mine.Platform, others.Platform = &imagespec.Platform{OS: "linux", Architecture: "amd64"}, &imagespec.Platform{OS: "linux", Architecture: "arm64"}
	platforms := imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex, Manifests: []imagespec.Descriptor{others, mine}}
	nested := &sample{files: both.files, manifest: both.put(imagespec.MediaTypeImageIndex, asJSON(platforms))}
	spool := t.TempDir()
	for name, c := range map[string]struct {
		open          func() (*Archive, error)
		tags, digests []string
	}{
		"directory": {func() (*Archive, error) { return OpenDir(one.index(full).dir(t)) }, []string{full}, []string{byDigest}},
		"tar":       {func() (*Archive, error) { return Read(ctx, bytes.NewReader(one.index("sample:1", full).tar()), spool) }, []string{full}, []string{byDigest}},
		"gzip":      {func() (*Archive, error) { return Read(ctx, bytes.NewReader(gzipped(one.index(full).tar())), spool) }, []string{full}, []string{byDigest}},
		"zstd":      {func() (*Archive, error) { return Read(ctx, bytes.NewReader(zstded(one.index(full).tar())), spool) }, []string{full}, []string{byDigest}},
		"zstd, after a frame to be skipped": {func() (*Archive, error) {
			return Read(ctx, bytes.NewReader(append([]byte("\x5f\x2a\x4d\x18\x04\x00\x00\x00skip"), zstded(one.index(full).tar())...)), spool)
		}, []string{full}, []string{byDigest}},
		"no name":        {func() (*Archive, error) { return OpenDir(one.index("").dir(t)) }, nil, nil},
		"a tag only":     {func() (*Archive, error) { return OpenDir(one.index("latest").dir(t)) }, nil, nil},
		"docker-archive": {func() (*Archive, error) { return Read(ctx, bytes.NewReader(one.docker()), spool) }, []string{full}, nil},
		"several platforms": {func() (*Archive, error) { return OpenDir(nested.index(full).dir(t)) }, []string{full},
			[]string{"docker.io/library/sample@" + nested.manifest.Digest.String()}},
		"platforms in index.json": {func() (*Archive, error) {
			both.files["index.json"] = asJSON(platforms)
			return OpenDir(both.dir(t))
		}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			a, err := c.open()
			got := imported(t, s, a, err)
			if len(got) != 1 || got[0].ID != one.config.String() || !slices.Equal(got[0].RepoTags, c.tags) || !slices.Equal(got[0].RepoDigests, c.digests) {
				t.Fatalf("%+v", got)
			}
			path, err := s.Mount(ctx, "c", got[0].ID, image.MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(filepath.Join(path, "etc/arch")); err != nil || string(data) != "amd64" {
				t.Errorf("%q, %v", data, err)
			}
			if _, err := os.Stat(filepath.Join(path, "etc/gone")); !os.IsNotExist(err) {
				t.Errorf("what a layer removed: %v", err)
			}
			if err := s.Unmount(ctx, "c"); err != nil {
				t.Error(err)
			}
		})
	}
	if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
		t.Errorf("left of archives: %v, %v", left, err)
	}
}

// An artifact in a layout is loaded as an image is, and compared with its digests.
func TestLoadArtifact(t *testing.T) {
	testkit.Root(t)
	s := openStore(t)
	a := &sample{files: map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion": "1.0.0"}`)}}
	file := a.put("text/plain", []byte("the weights"))
	file.Annotations = map[string]string{imagespec.AnnotationTitle: "weights"}
	a.manifest = a.put(imagespec.MediaTypeImageManifest, asJSON(imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, Config: a.put("application/vnd.test", nil), Layers: []imagespec.Descriptor{file},
	}))
	a.index("registry.example/model:1")
	x, err := OpenDir(a.dir(t))
	if got := imported(t, s, x, err); len(got) != 1 || got[0].ID != a.manifest.Digest.String() || got[0].Artifact != "application/vnd.test" {
		t.Fatalf("%+v", got)
	}
	path, err := s.MountVolume(t.Context(), image.Volume{Container: "c", ImageID: "registry.example/model:1"})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(path, "weights")); err != nil || string(data) != "the weights" {
		t.Errorf("%q, %v", data, err)
	}
	if err := s.UnmountVolumes(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := Save(t.Context(), s, []string{"registry.example/model:1"}, io.Discard); !fault.Is(err, fault.Unimplemented) {
		t.Errorf("saved: %v", err)
	}
	if err := s.Remove(t.Context(), "registry.example/model:1"); err != nil {
		t.Error(err)
	}
	a.files[blobName(file.Digest)] = []byte("THE WEIGHTS")
	x, err = OpenDir(a.dir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if _, err := s.Import(t.Context(), x.Offers[0], image.PullOptions{}); !fault.Is(err, fault.Unknown) || len(s.List()) != 0 {
		t.Errorf("other content: %v", err)
	}
}

// What is not as its digest says, or names what is not there, is an error that
// says so, and adds nothing.
func TestLoadOfWhatIsBroken(t *testing.T) {
	testkit.Root(t)
	ctx, spool := context.Background(), t.TempDir()
	harm := func(f func(s *sample)) []byte {
		s := newSample("amd64").index("sample:1")
		f(s)
		return s.tar()
	}
	manifest := func(s *sample) imagespec.Manifest {
		var m imagespec.Manifest
		if err := json.Unmarshal(s.files[blobName(s.manifest.Digest)], &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for name, c := range map[string]struct {
		data []byte
		kind fault.Kind
		text string
	}{
		"nothing":        {nil, fault.Invalid, "neither an OCI"},
		"no archive":     {[]byte(strings.Repeat("no archive ", 100)), fault.Invalid, "no whole tar archive"},
		"cut":            {newSample("amd64").index("sample:1").tar()[:600], fault.Invalid, "no whole tar archive"},
		"cut gzip":       {gzipped(newSample("amd64").index("sample:1").tar())[:1000], fault.Invalid, "unexpected EOF"},
		"another tar":    {tarOf("a", "b"), fault.Invalid, "neither an OCI"},
		"no images":      {tarOf("index.json", "{}"), fault.Invalid, "no image"},
		"no layer":       {harm(func(s *sample) { delete(s.files, blobName(manifest(s).Layers[1].Digest)) }), fault.NotFound, "has no blob sha256:"},
		"other layer":    {harm(func(s *sample) { s.files[blobName(manifest(s).Layers[1].Digest)] = gzipped(tarOf("x", "y")) }), fault.Unknown, "does not have the"},
		"other config":   {harm(func(s *sample) { s.files[blobName(s.config)] = []byte("{}") }), fault.Unknown, "has other content"},
		"no manifest":    {harm(func(s *sample) { delete(s.files, blobName(s.manifest.Digest)) }), fault.NotFound, "has no blob sha256:"},
		"bad manifest":   {harm(func(s *sample) { s.files[blobName(s.manifest.Digest)] = []byte("{}") }), fault.Unknown, "has other content"},
		"a bad digest":   {tarOf("index.json", `{"manifests": [{"digest": "../../etc/passwd"}]}`), fault.Unknown, "lists the digest"},
		"a bad digest 2": {tarOf("manifest.json", `[{"Config": "c", "Layers": ["l"]}]`, "c", `{"rootfs": {"diff_ids": ["x"]}}`, "l", ""), fault.Unknown, "diff ID"},
		"docker: layer":  {tarOf("manifest.json", `[{"Config": "c", "Layers": ["../../etc/shadow"]}]`, "c", `{"rootfs": {"diff_ids": ["sha256:`+strings.Repeat("0", 64)+`"]}}`), fault.Unknown, "the archive has no"},
		"docker: other":  {tarOf("manifest.json", `[{"Config": "c", "Layers": ["l"]}]`, "c", `{"rootfs": {"diff_ids": ["sha256:`+strings.Repeat("0", 64)+`"]}}`, "l", string(tarOf("a", "b"))), fault.Unknown, "unpacks to other content"},
		"a loop":         {tarOf("index.json", "-> index.json"), fault.Invalid, "neither an OCI"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			a, err := Read(ctx, bytes.NewReader(c.data), spool)
			if err == nil {
				_, err = s.Import(ctx, a.Offers[0], image.PullOptions{})
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}
			if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v (%v), want %q (%v)", err, fault.KindOf(err), c.text, c.kind)
			}
			if left := s.List(); len(left) > 0 {
				t.Errorf("added: %v", left)
			}
		})
	}
}

// containerd's store as it is on disk, while somebody holds its database's lock.
func TestContainerd(t *testing.T) {
	testkit.Root(t)
	root := t.TempDir()
	one := newSample("amd64")
	writeFiles(t, filepath.Join(root, "io.containerd.content.v1.content"), one.files)
	if err := os.MkdirAll(filepath.Join(root, "io.containerd.metadata.v1.bolt"), 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(root, "io.containerd.metadata.v1.bolt/meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error {
		images, err := tx.CreateBucket([]byte("v1"))
		for _, name := range []string{"k8s.io", "images"} {
			if err == nil {
				images, err = images.CreateBucket([]byte(name))
			}
		}
		for _, name := range []string{"registry.example/a:1", "registry.example/a@" + one.manifest.Digest.String(), one.config.String()} {
			var b *bbolt.Bucket
			if err == nil {
				b, err = images.CreateBucket([]byte(name))
			}
			if err == nil {
				b, err = b.CreateBucket([]byte("target"))
			}
			if err == nil {
				err = b.Put([]byte("digest"), []byte(one.manifest.Digest))
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	a, err := Containerd(root, "k8s.io")
	got := imported(t, s, a, err)
	if len(got) != 1 || got[0].ID != one.config.String() || !slices.Equal(got[0].RepoTags, []string{"registry.example/a:1"}) ||
		!slices.Equal(got[0].RepoDigests, []string{"registry.example/a@" + one.manifest.Digest.String()}) {
		t.Errorf("%+v", got)
	}
	if _, err := Containerd(root, "moby"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "moby") {
		t.Errorf("another namespace: %v", err)
	}
	if _, err := Containerd(t.TempDir(), "k8s.io"); !fault.Is(err, fault.NotFound) {
		t.Errorf("no store: %v", err)
	}
}

// containers/storage's store as it is on disk. A layer whose files were changed
// since is refused; a symbolic link in a layer leads nowhere.
func TestStorage(t *testing.T) {
	testkit.Root(t)
	root := t.TempDir()
	one := newSample("amd64")
	one.layers[0] = tarOf("etc/arch", "amd64", "etc/gone", "x")
	manifest := "manifest-" + one.manifest.Digest.String()
	files := map[string][]byte{
		"overlay-images/images.json": asJSON([]map[string]any{{
			"id": one.config.Encoded(), "digest": one.manifest.Digest, "names": []string{"registry.example/a:1"},
			"big-data-names": []string{one.config.String(), manifest, "manifest"},
		}}),
		"overlay-images/" + one.config.Encoded() + "/manifest":                      one.files[blobName(one.manifest.Digest)],
		"overlay-images/" + one.config.Encoded() + "/=" + base(manifest):            one.files[blobName(one.manifest.Digest)],
		"overlay-images/" + one.config.Encoded() + "/=" + base(one.config.String()): one.files[blobName(one.config)],
	}
	var layers []map[string]any
	for i, l := range one.layers {
		id := strings.Repeat(string(rune('a'+i)), 64)
		layers = append(layers, map[string]any{"id": id, "diff-digest": digest.FromBytes(l)})
		var recipe bytes.Buffer
		in, err := asm.NewInputTarStream(bytes.NewReader(l), storage.NewJSONPacker(&recipe), nil)
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(in); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			files["overlay/"+id+"/diff/"+h.Name] = data
		}
		if _, err := io.Copy(io.Discard, in); err != nil {
			t.Fatal(err)
		}
		files["overlay-layers/"+id+".tar-split.gz"] = gzipped(recipe.Bytes())
	}
	files["overlay-layers/layers.json"] = asJSON(layers)
	writeFiles(t, root, files)
	s := openStore(t)
	a, err := Storage(root)
	got := imported(t, s, a, err)
	if len(got) != 1 || got[0].ID != one.config.String() || !slices.Equal(got[0].RepoTags, []string{"registry.example/a:1"}) ||
		!slices.Equal(got[0].RepoDigests, []string{"registry.example/a@" + one.manifest.Digest.String()}) {
		t.Errorf("%+v", got)
	}
	big := filepath.Join(root, "overlay", strings.Repeat("b", 64), "diff/big")
	for name, change := range map[string]func() error{
		"changed":    func() error { return os.WriteFile(big, bytes.Repeat([]byte("x"), 1<<20), 0o600) },
		"a link out": func() error { return os.Symlink("/etc/passwd", big) },
		"gone":       func() error { return nil },
	} {
		if err := os.Remove(big); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		a, err := Storage(root)
		if err != nil {
			t.Fatal(err)
		}
		s := openStore(t)
		if _, err := s.Import(context.Background(), a.Offers[0], image.PullOptions{}); !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "cannot be made again") {
			t.Errorf("%s: %v", name, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Storage(t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("no store: %v", err)
	}
}

func base(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
