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

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// Images that are rare, and right.
func TestOddImages(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	ctx := context.Background()
	nothing := make([]byte, 1024) // a tar stream of no entries
	some := tarOf("a", "1")
	const tarType = imagespec.MediaTypeImageLayer
	// A skippable frame before, between and after others, as zstd:chunked has it.
	skip := []byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip")
	framed := bytes.Join([][]byte{skip, zstded(some[:700]), skip, zstded(some[700:]), skip}, nil)
	type part struct {
		mediaType    string
		blob, stream []byte
	}
	for name, parts := range map[string][]part{
		"no-layers":        nil,
		"empty-tar":        {{tarType + "+gzip", gzipped(nothing), nothing}, {tarType, some, some}},
		"empty-stream":     {{tarType + "+gzip", gzipped(nil), nil}, {tarType, some, some}},
		"empty-blob":       {{tarType, nil, nil}, {tarType, some, some}},
		"twice":            {{tarType, some, some}, {tarType + "+zstd", zstded(some), some}, {tarType + "+gzip", gzipped(some), some}},
		"frames":           {{tarType + "+zstd", framed, some}},
		"members":          {{tarType + "+gzip", append(gzipped(some[:512]), gzipped(some[512:])...), some}},
		"foreign":          {{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", gzipped(some), some}},
		"nondistributable": {{"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", zstded(some), some}},
		"other-type":       {{tarType + "+gzip", zstded(some), some}}, // its first bytes count
	} {
		t.Run(name, func(t *testing.T) {
			config := imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: "amd64"}, Author: name}
			m := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
			for _, p := range parts {
				config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(p.stream))
				m.Layers = append(m.Layers, reg.blob(p.mediaType, p.blob))
			}
			data, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			m.Config = reg.blob(imagespec.MediaTypeImageConfig, data)
			reg.manifest("odd", name, imagespec.MediaTypeImageManifest, m)
			s := openStore(t, t.TempDir())
			ref := reg.host() + "/odd:" + name
			if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			path, err := s.Mount(ctx, "c", ref, MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(parts) > 0 && read(t, path, "a") != "1" {
				t.Error("other content")
			}
			if err := os.WriteFile(filepath.Join(path, "new"), nil, 0o600); err != nil {
				t.Error(err)
			}
			if err := s.Unmount(ctx, "c"); err != nil {
				t.Error(err)
			}
			x, err := s.Export(ref)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			for _, p := range parts {
				var back bytes.Buffer
				if _, err := x.Layer(ctx, digest.FromBytes(p.stream), &back); err != nil || !bytes.Equal(back.Bytes(), p.stream) {
					t.Errorf("given back: %d bytes of %d: %v", back.Len(), len(p.stream), err)
				}
			}
		})
	}
	large := []byte(`{"os":"linux","author":"` + strings.Repeat("a", 9<<20) + `"}`)
	reg.manifest("odd", "large", imagespec.MediaTypeImageManifest, imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, Config: reg.blob(imagespec.MediaTypeImageConfig, large), Layers: []imagespec.Descriptor{},
	})
	if _, err := openStore(t, t.TempDir()).Pull(ctx, reg.host()+"/odd:large", PullOptions{}); !fault.Is(err, fault.Unknown) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a configuration of 9 MiB: %v", err)
	}
}

// A layer that the registry must not have comes from where its descriptor says.
func TestLayerElsewhere(t *testing.T) {
	testkit.Root(t)
	reg, elsewhere := newFakeRegistry(t), newFakeRegistry(t)
	layer := tarOf("a", "1")
	config, err := json.Marshal(imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: imagespec.RootFS{DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	d := elsewhere.blob("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", gzipped(layer))
	d.URLs = []string{elsewhere.URL + "/nowhere/blobs/x", elsewhere.URL + "/any/blobs/" + d.Digest.String()}
	reg.manifest("odd", "1", imagespec.MediaTypeImageManifest, imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest,
		Config: reg.blob(imagespec.MediaTypeImageConfig, config), Layers: []imagespec.Descriptor{d},
	})
	s := openStore(t, t.TempDir())
	ref := reg.host() + "/odd:1"
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	path, err := s.Mount(t.Context(), "c", ref, MountOptions{})
	if err != nil || read(t, path, "a") != "1" {
		t.Error(err)
	}
	if err := s.Unmount(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}
