package main

import (
	"context"
	"log/slog"
	"slices"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/verifier"
)

// imagesConfig is about images, wherever they come from.
type imagesConfig struct {
	Store     layer.Kind      `toml:"store"`  // how new layers are kept; empty is auto
	Pinned    []string        `toml:"pinned"` // names, or patterns with "*"
	Verifiers verifiersConfig `toml:"verifiers"`
}

// verifiersConfig has the keys of containerd's bindir image verifier.
type verifiersConfig struct {
	Dir     string   `toml:"bin_dir"`              // empty: none
	Max     int      `toml:"max_verifiers"`        // 0 or less: all
	Timeout duration `toml:"per_verifier_timeout"` // 10s if left out
}

// defaultImages has verifiers where containerd has them.
func defaultImages() imagesConfig {
	return imagesConfig{Verifiers: verifiersConfig{Dir: verifier.DefaultDir}}
}

func (i *imagesConfig) check(bad func(key, format string, args ...any), absolute func(key, path string)) {
	if _, err := image.ParsePins(i.Pinned); err != nil {
		bad("images.pinned", "%v", err)
	}
	if i.Store != "" && !slices.Contains(layer.Kinds, i.Store) {
		bad("images.store", "%q is not one of %v", i.Store, layer.Kinds)
	}
	absolute("images.verifiers.bin_dir", i.Verifiers.Dir)
	i.Verifiers.Timeout.check(bad, "images.verifiers.per_verifier_timeout", 0, time.Hour)
}

// pins are Pinned, which check has seen to.
func (i *imagesConfig) pins() image.Pins {
	pins, _ := image.ParsePins(i.Pinned)
	return pins
}

// verify asks the verifiers, if there is to be any, as image.Config wants it.
func (i *imagesConfig) verify(ctx context.Context, name string, target imagespec.Descriptor, log *slog.Logger) error {
	v := i.Verifiers
	if v.Dir == "" {
		return nil
	}
	asked := &verifier.Dir{Path: v.Dir, Max: max(v.Max, 0), Timeout: v.Timeout.value(), Log: log}
	return asked.Verify(ctx, name, target)
}
