package image

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/span"
)

// A Source has what images are made of. What it returns has been compared with
// its digest, except layers, of which the store sees to that.
type Source interface {
	// Manifest returns what a tag or a digest stands for.
	Manifest(ctx context.Context, want string) (*registry.Manifest, error)
	// Config returns an image's configuration.
	Config(ctx context.Context, d imagespec.Descriptor) ([]byte, error)
	// Layer opens a layer: its blob, or the tar stream that this is made of.
	// The caller closes it.
	Layer(ctx context.Context, d imagespec.Descriptor, diffID digest.Digest) (io.ReadCloser, error)
}

// A config is an image's configuration, kept as long as pulls use it.
type config struct {
	data  []byte        // what there is; read it once turn is had, or after
	turn  chan struct{} // had by the one who fetches
	users int           // guarded by Store.mu
}

// obtainConfig returns an image's configuration. However many pulls want it at
// a time, it is fetched once; when that fails the next one tries, with its own
// credentials. done is to be called when the image is in the database, or not
// going to be: until then it is not fetched again.
func (s *Store) obtainConfig(ctx context.Context, d imagespec.Descriptor, from Source) (data []byte, done func(), err error) {
	id := d.Digest.String()
	s.mu.Lock()
	c := s.use.configs[id]
	if c == nil {
		c = &config{turn: make(chan struct{}, 1)}
		if old := s.view.Load().images[id]; old != nil {
			c.data = old.Config
		}
		s.use.configs[id] = c
	}
	c.users++
	s.mu.Unlock()
	done = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c.users--; c.users == 0 {
			delete(s.use.configs, id)
		}
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		done()
		return nil, nil, context.Cause(ctx)
	}
	if c.data == nil {
		defer span.Step(ctx, "config")()
		if c.data, err = from.Config(ctx, d); err != nil {
			c.data = nil
			done()
			return nil, nil, err
		}
	}
	return c.data, done, nil
}
