package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/span"
)

// maxParts bounds what an image's configuration, which stays in memory, can
// make of itself there: "{}", an entry of its history, is 64 bytes then.
const maxParts = 1 << 16

// maxLayers is what overlayfs stacks, less one for a mending layer.
const maxLayers = 499

// Pull fetches what ref names, unless it is there, and names it so. It always
// asks the registry for the manifest, with the caller's credentials, so that
// having an image is no way around the permission to pull it.
//
// When it returns nil the image is durable and visible; otherwise nothing is.
// Errors of the registry keep their text's beginning, see package registry;
// Invalid for a bad ref, Exhausted for a full disk.
//
// CRI: api.proto, PullImage.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (_ Image, err error) {
	repo, err := s.registry.Find(ctx, ref, registry.Auth(o.Auth))
	if err != nil {
		return Image{}, err
	}
	named := repo.Named()
	p := &pull{store: s, from: repository{repo}, progress: o.Progress, tracked: s.pulls.begin(ref)}
	defer func() { p.tracked.end(err) }()
	want := ""
	switch n := named.(type) {
	case reference.Digested:
		want = n.Digest().String()
	case reference.Tagged:
		want = n.Tag()
	}
	top, err := p.resolve(ctx, named.String(), want, o.Platform)
	if err != nil {
		return Image{}, err
	}
	if s.config.Verify != nil {
		p.tracked.enter(PullVerifying)
		end := span.Step(ctx, "verify")
		err := s.config.Verify(ctx, named.String(), imagespec.Descriptor{MediaType: top.MediaType, Digest: top.Digest, Size: int64(len(top.Body))})
		end(err)
		if err != nil {
			return Image{}, err
		}
	}
	p.names = namesOf(named, top.Digest)
	return p.run(ctx)
}

// A Source has what images are made of. What it returns has been compared with
// its digest, blobs when io.EOF is returned; to tar streams the store sees.
type Source interface {
	// Manifest returns what a tag or a digest stands for.
	Manifest(ctx context.Context, want string) (*registry.Manifest, error)
	// Config returns an image's configuration.
	Config(ctx context.Context, d imagespec.Descriptor) ([]byte, error)
	// Layer opens a layer: its blob, or the tar stream that this is made of.
	// The caller closes it.
	Layer(ctx context.Context, d imagespec.Descriptor, diffID digest.Digest) (io.ReadCloser, error)
}

// A repository is one of a registry as a source.
type repository struct{ *registry.Repository }

// Layer implements Source.
func (r repository) Layer(ctx context.Context, d imagespec.Descriptor, _ digest.Digest) (io.ReadCloser, error) {
	return r.Blob(ctx, d)
}

// parseRef reads a reference as Docker does: "busybox" is
// docker.io/library/busybox:latest.
func parseRef(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "image reference %q: %w", ref, err)
	}
	return reference.TagNameOnly(named), nil
}

// namesOf returns the names that a pulled image gets. With a digest in the
// reference a tag says nothing: nobody checked that it means that digest.
func namesOf(named reference.Named, top digest.Digest) []string {
	names := []string{named.Name() + "@" + top.String()}
	if _, digested := named.(reference.Digested); !digested {
		names = append(names, named.String())
	}
	return names
}

// A pull is one call of Pull or Import.
type pull struct {
	store    *Store
	from     Source
	manifest *registry.Manifest // set by resolve
	names    []string
	progress func(Progress)
	mu       sync.Mutex // calls of progress
	tracked  *tracked
}

// resolve fetches the manifest of the image for a platform. It returns what
// want itself, a tag or a digest, stands for: that manifest or an index.
func (p *pull) resolve(ctx context.Context, name, want, platform string) (top *registry.Manifest, err error) {
	defer span.Step(ctx, "manifest")()
	mine := p.store.platform
	if platform != "" {
		if mine, err = parsePlatform(platform); err != nil {
			return nil, err
		}
	}
	const deepest = 4
	for range deepest {
		m, err := p.from.Manifest(ctx, want)
		if err != nil {
			return nil, err
		}
		if top == nil {
			top = m
		}
		if m.Manifests == nil {
			p.manifest = m
			return top, nil
		}
		choice, ok := choose(mountable(m.Manifests, p.store.layers.Adopts()), mine)
		if ok && choice.Platform == nil {
			choice, ok, err = p.chooseByConfig(ctx, m.Manifests, mine)
		}
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fault.New(fault.NotFound, "", "%s has no image for %s, only for %s", name, formatPlatform(mine), platforms(m.Manifests))
		}
		want = choice.Digest.String()
	}
	return nil, fault.New(fault.Unknown, "", "%s is an index of indexes of indexes", name)
}

// mountable leaves out, of an index, images of EROFS layers unless those can be
// mounted: there may be others.
//
// erofs-image-spec: spec.md, 5.4.
func mountable(all []imagespec.Descriptor, adopts bool) []imagespec.Descriptor {
	if adopts {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(d imagespec.Descriptor) bool {
		return d.Platform != nil && slices.Contains(d.Platform.OSFeatures, "erofs")
	})
}

