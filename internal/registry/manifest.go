package registry

import (
	"bytes"
	_ "crypto/sha512" // digests of that kind
	"encoding/json"
	"mime"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// Docker's media types, of the same structure as OCI's.
const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSigned1  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20

	// maxObjects bounds what a small document can make of itself in memory:
	// "{}" is two bytes in JSON, and a descriptor of 120 here. An index of the
	// largest images of all has some hundred.
	maxObjects = 1 << 16
)

var acceptManifests = []string{
	imagespec.MediaTypeImageIndex, dockerList, imagespec.MediaTypeImageManifest, dockerManifest,
}

// A Manifest is an index (Docker: manifest list) if Manifests is not nil, else
// the manifest of one image. All digests in it are well-formed, all sizes sane.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Body      []byte

	Manifests []imagespec.Descriptor
	Config    imagespec.Descriptor
	Layers    []imagespec.Descriptor
}

// ParseManifest reads the manifest of an image, of the digest d.
func ParseManifest(d digest.Digest, body []byte) (*Manifest, error) {
	return parseManifest(imagespec.MediaTypeImageManifest, d, body)
}

// parseManifest reads a manifest. contentType is the HTTP header, which counts
// only where the content does not say itself what it is.
func parseManifest(contentType string, d digest.Digest, body []byte) (*Manifest, error) {
	bad := func(format string, args ...any) (*Manifest, error) {
		return nil, fault.New(fault.Unknown, "", "manifest "+d.String()+" "+format, args...)
	}
	if bytes.Count(body, []byte("{")) > maxObjects {
		return bad("has more than %d parts", maxObjects)
	}
	var raw struct {
		SchemaVersion int
		MediaType     string
		Manifests     []imagespec.Descriptor
		Config        *imagespec.Descriptor
		Layers        []imagespec.Descriptor
		FSLayers      json.RawMessage
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return bad("is no manifest: %w", err)
	}
	mediaType := raw.MediaType
	if mediaType == "" {
		mediaType, _, _ = mime.ParseMediaType(contentType)
	}
	if raw.SchemaVersion == 1 || mediaType == dockerSchema1 || mediaType == dockerSigned1 || raw.FSLayers != nil {
		return nil, fault.New(fault.Unimplemented, "", "manifest %s is of Docker's schema 1, which is no longer supported: push the image again with a current tool", d)
	}
	if raw.Manifests != nil && (raw.Config != nil || raw.Layers != nil) {
		return bad("claims to be both an index and a manifest") // CVE-2021-41190
	}
	m := &Manifest{MediaType: mediaType, Digest: d, Body: body}
	switch mediaType {
	case imagespec.MediaTypeImageIndex, dockerList:
		if raw.Manifests == nil {
			return bad("is an index without manifests")
		}
	case imagespec.MediaTypeImageManifest, dockerManifest:
		if raw.Config == nil {
			return bad("has no configuration")
		}
	default:
		if raw.Manifests == nil && raw.Config == nil {
			return bad("is of media type %q, which is neither an index nor an image's", mediaType)
		}
	}
	m.Manifests = raw.Manifests
	for _, child := range m.Manifests {
		if err := checkDescriptor(child); err != nil {
			return bad("lists a manifest %w", err)
		}
	}
	if raw.Config != nil {
		m.Config, m.Layers = *raw.Config, raw.Layers
		for _, part := range append([]imagespec.Descriptor{m.Config}, m.Layers...) {
			if err := checkDescriptor(part); err != nil {
				return bad("lists a blob %w", err)
			}
		}
	}
	return m, nil
}

func checkDescriptor(d imagespec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fault.New(fault.Unknown, "", "with the digest %.100q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fault.New(fault.Unknown, "", "with the size %d", d.Size)
	}
	return nil
}
