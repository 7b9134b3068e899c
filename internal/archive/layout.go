package archive

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// containerdName is the annotation of a name in full; the specification's own
// may be just a tag.
const containerdName = "io.containerd.image.name"

// find returns the images of a tree: an OCI layout's or, without one, those of
// a docker-archive.
func find(t tree) (*Archive, error) {
	var index imagespec.Index
	body, err := readJSON(t, imagespec.ImageIndexFile, &index)
	if errors.Is(err, fs.ErrNotExist) {
		return docker(t)
	}
	if err != nil {
		return nil, err
	}
	source := &blobs{tree: t, owner: "the archive"}
	found := offers{source: source}
	unnamed := 0
	for _, d := range index.Manifests {
		if err := d.Digest.Validate(); err != nil {
			return nil, fault.New(fault.Unknown, "", "%s lists the digest %.100q: %w", imagespec.ImageIndexFile, d.Digest, err)
		}
		if name, ok := nameOf(d); ok {
			found.add(d.Digest, name, true)
		} else if unnamed++; d.Platform == nil {
			found.add(d.Digest, nil, false)
		}
	}
	if len(found.all) == 0 && unnamed > 0 {
		// One image, for several platforms.
		source.index = body
		found.add(digest.FromBytes(body), nil, false)
	}
	if len(found.all) == 0 {
		return nil, fault.New(fault.Invalid, "", "the archive has no image")
	}
	return &Archive{Offers: found.all}, nil
}

// nameOf returns the name that an index gives an image.
//
// image-spec: annotations.md, org.opencontainers.image.ref.name
func nameOf(d imagespec.Descriptor) (reference.Named, bool) {
	if name, ok := fullName(d.Annotations[containerdName]); ok {
		return name, true
	}
	text := d.Annotations[imagespec.AnnotationRefName]
	if !strings.ContainsAny(text, "/:") {
		return nil, false // a tag of nobody knows what
	}
	return fullName(text)
}