func (p *pull) run(ctx context.Context) (Image, error) {
	s := p.store
	r := record{Manifest: p.manifest.Body, PulledAt: time.Now()}
	id, list, done, err := p.contents(ctx, &r)
	if err != nil {
		return Image{}, err
	}
	defer done()
	p.tracked.fetching(list)
	pinned := make([]string, 0, len(list)+1)
	for _, w := range list {
		pinned = append(pinned, w.id)
	}
	pinned = append(pinned, mendID(list))
	s.pin(pinned)
	infos, err := p.obtain(ctx, list)
	if err == nil {
		p.tracked.enter(PullCommitting)
		err = p.commit(ctx, id, &r, list, infos)
	}
	if err := s.unpin(pinned); err != nil {
		s.config.Log.Warn("removing layers after a pull", "image", id, "error", err)
	}
	if err != nil {
		return Image{}, err
	}
	return s.Get(id)
}

// contents returns the image's ID and layers, the topmost first, and completes
// its record. done is obtainConfig's.
func (p *pull) contents(ctx context.Context, r *record) (id string, list []wanted, done func(), err error) {
	if isArtifact(p.manifest) {
		list, err = p.files()
		return r.identity().String(), list, func() {}, err
	}
	if err := checkLayers(p.manifest); err != nil {
		return "", nil, nil, err
	}
	if r.Config, done, err = p.store.obtainConfig(ctx, p.manifest.Config, p.from); err != nil {
		return "", nil, nil, err
	}
	config, err := parseConfig(r.Config)
	if err == nil {
		r.parsed = &config
		list, err = p.wanted(config)
	}
	if err != nil {
		done()
	}
	return p.manifest.Config.Digest.String(), list, done, err
}

// wanted returns the image's layers, topmost first. One that is there twice
// counts once, as the upper of the two: whatever the lower one has to show or
// to hide, the upper one shows or hides above it.
func (p *pull) wanted(config imagespec.Image) ([]wanted, error) {
	blobs, diffs := p.manifest.Layers, config.RootFS.DiffIDs
	if len(blobs) != len(diffs) {
		return nil, fault.New(fault.Unknown, "", "image %s has %d layers, but its configuration%s says %d",
			p.manifest.Config.Digest, len(blobs), strangeType(p.manifest.Config.MediaType), len(diffs))
	}
	var list []wanted
	seen := map[digest.Digest]bool{}
	for i := len(blobs) - 1; i >= 0; i-- {
		if err := diffs[i].Validate(); err != nil {
			return nil, fault.New(fault.Unknown, "", "image %s has the diff ID %.100q: %w", p.manifest.Config.Digest, diffs[i], err)
		}
		if !seen[diffs[i]] && !isHint(blobs[i].MediaType) {
			seen[diffs[i]] = true
			list = append(list, wanted{Descriptor: blobs[i], id: diffs[i].String(), from: p.from})
		}
	}
	return list, nil
}

func (w wanted) diffID() digest.Digest { return digest.Digest(w.id) }

