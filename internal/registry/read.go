package registry

import (
	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/fault"
)

// ReadManifest reads a manifest that came from elsewhere than a registry, once
// it is what its digest says.
func ReadManifest(d digest.Digest, body []byte) (*Manifest, error) {
	if err := d.Validate(); err != nil {
		return nil, fault.New(fault.Unknown, "", "manifest with the digest %.100q: %w", d, err)
	}
	if len(body) > maxManifest {
		return nil, fault.New(fault.Unknown, "", "manifest %s has more than %d bytes", d, maxManifest)
	}
	if got := d.Algorithm().FromBytes(body); got != d {
		return nil, fault.New(fault.Unknown, "", "manifest %s has other content: its digest is %s", d, got)
	}
	return parseManifest("", d, body)
}
