package image

import (
	"context"
	"encoding/json"
	"runtime"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"github.com/davit-runtime/davit/internal/fault"
)

// parsePlatform reads "os/arch[/variant]"; empty is this machine.
func parsePlatform(text string) (imagespec.Platform, error) {
	if text == "" {
		return imagespec.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: hostVariant()}, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] != "linux" || parts[1] == "" {
		return imagespec.Platform{}, fault.New(fault.Invalid, "", `platform %q is not "linux/arch" or "linux/arch/variant"`, text)
	}
	p := imagespec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

func formatPlatform(p imagespec.Platform) string {
	text := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		text += "/" + p.Variant
	}
	return text
}

func platforms(all []imagespec.Descriptor) string {
	var names []string
	for _, d := range all {
		if d.Platform != nil && d.Platform.OS != "unknown" {
			names = append(names, formatPlatform(*d.Platform))
		}
	}
	if len(names) == 0 {
		return "none that it names"
	}
	return strings.Join(names, ", ")
}

// hostVariant returns how new a processor this is, in the words of images:
// "v1" to "v4" for amd64, "v8" for arm64.
func hostVariant() string {
	x := cpu.X86
	switch {
	case runtime.GOARCH == "arm64":
		return "v8"
	case runtime.GOARCH != "amd64":
		return ""
	case !(x.HasSSE3 && x.HasSSSE3 && x.HasSSE41 && x.HasSSE42 && x.HasPOPCNT && x.HasCX16):
		return "v1"
	case !(x.HasAVX && x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA && x.HasOSXSAVE):
		return "v2"
	case !(x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL):
		return "v3"
	}
	return "v4"
}

// choose picks, from an index, the manifest for a platform: the newest variant
// that it can run, which on a machine without known variants is the plain one;
// the first of equals; one that says nothing of its platform as a last resort.
func choose(all []imagespec.Descriptor, want imagespec.Platform) (imagespec.Descriptor, bool) {
	best, bestRank := imagespec.Descriptor{}, 0
	for _, d := range all {
		if r := rank(d.Platform, want); r > bestRank {
			best, bestRank = d, r
		}
	}
	return best, bestRank > 0
}

// chooseByConfig picks the first manifest whose configuration tells what its
// descriptor does not: that it is an image for a platform. It looks at few.
func (p *pull) chooseByConfig(ctx context.Context, all []imagespec.Descriptor, want imagespec.Platform) (imagespec.Descriptor, bool, error) {
	looks := 8
	for _, d := range all {
		if d.Platform != nil {
			continue
		}
		if looks--; looks < 0 {
			break
		}
		ok, err := p.suits(ctx, d, want)
		if ok || err != nil {
			return d, ok, err
		}
	}
	return imagespec.Descriptor{}, false, nil
}

func (p *pull) suits(ctx context.Context, d imagespec.Descriptor, want imagespec.Platform) (bool, error) {
	m, err := p.from.Manifest(ctx, d.Digest.String())
	if err != nil || m.Manifests != nil {
		return err == nil, err
	}
	if isArtifact(m) || checkLayers(m) != nil {
		return false, nil
	}
	data, err := p.from.Config(ctx, m.Config)
	if err != nil {
		return false, err
	}
	have := imagespec.Platform{OS: want.OS, Architecture: want.Architecture} // images are not forced to tell
	if json.Unmarshal(data, &have) != nil {
		return false, nil
	}
	return rank(&have, want) > 0, nil
}

// rank is 0 for what cannot run.
func rank(have *imagespec.Platform, want imagespec.Platform) int {
	switch {
	case have == nil:
		return 1
	case have.OS != want.OS || have.Architecture != want.Architecture:
		return 0
	case have.Variant == want.Variant:
		return 100
	}
	h, w := variantLevel(have), variantLevel(&want)
	if h > w {
		return 0
	}
	return 2 + h
}

// variantLevel orders the variants of one architecture; an empty one is the
// oldest in use.
func variantLevel(p *imagespec.Platform) int {
	level := 0
	if v, ok := strings.CutPrefix(p.Variant, "v"); ok && len(v) == 1 && v[0] >= '1' && v[0] <= '9' {
		level = int(v[0] - '0')
	} else if p.Variant != "" {
		return 99 // unknown, so newer than anything
	}
	switch {
	case level == 0 && p.Architecture == "amd64":
		return 1
	case level == 0 && p.Architecture == "arm64":
		return 8
	case level == 0 && p.Architecture == "arm":
		return 7
	}
	return level
}
