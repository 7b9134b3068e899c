package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
)

// nativeLayer is the media type of a layer that is an EROFS image.
const nativeLayer = "application/vnd.erofs.layer.v1"

// A sink takes files.
type sink interface {
	// put writes a file of size bytes by write.
	put(name string, size int64, write func(io.Writer) error) error
}

// Save writes an archive of images, found as Store.Get does, that is an OCI
// layout and a docker-archive at once, as a tar stream. Layers are not
// compressed, and have the digests that images know them by: an image keeps its
// ID. The digest of its manifest is another one, since registries count
// compressed layers.
//
// NotFound for an image that is not present, Unimplemented if the tar stream of
// one of its layers cannot be made again.
func Save(ctx context.Context, store *image.Store, refs []string, to io.Writer) error {
	w := tar.NewWriter(to)
	if err := save(ctx, store, refs, tarSink{w}); err != nil {
		return err
	}
	return w.Close()
}

// SaveDir writes what Save does into a directory, which may have other images:
// they are no longer listed there.
func SaveDir(ctx context.Context, store *image.Store, refs []string, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return errors.Join(save(ctx, store, refs, dirSink{root}), root.Close())
}

// A saver writes one archive.
type saver struct {
	sink
	ctx     context.Context
	layers  map[digest.Digest]imagespec.Descriptor // written
	written map[string]bool                        // other files
	index   imagespec.Index
	docker  []dockerImage
	native  bool // some layer is no tar stream, which docker-archives know nothing of
}

func save(ctx context.Context, store *image.Store, refs []string, to sink) error {
	s := &saver{sink: to, ctx: ctx, layers: map[digest.Digest]imagespec.Descriptor{}, written: map[string]bool{}}
	s.index = imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex}
	for _, ref := range refs {
		x, err := store.Export(ref)
		if err != nil {
			return err
		}
		err = s.image(x, x.NameFor(ref))
		x.Close()
		if err != nil {
			return err
		}
	}
	if len(s.docker) == 0 {
		return fault.New(fault.Invalid, "", "no image to save")
	}
	_, err := s.document(imagespec.ImageIndexFile, s.index)
	if err == nil {
		_, err = s.document(imagespec.ImageLayoutFile, imagespec.ImageLayout{Version: imagespec.ImageLayoutVersion})
	}
	if err == nil && !s.native {
		_, err = s.document(dockerFile, s.docker)
	}
	return err
}

// image writes one image and lists it under names.
func (s *saver) image(x *image.Export, names []string) error {
	manifest := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, Layers: []imagespec.Descriptor{}}
	docker := dockerImage{Layers: []string{}, RepoTags: []string{}}
	for _, diffID := range x.DiffIDs {
		d, err := s.layer(x, diffID)
		if err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, d)
		docker.Layers = append(docker.Layers, blobName(d.Digest))
	}
	config := digest.Digest(x.ID)
	if err := s.bytes(blobName(config), x.ConfigBytes); err != nil {
		return err
	}
	manifest.Config = imagespec.Descriptor{MediaType: imagespec.MediaTypeImageConfig, Digest: config, Size: int64(len(x.ConfigBytes))}
	docker.Config = blobName(config)
	d, err := s.document("", manifest)
	if err != nil {
		return err
	}
	d.MediaType = imagespec.MediaTypeImageManifest
	for _, name := range names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return err
		}
		docker.RepoTags = append(docker.RepoTags, reference.FamiliarString(named))
		listed := d
		listed.Annotations = map[string]string{containerdName: name, imagespec.AnnotationRefName: name}
		s.index.Manifests = append(s.index.Manifests, listed)
	}
	if len(names) == 0 {
		s.index.Manifests = append(s.index.Manifests, d)
	}
	s.docker = append(s.docker, docker)
	return nil
}

func blobName(d digest.Digest) string {
	return path.Join(imagespec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// layer writes a layer, once it is known to be what it should be.
func (s *saver) layer(x *image.Export, diffID digest.Digest) (imagespec.Descriptor, error) {
	if d, ok := s.layers[diffID]; ok {
		return d, nil
	}
	hash := diffID.Verifier()
	c := &counter{Writer: hash}
	native, err := x.Layer(s.ctx, diffID, c)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	if !hash.Verified() {
		return imagespec.Descriptor{}, fault.New(fault.Unknown, "", "layer %s of image %s has other content than its digest says", diffID, x.ID)
	}
	d := imagespec.Descriptor{MediaType: imagespec.MediaTypeImageLayer, Digest: diffID, Size: c.n}
	if native {
		d.MediaType, s.native = nativeLayer, true
	}
	s.layers[diffID] = d
	return d, s.put(blobName(diffID), d.Size, func(w io.Writer) error {
		_, err := x.Layer(s.ctx, diffID, w)
		return err
	})
}

// document writes a file in JSON, or without a name a blob, and describes it.
func (s *saver) document(name string, v any) (imagespec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	d := imagespec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if name == "" {
		name = blobName(d.Digest)
	}
	return d, s.bytes(name, data)
}

func (s *saver) bytes(name string, data []byte) error {
	if s.written[name] { // of another image, too
		return nil
	}
	s.written[name] = true
	return s.put(name, int64(len(data)), func(w io.Writer) error {
		_, err := bytes.NewReader(data).WriteTo(w)
		return err
	})
}

// A counter counts what is written.
type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	return n, err
}

// A tarSink writes into a tar stream.

type tarSink struct{ w *tar.Writer }

func (t tarSink) put(name string, size int64, write func(io.Writer) error) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	return write(t.w)
}

// A dirSink writes into a directory.
type dirSink struct{ root *os.Root }

func (d dirSink) put(name string, _ int64, write func(io.Writer) error) error {
	var parents []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		parents = append(parents, dir)
	}
	for _, dir := range slices.Backward(parents) {
		if err := d.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	f, err := d.root.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
