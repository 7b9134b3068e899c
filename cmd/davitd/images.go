package main

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

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

// apply puts into the image store's configuration what is said here of it.
func (i *imagesConfig) apply(to *image.Config, log *slog.Logger) error {
	to.Layers = i.Store
	var err error
	if to.Pinned, err = image.ParsePins(i.Pinned); err != nil {
		return fmt.Errorf("images.pinned: %w", err)
	}
	if i.Verifiers.Dir == "" {
		return nil
	}
	v := &verifier.Dir{Path: i.Verifiers.Dir, Max: max(i.Verifiers.Max, 0), Timeout: i.Verifiers.Timeout.value(), Log: log}
	to.Verify = v.Verify
	return nil
}
