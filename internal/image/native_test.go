package image

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
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
	push := func(tag string, mediaType string, blob, image []byte) string {
		config := imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: imagespec.RootFS{Type: "layers"}}
		base := tarOf("etc/", "0750", "etc/base", "1", "etc/gone", "1")
		config.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(base), digest.FromBytes(image)}
		data, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		reg.manifest("native", tag, imagespec.MediaTypeImageManifest, imagespec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, Config: reg.blob(imagespec.MediaTypeImageConfig, data),
			Layers: []imagespec.Descriptor{reg.blob(imagespec.MediaTypeImageLayerGzip, gzipped(base)), reg.blob(mediaType, blob)},
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
	} {
		image := build(tarOf("etc/native", tag, "etc/.wh.gone", ""))
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
