// Package image owns what an image is: names → manifests → configs → layers.
//
// An image that it lists is whole: every digest was verified, every layer is
// in the store and was on the disk before the image was written down. Reading
// (Get, List, Config, Usage) is from memory and never waits.
//
// It speaks to registries through package registry and keeps layers through
// package layer. Packages cri and pod call it.
//
// On disk, below Config.Root: images.db (images with their manifests and
// configurations, and the layers there are), records/ (copies of that, of which
// it is made again), layers/, writable/<container>
// (writable layers, each with the lease that keeps the layers below it),
// trash/. Whoever removes something from the database does so before the files
// go, whoever adds does so after the files are durable; files that the
// database does not know are deleted when the store is opened.
package image

import (
	"context"
	"log/slog"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/registry"
)

// An Image is one that is present. Immutable.
type Image struct {
	ID          string   // "sha256:…", the config's digest; an artifact's is its manifest's
	RepoTags    []string // "registry/name:tag", sorted
	RepoDigests []string // "registry/name@sha256:…", sorted
	SizeBytes   uint64   // on disk
	Config      imagespec.Image
	Pinned      bool // by Config.Pinned
	PulledAt    time.Time
	Artifact    string // its type, if it is an artifact: it can be a volume, and has no Config
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

// Config is what Open needs.
type Config struct {
	Root  string // a directory of the store's own that lasts
	State string // likewise, gone after a reboot: the mounts of containers
	// Damaged is a directory for what cannot be read, on Root's file system;
	// "damaged" in Root if empty.
	Damaged string

	Registry registry.Config
	// Platform is which image of an index to take, "os/arch[/variant]"; empty
	// means what runs on this machine.
	Platform string
	// Layers is how new layers are kept: layer.Auto if empty.
	Layers layer.Kind
	// MaxLayerBytes is how large one unpacked layer may be, 64 GiB if zero.
	MaxLayerBytes int64
	Log           *slog.Logger // slog.Default if nil
	// Pinned says which images are shown as pinned, until SetPins.
	Pinned Pins

	// Verify, if not nil, is asked of each image that is pulled, before its
	// configuration and layers are fetched: by the name that it was asked for
	// by and what that stands for, an index perhaps.
	Verify func(ctx context.Context, name string, d imagespec.Descriptor) error
}

// PullOptions is how to pull. The zero value works.
type PullOptions struct {
	Auth     Auth
	Platform string // instead of Config.Platform
	// Progress is told of each layer's state when it changes and now and then
	// in between. It is never called twice at a time, nor after Pull returned.
	Progress func(Progress)
}

// Progress is the state of one layer of an image being pulled.
type Progress struct {
	Layer string // the digest of its blob
	Phase Phase
	Bytes int64 // fetched so far
	Total int64 // to fetch
}

// A Phase is what happens to a layer. Layers are unpacked while they download;
// Unpacking is what remains after that.
type Phase uint8

// The phases, in order.
const (
	Waiting Phase = iota
	Downloading
	Unpacking
	Done
)

// String returns the phase's name.
func (p Phase) String() string {
	return [...]string{"waiting", "downloading", "unpacking", "done"}[min(p, Done)]
}
