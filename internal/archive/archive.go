// Package archive reads and writes images elsewhere than in registries: OCI
// image layouts, as directories and as tar files, and docker-archives; and it
// reads the stores of containerd and of containers/storage (CRI-O, Podman),
// whether those run or not, without a network and without changing anything.
//
// What is read is hostile until its digest was compared: documents here, layers
// by package image, which takes the images. Nothing of an archive ever names a
// file of the host. Programs that serve users call it.
package archive

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/registry"
)

// An Archive has images to import.
type Archive struct {
	Offers []image.Offer
	close  func() error
}

// Close ends it. Its images cannot be imported any more.
func (a *Archive) Close() error {
	if a.close == nil {
		return nil
	}
	return a.close()
}

const (
	maxDocument = 8 << 20 // an index, a manifest, a configuration
	maxImages   = 1 << 16 // in one archive
)

// A tree has files by their slash-separated names.
type tree interface {
	// open returns a file and its size; fs.ErrNotExist without one.
	open(name string) (io.ReadCloser, int64, error)
}

// readFile returns a small file.
func readFile(t tree, name string) ([]byte, error) {
	f, size, err := t.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxDocument {
		return nil, fault.New(fault.Unknown, "", "%s has %d bytes, more than %d", name, size, maxDocument)
	}
	return io.ReadAll(io.LimitReader(f, maxDocument))
}

// readJSON reads a small file.
func readJSON(t tree, name string, v any) ([]byte, error) {
	data, err := readFile(t, name)
	if err != nil {
		return nil, err
	}
	if strings.Count(string(data), "{") > maxImages {
		return nil, fault.New(fault.Unknown, "", "%s has more than %d parts", name, maxImages)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return nil, fault.New(fault.Unknown, "", "%s: %w", name, err)
	}
	return data, nil
}

// blobs is a source of blobs by digest: "blobs/sha256/…" of a tree.
type blobs struct {
	tree
	index []byte // one more manifest; may be nil
	owner string // for errors: whose blobs they are
}

func (b *blobs) blob(d digest.Digest) (io.ReadCloser, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, 0, fault.New(fault.Unknown, "", "blob with the digest %.100q: %w", d, err)
	}
	f, size, err := b.open("blobs/" + d.Algorithm().String() + "/" + d.Encoded())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fault.New(fault.NotFound, "", "%s has no blob %s", b.owner, d)
	}
	return f, size, err
}

// Manifest implements image.Source.
func (b *blobs) Manifest(_ context.Context, want string) (*registry.Manifest, error) {
	d := digest.Digest(want)
	if b.index != nil && d == digest.FromBytes(b.index) {
		return registry.ReadManifest(d, b.index)
	}
	data, err := b.document(d)
	if err != nil {
		return nil, err
	}
	return registry.ReadManifest(d, data)
}

// Config implements image.Source.
func (b *blobs) Config(_ context.Context, d imagespec.Descriptor) ([]byte, error) {
	return b.document(d.Digest)
}

// document returns a small blob.
func (b *blobs) document(d digest.Digest) ([]byte, error) {
	f, size, err := b.blob(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxDocument {
		return nil, fault.New(fault.Unknown, "", "blob %s has %d bytes, more than %d", d, size, maxDocument)
	}
	return io.ReadAll(verified(f, d, size))
}

// Layer implements image.Source.
func (b *blobs) Layer(_ context.Context, d imagespec.Descriptor, _ digest.Digest) (io.ReadCloser, error) {
	f, _, err := b.blob(d.Digest)
	if err != nil {
		return nil, err
	}
	return verified(f, d.Digest, d.Size), nil
}

// verified returns a reader that ends with io.EOF only if digest and size are right.
func verified(r io.ReadCloser, d digest.Digest, size int64) io.ReadCloser {
	return &verifier{ReadCloser: r, digest: d, size: size, hash: d.Verifier()}
}

type verifier struct {
	io.ReadCloser
	digest     digest.Digest
	size, read int64
	hash       digest.Verifier
}

// Read implements io.Reader.
func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	_, _ = v.hash.Write(p[:n])
	v.read += int64(n)
	if v.read > v.size || errors.Is(err, io.EOF) && v.read < v.size {
		return 0, fault.New(fault.Unknown, "", "blob %s does not have the %d bytes it should have", v.digest, v.size)
	}
	if errors.Is(err, io.EOF) && !v.hash.Verified() {
		return 0, fault.New(fault.Unknown, "", "blob %s has other content", v.digest)
	}
	return n, err
}

// fullName returns a name in full, with a tag; false for what is none.
func fullName(text string) (reference.Named, bool) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, false
	}
	if _, digested := named.(reference.Digested); digested {
		return nil, false
	}
	return reference.TagNameOnly(named), true
}

// offers collects images by digest, in the order they were first seen.
type offers struct {
	all    []image.Offer
	at     map[digest.Digest]int
	source image.Source
}

// add notes that a digest has a name; with real, also that this repository has
// it under that digest.
func (o *offers) add(d digest.Digest, name reference.Named, real bool) {
	if o.at == nil {
		o.at = map[digest.Digest]int{}
	}
	i, ok := o.at[d]
	if !ok {
		i = len(o.all)
		o.at[d] = i
		o.all = append(o.all, image.Offer{Digest: d, Source: o.source})
	}
	if name == nil {
		return
	}
	o.name(i, name.String())
	if real {
		o.name(i, name.Name()+"@"+d.String())
	}
}

func (o *offers) name(i int, name string) {
	for _, have := range o.all[i].Names {
		if have == name {
			return
		}
	}
	o.all[i].Names = append(o.all[i].Names, name)
}
