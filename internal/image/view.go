package image

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
)

// A record is an image as the database has it.
type record struct {
	Names    []string // "registry/name:tag" and "registry/name@digest"
	Layers   []string // to be stacked, topmost first, each once
	Config   []byte   // empty: this is an artifact
	Manifest []byte
	PulledAt time.Time

	parsed   *imagespec.Image // Config; set before the record is in a view
	artifact string           // its type, if it is one; likewise
}

// content is all that the database holds, by ID. Records are immutable.
type content struct {
	images map[string]*record
	layers map[string]layer.Info
}

// changes is what one transaction does.
type changes struct {
	images     map[string]*record // put
	layers     map[string]layer.Info
	dropImages []string
	dropLayers []string
	lost       map[string]*loss // images that are dropped, but not forgotten
}

// A view is the content at one moment, with what readers ask for. Immutable.
type view struct {
	content
	byName        map[string]*entry
	byID          map[string]*entry
	list          []Image
	bytes, inodes uint64
	pins          Pins
}

type entry struct {
	Image
	layers []string
}

func newView(c content, pins Pins) *view {
	v := &view{content: c, pins: pins, byName: map[string]*entry{}, byID: map[string]*entry{}}
	for id, r := range c.images {
		e := &entry{layers: r.Layers, Image: Image{ID: id, PulledAt: r.PulledAt}}
		e.SizeBytes = uint64(len(r.Config) + len(r.Manifest))
		for _, l := range r.Layers {
			e.SizeBytes += c.layers[l].Bytes
		}
		if r.parsed == nil {
			// Checked when it was pulled; an unreadable one shows as empty.
			config, _ := parseConfig(r.Config)
			r.parsed = &config
		}
		if r.isArtifact() && r.artifact == "" {
			r.artifact = artifactType(r.Manifest)
		}
		e.Image.Config, e.Artifact = *r.parsed, r.artifact
		for _, name := range slices.Sorted(slices.Values(r.Names)) {
			v.byName[name] = e
			if strings.Contains(name, "@") {
				e.RepoDigests = append(e.RepoDigests, name)
			} else {
				e.RepoTags = append(e.RepoTags, name)
			}
		}
		e.Pinned = pins.match(id, r.Names)
		v.byID[id] = e
	}
	for _, id := range slices.Sorted(maps.Keys(v.byID)) {
		v.list = append(v.list, v.byID[id].Image)
	}
	for _, info := range c.layers {
		v.bytes += info.Bytes
		v.inodes += info.Inodes
	}
	return v
}

// with returns the view after a change.
func (v *view) with(c changes) *view {
	next := content{images: maps.Clone(v.images), layers: maps.Clone(v.layers)}
	maps.Copy(next.images, c.images)
	maps.Copy(next.layers, c.layers)
	for _, id := range c.dropImages {
		delete(next.images, id)
	}
	for id := range c.lost {
		delete(next.images, id)
	}
	for _, id := range c.dropLayers {
		delete(next.layers, id)
	}
	return newView(next, v.pins)
}

// naming returns the change that puts image id with record r under names, which
// it takes away from any other image.
func (v *view) naming(id string, r record, names []string) changes {
	c := changes{images: map[string]*record{}}
	if old := v.images[id]; old != nil {
		r.Names = old.Names
		r.PulledAt = old.PulledAt
	}
	r.Names = slices.Clone(r.Names)
	for _, name := range names {
		if !slices.Contains(r.Names, name) {
			r.Names = append(r.Names, name)
		}
		if e := v.byName[name]; e != nil && e.ID != id {
			other := *v.images[e.ID]
			if changed := c.images[e.ID]; changed != nil {
				other = *changed
			}
			other.Names = slices.DeleteFunc(slices.Clone(other.Names), func(n string) bool { return n == name })
			c.images[e.ID] = &other
		}
	}
	c.images[id] = &r
	return c
}

// find implements Get. names are what a reference may mean; what Docker takes it
// for if there are none.
func (v *view) find(ref string, names ...reference.Named) (*entry, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if e := v.byID["sha256:"+hex]; e != nil {
		return e, nil
	}
	if len(names) == 0 {
		if named, err := reference.ParseNormalizedNamed(ref); err == nil {
			names = append(names, named)
		}
	}
	for _, named := range names {
		if e := v.byName[lookupName(named)]; e != nil {
			return e, nil
		}
	}
	if e, err := v.findPrefix(hex); e != nil || err != nil {
		return e, err
	}
	return nil, fault.New(fault.NotFound, "", "image %q is not present", ref)
}

// findPrefix finds an image by the first digits of its ID.
func (v *view) findPrefix(hex string) (*entry, error) {
	if len(hex) < 3 || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil, nil
	}
	var found *entry
	for id, e := range v.byID {
		if !strings.HasPrefix(id, "sha256:"+hex) {
			continue
		}
		if found != nil {
			return nil, fault.New(fault.Invalid, "", "%q is the beginning of several images' IDs", hex)
		}
		found = e
	}
	return found, nil
}

// lookupName returns the one name that a reference is looked up by: its digest
// where it has one, else its tag, by default "latest".
func lookupName(named reference.Named) string {
	if d, ok := named.(reference.Digested); ok {
		return named.Name() + "@" + d.Digest().String()
	}
	return reference.TagNameOnly(named).String()
}

// Pins are patterns of images that are to stay although nobody uses them. It is
// the kubelet that goes by it: who asks for a pinned image to be removed has it
// removed.
//
// CRI: api.proto, Image.pinned, "the runtime must oblige"
type Pins struct {
	exact []string // in full, or an image's ID
	globs []string
}

// ParsePins reads patterns: an image's name as anywhere else ("busybox" is
// docker.io/library/busybox:latest), its ID, or a name, in full or short, where
// "*" stands for any characters. Invalid for what is no name.
func ParsePins(patterns []string) (Pins, error) {
	var p Pins
	for _, pattern := range patterns {
		if strings.Contains(pattern, "*") {
			p.globs = append(p.globs, pattern)
			continue
		}
		if strings.HasPrefix(pattern, "sha256:") {
			p.exact = append(p.exact, pattern)
			continue
		}
		named, err := parseRef(pattern)
		if err != nil {
			return Pins{}, fault.New(fault.Invalid, "", "%q is neither an image's name nor a pattern of names", pattern)
		}
		p.exact = append(p.exact, lookupName(named))
	}
	return p, nil
}

// match reports whether an image with that ID and those names is pinned.
func (p *Pins) match(id string, names []string) bool {
	if slices.Contains(p.exact, id) {
		return true
	}
	for _, name := range names {
		if slices.Contains(p.exact, name) {
			return true
		}
		short := name
		if named, err := reference.ParseNormalizedNamed(name); err == nil && len(p.globs) > 0 {
			short = reference.FamiliarString(named)
		}
		for _, g := range p.globs {
			if glob(g, name) || glob(g, short) {
				return true
			}
		}
	}
	return false
}

// glob reports whether text is as pattern, where "*" stands for any characters.
func glob(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	text, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	if last == 0 {
		return text == ""
	}
	for _, part := range parts[1:last] {
		_, rest, found := strings.Cut(text, part)
		if !found {
			return false
		}
		text = rest
	}
	return strings.HasSuffix(text, parts[last])
}
