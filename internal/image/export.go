package image

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/fault"
)

// An Offer is an image that comes from elsewhere than a registry.
type Offer struct {
	Names  []string      // that it is to have: "registry/name:tag", "registry/name@digest"
	Digest digest.Digest // of its manifest, or of an index
	Source Source
}

// Import adds an image, as Pull does: it is verified, durable and visible when
// Import returns nil, else nothing is. It takes the names away from any other
// image. No verifier is asked: who can read the source has it.
//
// Invalid for a bad name; Unknown for content that is not as its digest says.
func (s *Store) Import(ctx context.Context, o Offer, options PullOptions) (_ Image, err error) {
	shown := o.Digest.String()
	for _, name := range o.Names {
		named, err := parseRef(name)
		if err != nil {
			return Image{}, err
		}
		if lookupName(named) != name {
			return Image{}, fault.New(fault.Invalid, "", "image reference %q is not as %s", name, lookupName(named))
		}
	}
	if len(o.Names) > 0 {
		shown = o.Names[0]
	}
	p := &pull{store: s, from: o.Source, names: o.Names, progress: options.Progress, tracked: s.pulls.begin(shown)}
	defer func() { p.tracked.end(err) }()
	if _, err := p.resolve(ctx, shown, o.Digest.String(), options.Platform); err != nil {
		return Image{}, err
	}
	return p.run(ctx)
}

// An Export is an image that is being copied elsewhere. Its layers stay until
// it is closed.
type Export struct {
	Image
	ConfigBytes []byte          // whose digest is the image's ID
	DiffIDs     []digest.Digest // the lowest first

	store *Store
	pins  []string
}

// Export finds an image as Get does, and keeps its layers. The caller closes it.
// Unimplemented for an artifact.
func (s *Store) Export(ref string) (*Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view.Load()
	e, err := v.find(ref)
	if err != nil {
		return nil, err
	}
	if e.Artifact != "" {
		return nil, fault.New(fault.Unimplemented, "", "%s is an artifact of type %.100q; only images can be saved", ref, e.Artifact)
	}
	x := &Export{Image: e.Image, ConfigBytes: v.images[e.ID].Config, DiffIDs: e.Image.Config.RootFS.DiffIDs, store: s, pins: e.layers}
	for _, id := range x.pins {
		s.use.pins[id]++
	}
	return x, nil
}

// Close lets the layers go.
func (x *Export) Close() {
	if err := x.store.unpin(x.pins); err != nil {
		x.store.config.Log.Warn("removing layers after an export", "image", x.ID, "error", err)
	}
}

// Layer writes the stream that a layer was made of, and tells whether it is an
// EROFS image instead of a tar stream. What it writes may be wrong if it returns
// an error: the digest is compared last.
//
// Unimplemented for a layer that is kept in a way that does not tell.
func (x *Export) Layer(ctx context.Context, diffID digest.Digest, w io.Writer) (native bool, err error) {
	if !slices.Contains(x.pins, diffID.String()) {
		return false, fault.New(fault.NotFound, "", "layer %s is none of image %s", diffID, x.ID)
	}
	return x.store.layers.Stream(ctx, diffID.String(), w)
}

// NameFor returns the tags that an image is saved under if ref was asked for:
// that one if it is a tag, else all of them.
func (x *Export) NameFor(ref string) []string {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		if name := lookupName(named); slices.Contains(x.RepoTags, name) && !strings.Contains(name, "@") {
			return []string{name}
		}
	}
	return x.RepoTags
}
