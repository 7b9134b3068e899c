package image

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// A layer that is an EROFS image already is stacked with others as it is,
// compressed or not, and given back as it came; one that is none, or is not what
// its digest says, is refused.
func TestNativeLayers(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	build := func(tar []byte) []byte {
		t.Helper()
		f, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := erofs.Build(ctx, bytes.NewReader(tar), f, erofs.Options{Limit: 1 << 30}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	role := map[string]string{}
	push := func(tag string, mediaType string, blob, image []byte) string {
		config := imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: imagespec.RootFS{Type: "layers"}}
		base := tarOf("etc/", "0750", "etc/base", "1", "etc/gone", "1")
		index := reg.blob("application/vnd.erofs.chunk-index.v1", []byte("no layer"))
		config.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(base), index.Digest, digest.FromBytes(image)}
		top := reg.blob(mediaType, blob)
		top.Annotations = role
		data, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		reg.manifest("native", tag, imagespec.MediaTypeImageManifest, imagespec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, Config: reg.blob(imagespec.MediaTypeImageConfig, data),
			Layers: []imagespec.Descriptor{reg.blob(imagespec.MediaTypeImageLayerGzip, gzipped(base)), index, top},
		})
		return reg.host() + "/native:" + tag
	}
	const native = "application/vnd.erofs.layer.v1"
	for tag, c := range map[string]struct {
		mediaType string
		pack      func([]byte) []byte
	}{
		"plain": {native, func(data []byte) []byte { return data }},
		"zstd":  {native + "+zstd", zstded},
		"gzip":  {native + "+gzip", gzipped},
		"spec":  {"application/vnd.erofs", func(data []byte) []byte { return data }},
		"specz": {"application/vnd.erofs+zstd", zstded},
		"old":   {"application/vnd.oci.image.layer.v1.erofs", func(data []byte) []byte { return data }},
	} {
		role = map[string]map[string]string{"spec": {"org.erofs.role": "overlay-lower"}}[tag]
		image := build(tarOf("etc/native", tag, "etc/.wh.gone", ""))
		if strings.HasPrefix(tag, "spec") {
			image = append(image, bytes.Repeat([]byte("a tree of hashes"), 300)...)
		}
		ref := push(tag, c.mediaType, c.pack(image), image)
		if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		path, err := s.Mount(ctx, "c", ref, MountOptions{})
		if err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		if read(t, path, "etc/native") != tag || read(t, path, "etc/base") != "1" {
			t.Errorf("%s: other content", tag)
		}
		if _, err := os.Lstat(filepath.Join(path, "etc/gone")); !os.IsNotExist(err) {
			t.Errorf("%s: what the layer removed: %v", tag, err)
		}
		if err := s.Unmount(ctx, "c"); err != nil {
			t.Error(err)
		}
		x, err := s.Export(ref)
		if err != nil {
			t.Fatal(err)
		}
		var back bytes.Buffer
		if isImage, err := x.Layer(ctx, digest.FromBytes(image), &back); err != nil || !isImage || !bytes.Equal(back.Bytes(), image) {
			t.Errorf("%s: given back: %v, %d bytes of %d: %v", tag, isImage, back.Len(), len(image), err)
		}
		x.Close()
	}
	role = map[string]string{"org.erofs.role": "overlay-data"}
	if _, err := s.Pull(ctx, push("role", native, build(tarOf("a", "2")), build(tarOf("a", "2"))), PullOptions{}); !fault.Is(err, fault.Unimplemented) || !strings.Contains(err.Error(), "overlay-data") {
		t.Errorf("another role: %v", err)
	}
	role = nil
	good := build(tarOf("a", "1"))
	broken := bytes.Clone(good)
	broken[1024] ^= 1
	for tag, c := range map[string]struct {
		blob, image []byte
		mediaType   string
		kind        fault.Kind
	}{
		"other":     {good, append(bytes.Clone(good), 0), native, fault.Unknown},
		"broken":    {broken, broken, native, fault.Unknown},
		"tar":       {tarOf("a", "1"), tarOf("a", "1"), native, fault.Unknown},
		"encrypted": {good, good, native + "+encrypted", fault.Unimplemented},
		"later":     {good, good, native + "0", fault.Unimplemented},
	} {
		if _, err := s.Pull(ctx, push(tag, c.mediaType, c.blob, c.image), PullOptions{}); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", tag, err)
		}
	}
}

// Where EROFS images cannot be mounted, of an index the image of tar streams is
// chosen, whichever comes first.
func TestNativeInIndex(t *testing.T) {
	of := func(name string, features ...string) imagespec.Descriptor {
		return imagespec.Descriptor{ArtifactType: name, Platform: &imagespec.Platform{OS: "linux", Architecture: "amd64", OSFeatures: features}}
	}
	all := []imagespec.Descriptor{of("native", "erofs"), {ArtifactType: "untold"}, of("tar")}
	for adopts, want := range map[bool]string{true: "native", false: "tar"} {
		got, ok := choose(mountable(all, adopts), *all[0].Platform)
		if !ok || got.ArtifactType != want || len(all) != 3 {
			t.Errorf("mountable %v: %+v", adopts, got)
		}
	}
}
