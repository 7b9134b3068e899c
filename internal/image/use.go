package image

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/store"
)

// use is who needs layers besides images, and what is happening to them. All
// of it is guarded by Store.mu, which is never held across I/O.
type use struct {
	pins    map[string]int           // by pulls under way
	leases  map[string]lease         // by containers, key: container ID
	flights map[string]*flight       // being fetched and unpacked
	fresh   map[string]layer.Info    // complete, but not in the database yet
	dying   map[string]chan struct{} // being removed; closed when gone
	losses  map[string]*loss         // images that were given up, and are to come back
	configs map[string]*config       // of images being pulled
}

func newUse() use {
	return use{
		pins:    map[string]int{},
		leases:  map[string]lease{},
		flights: map[string]*flight{},
		fresh:   map[string]layer.Info{},
		dying:   map[string]chan struct{}{},
		losses:  map[string]*loss{},
		configs: map[string]*config{},
	}
}

// needed returns the layers of images, of those that are to come back, and of
// containers.
func (u *use) needed(c *content) map[string]bool {
	ids := map[string]bool{}
	for _, r := range c.images {
		for _, id := range r.Layers {
			ids[id] = true
		}
	}
	for _, l := range u.losses {
		for _, id := range l.record.Layers {
			ids[id] = true
		}
	}
	for _, l := range u.leases {
		for _, id := range l.Layers {
			ids[id] = true
		}
	}
	return ids
}

// pin keeps layers, there or not yet, until unpin.
func (s *Store) pin(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		s.use.pins[id]++
	}
}

func (s *Store) unpin(ids []string) error {
	s.mu.Lock()
	for _, id := range ids {
		if s.use.pins[id]--; s.use.pins[id] == 0 {
			delete(s.use.pins, id)
		}
	}
	s.mu.Unlock()
	return s.collect(ids)
}

// collect removes those of the layers that nobody needs.
func (s *Store) collect(ids []string) error {
	s.mu.Lock()
	needed := s.use.needed(&s.view.Load().content)
	var gone, written []string
	for _, id := range ids {
		if needed[id] || s.use.pins[id] > 0 || s.use.dying[id] != nil {
			continue
		}
		s.use.dying[id] = make(chan struct{})
		delete(s.use.fresh, id)
		gone = append(gone, id)
		if _, ok := s.view.Load().layers[id]; ok {
			written = append(written, id)
		}
	}
	if len(written) > 0 {
		s.view.Store(s.view.Load().with(changes{dropLayers: written}))
	}
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	var first error
	if len(written) > 0 {
		// An entry that stays in the database for want of space is found to be
		// without files, and dropped, when the store is opened next.
		first = s.db.apply(changes{dropLayers: written})
	}
	for _, id := range gone {
		if err := s.layers.Remove(id); err != nil {
			first = err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range gone {
		close(s.use.dying[id])
		delete(s.use.dying, id)
	}
	return first
}

// present returns what is known of a layer that is there, once none of that
// ID is being removed.
func (s *Store) present(ctx context.Context, id string) (layer.Info, bool, error) {
	for {
		s.mu.Lock()
		going := s.use.dying[id]
		info, ok := s.use.fresh[id]
		if !ok {
			info, ok = s.view.Load().layers[id]
		}
		s.mu.Unlock()
		if going == nil {
			return info, ok, nil
		}
		select {
		case <-going:
		case <-ctx.Done():
			return layer.Info{}, false, context.Cause(ctx)
		}
	}
}

// settle makes fresh layers ordinary ones, after the transaction that wrote
// them down, and shows the change.
func (s *Store) settle(c changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Collect(maps.Keys(c.layers)) {
		delete(s.use.fresh, id)
	}
	for id := range c.images {
		delete(s.use.losses, id)
	}
	s.view.Store(s.view.Load().with(c))
}

// A lease keeps the layers below a container's writable layer. It is a file in
// the directory of that, so both come and go together. It is not fsynced: a
// power cut that takes it has ended the container, too.
type lease struct {
	Image  string
	Layers []string // topmost first
}

const leaseVersion = 1

func leaseFile(writable string) string { return filepath.Join(writable, "lease.json") }

// readLeases returns the leases by container ID. One that is lost is on all
// layers there are: the container may have any of them mounted.
func readLeases(dir, layers string, log *slog.Logger) (map[string]lease, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	leases := make(map[string]lease, len(entries))
	for _, e := range entries {
		var l lease
		err := store.LoadJSON(leaseFile(filepath.Join(dir, e.Name())), leaseVersion, &l)
		if err != nil {
			log.Warn("a container's lease on its image is lost: no layer is removed before the container is", "container", e.Name(), "error", err)
			l = lease{}
			if l.Layers, err = layer.IDs(layers); err != nil {
				return nil, err
			}
		}
		leases[e.Name()] = l
	}
	return leases, nil
}

// makeDir makes a directory unless it is there.
func makeDir(path string, perm fs.FileMode) error {
	err := os.Mkdir(path, perm)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return classify(err)
}
