package image

import (
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/davit-runtime/davit/internal/fault"
)

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