// checkLayers tells images from artifacts, which registries keep in manifests,
// too, before anything of those is fetched.
func checkLayers(m *registry.Manifest) error {
	if len(m.Layers) > maxLayers {
		return fault.New(fault.Unimplemented, "", "image %s has %d layers; at most %d can be stacked", m.Config.Digest, len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if role := otherRole(l); role != "" {
			return fault.New(fault.Unimplemented, "", "manifest %s has a layer %s for the use %.100q, which is not supported", m.Digest, l.Digest, role)
		}
		if !isLayer(l.MediaType) && !isHint(l.MediaType) {
			return fault.New(fault.Unimplemented, "", "manifest %s, with a configuration%s, is of no image that containers are made of: it has a layer of type %.100q",
				m.Digest, strangeType(m.Config.MediaType), l.MediaType)
		}
	}
	return nil
}

// strangeType tells, for people, a configuration's type that is not an image's.
func strangeType(mediaType string) string {
	switch mediaType {
	case imagespec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json", "":
		return ""
	}
	return fmt.Sprintf(" of type %.100q", mediaType)
}

// isLayer tells file system layers from encrypted ones and from what is not an
// image at all. How they are compressed shows when they are read.
func isLayer(mediaType string) bool {
	for _, prefix := range []string{
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
	} {
		if rest, ok := strings.CutPrefix(mediaType, prefix); ok {
			return rest == "" || rest == ".gzip" || rest == "+gzip" || rest == ".zstd" || rest == "+zstd"
		}
	}
	return isNative(mediaType)
}

// isNative tells layers that are EROFS images from tar streams.
//
// erofs-container specification: application/vnd.erofs.layer.v1, also compressed
// as a whole. erofs-image-spec: spec.md, 2.1, application/vnd.erofs. Before
// those, any type that ends so.
func isNative(mediaType string) bool {
	base, compressed, _ := strings.Cut(mediaType, "+")
	return (base == "application/vnd.erofs.layer.v1" || strings.HasSuffix(base, ".erofs")) &&
		(compressed == "" || compressed == "gzip" || compressed == "zstd")
}

// isHint tells what stands among layers and is none: who does not read parts of
// layers passes it over.
//
// erofs-image-spec: spec.md, 2.2.
func isHint(mediaType string) bool { return mediaType == "application/vnd.erofs.chunk-index.v1" }

// otherRole returns what a layer is for if it is not to be stacked as it is; empty
// if it is.
//
// erofs-image-spec: spec.md, 2.4.
func otherRole(l imagespec.Descriptor) string {
	if role := l.Annotations["org.erofs.role"]; role != "overlay-lower" {
		return role
	}
	return ""
}

// obtain gets all layers. The largest is unpacked first, since it takes the
// longest: turns are in the order in which flights are sought.
func (p *pull) obtain(ctx context.Context, list []wanted) (map[string]layer.Info, error) {
	defer span.Step(ctx, "layers")()
	order := slices.Clone(list)
	slices.SortStableFunc(order, func(a, b wanted) int { return cmp.Compare(b.Size, a.Size) })
	infos := make(map[string]layer.Info, len(list))
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	for _, w := range order {
		b := p.store.seek(gctx, w)
		g.Go(func() error {
			info, err := p.store.obtain(gctx, w, b, p.reporter(w))
			mu.Lock()
			defer mu.Unlock()
			infos[w.id] = info
			return err
		})
	}
	err := g.Wait()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	return infos, err
}

// reporter passes on what is new.
func (p *pull) reporter(w wanted) func(Phase, int64) {
	last := Progress{Total: -1}
	return func(phase Phase, bytes int64) {
		now := Progress{Layer: w.Digest.String(), Phase: phase, Bytes: bytes, Total: w.Size}
		p.tracked.layer(now)
		if p.progress == nil || now == last {
			return
		}
		last = now
		p.mu.Lock()
		defer p.mu.Unlock()
		p.progress(now)
	}
}

// commit writes the image down, once all its layers are durable.
func (p *pull) commit(ctx context.Context, id string, r *record, list []wanted, infos map[string]layer.Info) error {
	defer span.Step(ctx, "commit")()
	s := p.store
	for _, w := range list {
		r.Layers = append(r.Layers, w.id)
	}
	mend, info, err := p.mend(ctx, list, infos)
	if err != nil {
		return err
	}
	if mend != "" {
		r.Layers = append([]string{mend}, r.Layers...)
		infos[mend] = info
	}
	known := s.view.Load().layers
	isKnown := func(id string) bool { _, ok := known[id]; return ok }
	if fresh := slices.DeleteFunc(slices.Clone(r.Layers), isKnown); len(fresh) > 0 {
		if err := s.layers.Sync(fresh); err != nil {
			return err
		}
	}
	release, err := s.takeCommit(ctx)
	if err != nil {
		return err
	}
	defer release()
	if id := s.gone(r.Layers); id != "" {
		return fault.New(fault.Unavailable, "", "layer %s turned out to be damaged meanwhile: pull again", id)
	}
	v := s.view.Load()
	if old := v.images[id]; old != nil && slices.Equal(old.Layers, r.Layers) && named(v, id, p.names) {
		return nil
	}
	c := v.naming(id, *r, p.names)
	c.layers = infos
	if err := s.db.apply(c); err != nil {
		return err
	}
	s.settle(c)
	return nil
}

func named(v *view, id string, names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		e := v.byName[name]
		return e == nil || e.ID != id
	})
}

// mend makes the layer that repairs directories' attributes, see package
// layer; empty if none is needed.
func (p *pull) mend(ctx context.Context, list []wanted, infos map[string]layer.Info) (string, layer.Info, error) {
	id := mendID(list)
	info, ok, err := p.store.present(ctx, id)
	if err != nil {
		return "", layer.Info{}, err
	}
	if ok {
		return id, info, nil
	}
	stack := make([]layer.Part, 0, len(list))
	for _, w := range list {
		stack = append(stack, layer.Part{ID: w.id, Implicit: infos[w.id].Implicit})
	}
	info, made, err := p.store.layers.Mend(ctx, id, stack)
	if err != nil || !made {
		return "", layer.Info{}, err
	}
	return id, info, nil
}

// mendID is the ID of the mending layer of a stack.
func mendID(list []wanted) string {
	var b strings.Builder
	for _, w := range list {
		b.WriteString(w.id + "\n")
	}
	return mendPrefix + digest.FromString(b.String()).Encoded()
}

const mendPrefix = "mend:"

func isMend(id string) bool { return strings.HasPrefix(id, mendPrefix) }

// parseConfig reads an image's configuration.
func parseConfig(data []byte) (imagespec.Image, error) {
	var config imagespec.Image
	if bytes.Count(data, []byte("{")) > maxParts {
		return config, fault.New(fault.Unknown, "", "the image's configuration has more than %d parts", maxParts)
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return imagespec.Image{}, fault.New(fault.Unknown, "", "the image's configuration: %w", err)
	}
	if config.OS != "" && config.OS != "linux" {
		return imagespec.Image{}, fault.New(fault.Unknown, "", "the image is for %s", fmt.Sprintf("%.40q", config.OS))
	}
	return config, nil
}
