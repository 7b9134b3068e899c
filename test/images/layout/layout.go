// Package layout makes directories in the OCI image layout, and serves them as
// a registry, for programs that judge how images are pulled.
package layout

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// A Dir is a directory in the OCI image layout.
type Dir string

// A Layer is one layer as it lies in a Dir.
type Layer struct {
	DiffID  digest.Digest
	Bytes   int64 // of the tar stream
	Entries int
	Blobs   []imagespec.Descriptor // one for each compression asked for
}

// compressions is what Layer can do.
var compressions = map[string]struct {
	mediaType string
	writer    func(io.Writer) (io.WriteCloser, error)
}{
	"gzip": {imagespec.MediaTypeImageLayerGzip, func(w io.Writer) (io.WriteCloser, error) {
		return gzip.NewWriterLevel(w, gzip.DefaultCompression)
	}},
	"zstd": {imagespec.MediaTypeImageLayerZstd, func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	}},
}

// A TarWriter counts the entries of a layer being made.
type TarWriter struct {
	*tar.Writer
	entries int
}

// WriteHeader is that of tar.Writer.
func (w *TarWriter) WriteHeader(h *tar.Header) error {
	w.entries++
	return w.Writer.WriteHeader(h)
}

// Layer makes a layer of what write writes, as one blob for each of the named
// compressions, "gzip" and "zstd".
func (d Dir) Layer(write func(*TarWriter) error, names ...string) (Layer, error) {
	var l Layer
	var sinks []io.Writer
	var pipes []*io.PipeWriter
	var group errgroup.Group
	l.Blobs = make([]imagespec.Descriptor, len(names))
	for i, name := range names {
		reader, writer := io.Pipe()
		pipes, sinks = append(pipes, writer), append(sinks, writer)
		group.Go(func() (err error) {
			l.Blobs[i], err = d.compress(reader, name)
			reader.CloseWithError(err)
			return err
		})
	}
	sum := sha256.New()
	count := new(counter)
	tw := &TarWriter{Writer: tar.NewWriter(io.MultiWriter(append(sinks, sum, count)...))}
	err := write(tw)
	if err == nil {
		err = tw.Close()
	}
	for _, p := range pipes {
		p.CloseWithError(err) // nil: the end
	}
	if failed := group.Wait(); err == nil {
		err = failed
	}
	l.DiffID, l.Bytes, l.Entries = digest.NewDigest(digest.SHA256, sum), int64(*count), tw.entries
	return l, err
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func (d Dir) compress(r io.Reader, name string) (imagespec.Descriptor, error) {
	c, ok := compressions[name]
	if !ok {
		return imagespec.Descriptor{}, fmt.Errorf("unknown compression %q", name)
	}
	return d.blob(c.mediaType, func(w io.Writer) error {
		z, err := c.writer(w)
		if err != nil {
			return err
		}
		if _, err := io.Copy(z, r); err != nil {
			return err
		}
		return z.Close()
	})
}

// blob stores what write writes by its digest.
func (d Dir) blob(mediaType string, write func(io.Writer) error) (imagespec.Descriptor, error) {
	dir := filepath.Join(string(d), "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return imagespec.Descriptor{}, err
	}
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	defer f.Close()
	sum := sha256.New()
	count := new(counter)
	if err := write(io.MultiWriter(f, sum, count)); err != nil {
		_ = os.Remove(f.Name())
		return imagespec.Descriptor{}, err
	}
	id := digest.NewDigest(digest.SHA256, sum)
	return imagespec.Descriptor{MediaType: mediaType, Digest: id, Size: int64(*count)}, os.Rename(f.Name(), d.path(id))
}

func (d Dir) path(id digest.Digest) string {
	return filepath.Join(string(d), "blobs", id.Algorithm().String(), id.Encoded())
}

func (d Dir) json(mediaType string, v any) (imagespec.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	return d.blob(mediaType, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(text))
		return err
	})
}

// Image makes an image of layers, of their blob number which, and gives it a
// tag. It returns the digest of its configuration.
func (d Dir) Image(tag string, which int, config imagespec.Image, layers []Layer) (digest.Digest, error) {
	m := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
	config.RootFS = imagespec.RootFS{Type: "layers"}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, l.Blobs[which])
	}
	var err error
	if m.Config, err = d.json(imagespec.MediaTypeImageConfig, config); err != nil {
		return "", err
	}
	manifest, err := d.json(imagespec.MediaTypeImageManifest, m)
	if err != nil {
		return "", err
	}
	manifest.Annotations = map[string]string{imagespec.AnnotationRefName: tag}
	index, err := d.index()
	if err != nil {
		return "", err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(m imagespec.Descriptor) bool { return m.Annotations[imagespec.AnnotationRefName] == tag })
	index.Manifests = append(index.Manifests, manifest)
	text, err := json.Marshal(index)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(string(d), imagespec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return "", err
	}
	return m.Config.Digest, os.WriteFile(filepath.Join(string(d), imagespec.ImageIndexFile), text, 0o644)
}

func (d Dir) index() (imagespec.Index, error) {
	index := imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex}
	text, err := os.ReadFile(filepath.Join(string(d), imagespec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return index, err
	}
	return index, json.Unmarshal(text, &index)
}

// Manifest returns the manifest that has a tag.
func (d Dir) Manifest(tag string) (m imagespec.Manifest, err error) {
	index, err := d.index()
	if err != nil {
		return m, err
	}
	for _, candidate := range index.Manifests {
		if candidate.Annotations[imagespec.AnnotationRefName] != tag {
			continue
		}
		text, err := os.ReadFile(d.path(candidate.Digest))
		if err != nil {
			return m, err
		}
		return m, json.Unmarshal(text, &m)
	}
	return m, fmt.Errorf("%s has no image %s", d, tag)
}
