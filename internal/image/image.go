// Package image owns what an image is: names → manifests → configs → layers.
//
// An image that it lists is whole: every digest was verified, every layer is
// in the store. It speaks to registries through package registry and keeps
// layers through package layer.
package image

import (
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Image is one that is present. Immutable.
type Image struct {
	ID          string   // "sha256:…", the config's digest
	RepoTags    []string // "registry/name:tag", sorted
	RepoDigests []string // "registry/name@sha256:…", sorted
	SizeBytes   uint64   // on disk
	Config      imagespec.Image
	Pinned      bool
	PulledAt    time.Time
}

// Auth is a caller's credentials for one pull. Never logged, never stored.
type Auth struct {
	Username, Password string
	IdentityToken      string // a refresh token
	RegistryToken      string // a bearer token, sent as it is
}

// Usage is what images take on disk.
type Usage struct {
	Mountpoint string // a directory on the file system that holds them
	Bytes      uint64
	Inodes     uint64
	At         time.Time
}
