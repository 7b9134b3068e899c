package archive

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/inflate"
	"github.com/davit-runtime/davit/internal/registry"
)

// Storage returns the images that are in the store of containers/storage in
// root ("/var/lib/containers/storage"), which CRI-O, Podman and Buildah share,
// whether they run or not. There layers are directories, and beside each is
// what makes its exact tar stream of it again.
//
// NotFound without a store of the overlay driver.
//
// containers/storage: images.go, layers.go
func Storage(root string) (*Archive, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, fault.New(fault.NotFound, "", "%s is no store of containers/storage: %w", root, err)
	}
	s := &storageRoot{tree: directory{dir}, root: root, layers: map[digest.Digest]string{}, images: map[string]storageImage{}}
	found := offers{source: s}
	if err := s.read(&found); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return &Archive{Offers: found.all, close: dir.Close}, nil
}

// A storageRoot is such a store as a source.
type storageRoot struct {
	tree
	root   string
	layers map[digest.Digest]string // by diff ID, the store's own ID
	images map[string]storageImage  // by digest of a manifest, or of a configuration
}

type storageImage struct {
	ID      string
	Digest  digest.Digest
	Names   []string
	BigData []string `json:"big-data-names"`
}

type storageLayer struct {
	ID     string
	Diff   digest.Digest `json:"diff-digest"`
	Digest digest.Digest `json:"compressed-diff-digest"`
}

func (s *storageRoot) read(found *offers) error {
	var images []storageImage
	if err := s.list("overlay-images/images.json", &images); err != nil {
		return err
	}
	var layers []storageLayer
	if err := s.list("overlay-layers/layers.json", &layers); err != nil {
		return err
	}
	for _, l := range layers {
		if l.Diff != "" && plainName(l.ID) {
			s.layers[l.Diff] = l.ID
		}
	}
	for _, i := range images {
		if !plainName(i.ID) || i.Digest.Validate() != nil {
			continue
		}
		s.images[i.Digest.String()], s.images["sha256:"+i.ID] = i, i
		found.add(i.Digest, nil, false)
		for _, text := range i.Names {
			name, ok := fullName(text)
			if !ok {
				continue
			}
			found.add(i.Digest, name, s.has(i, "manifest-"+i.Digest.String(), i.Digest) || s.has(i, "manifest", i.Digest))
			// It may have been asked for by the digest of an index, which is kept, too.
			for _, data := range i.BigData {
				if d, ok := strings.CutPrefix(data, "manifest-"); ok && s.has(i, data, digest.Digest(d)) {
					found.name(found.at[i.Digest], name.Name()+"@"+d)
				}
			}
		}
	}
	return nil
}

// list reads one of the store's lists, which are as long as there are images.
func (s *storageRoot) list(name string, to any) error {
	f, _, err := s.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "", "%s is no store of containers/storage with the overlay driver: %w", s.root, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, 1<<30)).Decode(to); err != nil {
		return fault.New(fault.Unknown, "", "%s of %s: %w", name, s.root, err)
	}
	return nil
}

func plainName(name string) bool { return name != "" && !strings.ContainsAny(name, "/.") }

// has reports whether an image has a document of that digest.
func (s *storageRoot) has(i storageImage, data string, d digest.Digest) bool {
	if d.Validate() != nil {
		return false
	}
	body, err := s.data(i, data)
	return err == nil && d.Algorithm().FromBytes(body) == d
}

// data returns one of the documents that are kept with an image.
//
// containers/storage: images.go, makeBigDataBaseName
func (s *storageRoot) data(i storageImage, name string) ([]byte, error) {
	file := name
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
		file = "=" + base64.StdEncoding.EncodeToString([]byte(name))
	}
	return readFile(s.tree, path.Join("overlay-images", i.ID, file))
}

// Manifest implements image.Source. It is the image's own, also where the image
// was asked for by an index.
func (s *storageRoot) Manifest(_ context.Context, want string) (*registry.Manifest, error) {
	i, ok := s.images[want]
	if !ok {
		return nil, fault.New(fault.NotFound, "", "%s has no manifest %.100q", s.root, want)
	}
	for _, name := range []string{"manifest-" + want, "manifest"} {
		if s.has(i, name, digest.Digest(want)) {
			body, err := s.data(i, name)
			if err != nil {
				return nil, err
			}
			m, err := registry.ReadManifest(digest.Digest(want), body)
			if err != nil || m.Manifests == nil {
				return m, err
			}
		}
	}
	// The image is known by its index; what it was made of is "manifest".
	body, err := s.data(i, "manifest")
	if err != nil {
		return nil, fault.New(fault.Unknown, "", "the manifest of image %s: %w", i.ID, err)
	}
	return registry.ReadManifest(digest.FromBytes(body), body)
}

// Config implements image.Source.
func (s *storageRoot) Config(_ context.Context, d imagespec.Descriptor) ([]byte, error) {
	i, ok := s.images[d.Digest.String()]
	if !ok {
		return nil, fault.New(fault.NotFound, "", "%s has no configuration %s", s.root, d.Digest)
	}
	body, err := s.data(i, d.Digest.String())
	if err == nil && d.Digest.Algorithm().FromBytes(body) != d.Digest {
		err = fault.New(fault.Unknown, "", "configuration %s has other content", d.Digest)
	}
	return body, err
}

// Layer implements image.Source: it returns the tar stream.
func (s *storageRoot) Layer(_ context.Context, _ imagespec.Descriptor, diffID digest.Digest) (io.ReadCloser, error) {
	id, ok := s.layers[diffID]
	if !ok {
		return nil, fault.New(fault.NotFound, "", "%s has no layer %s", s.root, diffID)
	}
	recipe, _, err := s.open("overlay-layers/" + id + ".tar-split.gz")
	if err != nil {
		return nil, fault.New(fault.NotFound, "", "%s does not have what makes the tar stream of layer %s again: %w", s.root, id, err)
	}
	unzipped, err := inflate.NewReader(recipe)
	if err != nil {
		return nil, errors.Join(fault.New(fault.Unknown, "", "what makes the tar stream of layer %s again: %w", id, err), recipe.Close())
	}
	r, w := io.Pipe()
	t := &tarStream{PipeReader: r, ended: make(chan struct{})}
	go func() { // Close waits for it
		defer close(t.ended)
		defer recipe.Close()
		err := asm.WriteOutputTarStream(content{filepath.Join(s.root, "overlay", id, "diff")}, storage.NewJSONUnpacker(unzipped), w)
		if err != nil && fault.KindOf(err) == fault.Internal {
			err = fault.New(fault.Unknown, "", "the tar stream of layer %s cannot be made again: %w", id, err)
		}
		_ = w.CloseWithError(err)
	}()
	return t, nil
}

// A tarStream is one that is being made.
type tarStream struct {
	*io.PipeReader
	ended chan struct{}
}

// Close implements io.Closer.
func (t *tarStream) Close() error {
	err := t.PipeReader.Close()
	<-t.ended
	return err
}

// content is the files of a layer in a directory.
type content struct{ dir string }

// Get implements storage.FileGetter. A symbolic link in a layer leads nowhere
// but into the layer, and what is no file is not opened.
func (c content) Get(name string) (io.ReadCloser, error) {
	handle, err := pathrs.OpenInRoot(c.dir, name)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is no file", name)
	}
	return pathrs.Reopen(handle, unix.O_RDONLY)
}
