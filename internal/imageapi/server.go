package imageapi

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/registry"
)

// Pulls tells of pulls under way. *image.Store implements it.
type Pulls interface {
	// WatchPulls yields at once what there is, then what changed.
	WatchPulls(ctx context.Context) iter.Seq[[]image.PullState]
}

// Archives turns images into one stream of bytes, and back.
type Archives interface {
	// Load adds the images of an archive. It reads from to its end, in order.
	Load(ctx context.Context, from io.Reader) ([]image.Image, error)
	// Save writes an archive of the images that refs name.
	Save(ctx context.Context, to io.Writer, refs []string, f Format) error
}

// A Format is one of archives.
type Format uint8

// The formats that Save knows; Load recognizes them.
const (
	OCI Format = iota
	Docker
)

// Registries explains where images come from. *image.Store implements it.
type Registries interface {
	Explain(ctx context.Context, ref string, auth image.Auth, probe bool) ([]registry.Explanation, error)
}

// Parts are what the service calls.
type Parts struct {
	Pulls      Pulls
	Archives   Archives
	Registries Registries
	// Stopping is closed when davitd is to stop: watches end then.
	Stopping <-chan struct{}
}

// Register puts the service on a server.
func Register(s grpc.ServiceRegistrar, p Parts) { imagev1.RegisterImagesServer(s, &service{Parts: p}) }

type service struct {
	imagev1.UnimplementedImagesServer
	Parts
}
