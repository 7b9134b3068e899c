package archive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry"
)

// A dockerImage is an element of a docker-archive's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string // names of files, the lowest first
}

// dockerFile is what makes a tree a docker-archive.
const dockerFile = "manifest.json"

// A made source has manifests that were made up for images that came without.
type made struct {
	tree
	manifests map[string][]byte // by digest
	configs   map[string][]byte
	layers    map[digest.Digest]string // by diff ID, the file's name
}

// docker returns the images of a docker-archive.
func docker(t tree) (*Archive, error) {
	var list []dockerImage
	_, err := readJSON(t, dockerFile, &list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Invalid, "", "this is neither an OCI image layout nor a docker-archive: it has no %s and no %s", imagespec.ImageIndexFile, dockerFile)
	}
	if err != nil {
		return nil, err
	}
	m := &made{tree: t, manifests: map[string][]byte{}, configs: map[string][]byte{}, layers: map[digest.Digest]string{}}
	found := offers{source: m}
	for _, one := range list {
		d, err := m.add(one)
		if err != nil {
			return nil, err
		}
		found.add(d, nil, false)
		for _, tag := range one.RepoTags {
			if name, ok := fullName(tag); ok {
				found.add(d, name, false)
			}
		}
	}
	if len(found.all) == 0 {
		return nil, fault.New(fault.Invalid, "", "the archive has no image")
	}
	return &Archive{Offers: found.all}, nil
}

// add makes the manifest of an image and returns its digest.
func (m *made) add(one dockerImage) (digest.Digest, error) {
	var config imagespec.Image
	data, err := readJSON(m.tree, one.Config, &config)
	if err != nil {
		return "", missing(one.Config, err)
	}
	if len(one.Layers) != len(config.RootFS.DiffIDs) {
		return "", fault.New(fault.Unknown, "", "%s has %d layers, but its configuration says %d", one.Config, len(one.Layers), len(config.RootFS.DiffIDs))
	}
	manifest := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, Layers: []imagespec.Descriptor{}}
	manifest.Config = imagespec.Descriptor{MediaType: imagespec.MediaTypeImageConfig, Digest: digest.FromBytes(data), Size: int64(len(data))}
	for i, file := range one.Layers {
		diffID := config.RootFS.DiffIDs[i]
		d, err := m.layer(file, diffID)
		if err != nil {
			return "", missing(file, err)
		}
		manifest.Layers = append(manifest.Layers, d)
		m.layers[diffID] = file
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	m.configs[manifest.Config.Digest.String()] = data
	d := digest.FromBytes(body)
	m.manifests[d.String()] = body
	return d, nil
}

func missing(file string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unknown, "", "the archive has no %.200q, though its %s names it", file, dockerFile)
	}
	return err
}

// layer describes a layer's file. That of one that is not compressed is known
// without reading it: what it is is found out when it is imported.
func (m *made) layer(file string, diffID digest.Digest) (imagespec.Descriptor, error) {
	if err := diffID.Validate(); err != nil {
		return imagespec.Descriptor{}, fault.New(fault.Unknown, "", "diff ID %.100q: %w", diffID, err)
	}
	f, size, err := m.open(file)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	d := imagespec.Descriptor{MediaType: imagespec.MediaTypeImageLayer, Digest: diffID, Size: size}
	switch compression(r) {
	case "gzip":
		d.MediaType = imagespec.MediaTypeImageLayerGzip
	case "zstd":
		d.MediaType = imagespec.MediaTypeImageLayerZstd
	default:
		return d, nil
	}
	d.Digest, err = digest.FromReader(r)
	return d, err
}

// Manifest implements image.Source.
func (m *made) Manifest(_ context.Context, want string) (*registry.Manifest, error) {
	body, ok := m.manifests[want]
	if !ok {
		return nil, fault.New(fault.NotFound, "", "the archive has no manifest %.100q", want)
	}
	return registry.ReadManifest(digest.Digest(want), body)
}

// Config implements image.Source.
func (m *made) Config(_ context.Context, d imagespec.Descriptor) ([]byte, error) {
	data, ok := m.configs[d.Digest.String()]
	if !ok {
		return nil, fault.New(fault.NotFound, "", "the archive has no configuration %s", d.Digest)
	}
	return data, nil
}

// Layer implements image.Source.
func (m *made) Layer(_ context.Context, _ imagespec.Descriptor, diffID digest.Digest) (io.ReadCloser, error) {
	f, _, err := m.open(m.layers[diffID])
	return f, err
}
