package testkit

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestImagesAreValid(t *testing.T) {
	Root(t)
	Leftovers(t)
	r := NewRegistry(t)
	for _, spec := range []ImageSpec{
		{Compression: "gzip"}, {Compression: "zstd"}, {Compression: "none"}, {Docker: true},
	} {
		spec.Layers = [][]File{{{Name: "d/"}, {Name: "d/f", Data: []byte("one")}}, {{Name: "d/.wh.f"}}}
		img, err := NewImage(spec)
		if err != nil {
			t.Fatal(err)
		}
		ref := r.Push(t, "valid/"+spec.Compression+"x:1", img)
		parsed, _ := name.ParseReference(ref, name.Insecure)
		got, err := remote.Image(parsed)
		if err != nil {
			t.Fatal(err)
		}
		var depth []validate.Option
		if spec.Compression == "zstd" || spec.Compression == "none" {
			depth = append(depth, validate.Fast) // it knows no other compression than gzip
		}
		if err := validate.Image(got, depth...); err != nil {
			t.Errorf("%+v: %v", spec, err)
		}
		if a, b := digest(t, img), digest(t, got); a != b {
			t.Errorf("pushed %s, got %s", a, b)
		}
	}
}

func TestIndexHasPlatforms(t *testing.T) {
	var images []v1.Image
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := NewImage(ImageSpec{Arch: arch, Layers: [][]File{{{Name: "arch", Data: []byte(arch)}}}})
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	index, err := NewIndex(images...)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 2 || m.Manifests[1].Platform.Architecture != "arm64" {
		t.Fatalf("%+v, %v", m, err)
	}
	layers, err := images[0].Layers()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := layers[0].DiffID(); got == (v1.Hash{}) {
		t.Error("a layer has no diff ID")
	}
}

func digest(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}
