package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry"
)

// An artifact is a manifest of files that make no file system: a model, a policy,
// a chart. It is kept as images are, but has no configuration, so that its ID is
// its manifest's digest. Each of its blobs is a layer with one file, and
// stacked they are what a container sees of it as a volume.
//
// image-spec: manifest.md, "Guidelines for Artifact Usage"; kubernetes: KEP-4639.

// isArtifact tells artifacts from images. Where the configuration is of a type
// that is not an image's, but all layers could be, it may be an old image's.
func isArtifact(m *registry.Manifest) bool {
	noLayer := func(d imagespec.Descriptor) bool { return !isLayer(d.MediaType) && !isHint(d.MediaType) }
	return strangeType(m.Config.MediaType) != "" &&
		(m.Config.MediaType == imagespec.MediaTypeEmptyJSON || slices.ContainsFunc(m.Layers, noLayer))
}

// artifactType returns the type of an artifact, by its manifest.
func artifactType(manifest []byte) string {
	var m imagespec.Manifest
	_ = json.Unmarshal(manifest, &m) // checked when it was pulled
	return cmp.Or(m.ArtifactType, m.Config.MediaType, "unknown")
}

func (r *record) isArtifact() bool { return len(r.Config) == 0 }

// identified is what the image's ID is the digest of.
func (r *record) identified() []byte {
	if r.isArtifact() {
		return r.Manifest
	}
	return r.Config
}

func (r *record) identity() digest.Digest { return digest.FromBytes(r.identified()) }

// files returns an artifact's layers, topmost first: of files of one name the
// last counts. The empty object stands for no file.
func (p *pull) files() ([]wanted, error) {
	m := p.manifest
	var list []wanted
	for _, d := range slices.Backward(m.Layers) {
		if d.MediaType == imagespec.MediaTypeEmptyJSON {
			continue
		}
		name, err := fileName(d)
		if err != nil {
			return nil, err
		}
		w := wanted{Descriptor: d, id: fileID(name, d.Digest), from: p.from, file: name}
		if !slices.ContainsFunc(list, func(other wanted) bool { return other.id == w.id }) {
			list = append(list, w)
		}
		if len(list) > maxLayers {
			return nil, fault.New(fault.Unimplemented, "", "artifact %s has more than %d files, which cannot be stacked", m.Digest, maxLayers)
		}
	}
	return list, nil
}

// fileID is the ID of the layer that a file of an artifact is.
func fileID(name string, d digest.Digest) string {
	return "file:" + digest.FromString(name+"\n"+d.String()).Encoded()
}

// fileName is what a blob of an artifact is called in the volume: its title, which
// may have directories, else its digest.
func fileName(d imagespec.Descriptor) (string, error) {
	title := d.Annotations[imagespec.AnnotationTitle]
	if title == "" {
		return strings.Replace(d.Digest.String(), ":", "-", 1), nil
	}
	name := path.Clean(title)
	hides := func(part string) bool { return strings.HasPrefix(part, ".wh.") } // it would in a layer
	if name == "." || !filepath.IsLocal(name) || strings.Contains(name, "\x00") || slices.ContainsFunc(strings.Split(name, "/"), hides) {
		return "", fault.New(fault.Unknown, "", "a file of the artifact is called %.200q, which no file in a volume can be", title)
	}
	return name, nil
}

// fileStream is the tar stream of one file, of content that is size bytes, and
// of the directories above it.
func fileStream(name string, size int64, content io.Reader) (io.Reader, error) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	dirs := []string{"./"}
	for i, c := range name {
		if c == '/' {
			dirs = append(dirs, name[:i+1])
		}
	}
	for _, dir := range dirs {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, fault.New(fault.Unknown, "", "a file of the artifact is called %.200q: %w", name, err)
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return nil, fault.New(fault.Unknown, "", "a file of the artifact is called %.200q: %w", name, err)
	}
	const record, end = 512, 1024
	padding := (record-size%record)%record + end
	return io.MultiReader(&head, content, bytes.NewReader(make([]byte, padding))), nil
}
