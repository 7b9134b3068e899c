package imageapi

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/archive"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/registry"
)

// Pulls tells of pulls under way. *image.Store implements it.
type Pulls interface {
	// WatchPulls yields at once what there is, then what changed.
	WatchPulls(ctx context.Context) iter.Seq[[]image.PullState]
}

// Archives opens what images can be imported from, and writes it. Files
// implements it.
type Archives interface {
	// Read reads an archive to its end.
	Read(ctx context.Context, stream io.Reader) (*archive.Archive, error)
	// Containerd and Storage open other runtimes' stores.
	Containerd(root, namespace string) (*archive.Archive, error)
	Storage(root string) (*archive.Archive, error)
	// Save writes an archive of the images that refs name.
	Save(ctx context.Context, refs []string, to io.Writer) error
}

// Store keeps images. *image.Store implements it.
type Store interface {
	// Import adds an image, verified and durable.
	Import(ctx context.Context, o image.Offer, options image.PullOptions) (image.Image, error)
	DiskUsage(ctx context.Context) (image.DiskUsage, error)
}

// Registries explains where images come from. *image.Store implements it.
type Registries interface {
	Explain(ctx context.Context, ref string, auth image.Auth, probe bool) ([]registry.Explanation, error)
}

// Parts are what the service calls.
type Parts struct {
	Pulls      Pulls
	Archives   Archives
	Store      Store
	Checker    Checker
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
