package image

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/overlay"
	"github.com/davit-runtime/davit/internal/store"
	"github.com/davit-runtime/davit/internal/writable"
)

// MountOptions is how a container sees its root. The zero value is as the
// image has it.
type MountOptions struct {
	Users *idmap.Users // whose map says to whom files belong
	Label string       // SELinux's, of all files
}

// Mount mounts a writable root file system for a container and returns its
// path. The layers it needs stay until Unmount, whatever becomes of the image.
// Repeated for the same container it returns the same mount, made again if it
// is gone. After an error, too, Unmount releases what there is.
//
// NotFound if the image is not present, Precondition if it is an artifact.
func (s *Store) Mount(ctx context.Context, id, imageID string, o MountOptions) (string, error) {
	if e, err := s.view.Load().find(imageID); err == nil && e.Artifact != "" {
		return "", fault.New(fault.Precondition, "", "image %s is an artifact of type %.100q: it can be a volume, but no container is made of it", imageID, e.Artifact)
	}
	lowers, done, err := s.borrow(ctx, id, imageID)
	if err != nil {
		return "", err
	}
	defer done()
	s.tally.Begin(id)
	return s.mountRoot(id, lowers, o)
}

// MountEmpty is Mount of an image without layers, which need not be there. It
// is for trying whether it works on this host.
func (s *Store) MountEmpty(_ context.Context, id string, o MountOptions) (string, error) {
	if err := makeDir(s.config.writable(id), 0o700); err != nil {
		return "", err
	}
	return s.mountRoot(id, nil, o)
}

func (s *Store) mountRoot(id string, lowers []string, options MountOptions) (string, error) {
	if len(lowers) == 0 {
		lowers = append(lowers, s.config.empty())
	}
	target := s.config.rootfs(id)
	if err := makeDir(target, 0o700); err != nil {
		return "", err
	}
	mounted, err := overlay.IsMount(target)
	if mounted || err != nil {
		return target, err
	}
	dir := s.config.writable(id)
	o := overlay.Mount{Lowers: lowers, Upper: writable.UpperDir(dir), Work: filepath.Join(dir, "work"), Label: options.Label}
	if err := o.Prepare(options.ids()); err != nil {
		return "", err
	}
	if err := o.For(options.Users, target, s.config.mapped(id)); err != nil {
		return "", fault.New(fault.KindOf(err), "", "mount the root file system of container %s: %w", id, err)
	}
	return target, nil
}

// borrow takes a lease on an image for id, which may hold it already, writes
// it down, and returns the directories of the image's layers, topmost first, to
// be stacked before done is called.
func (s *Store) borrow(ctx context.Context, id, imageID string) (lowers []string, done func(), err error) {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return nil, nil, fault.New(fault.Invalid, "image.Mount", "container ID %q", id)
	}
	l, created, err := s.lease(id, imageID)
	if err != nil {
		return nil, nil, err
	}
	writable := s.config.writable(id)
	if err := makeDir(writable, 0o700); err != nil {
		return nil, nil, err
	}
	if created {
		if err := store.SaveJSON(leaseFile(writable), leaseVersion, l); err != nil {
			return nil, nil, err
		}
	}
	return s.useLayers(ctx, l.Layers)
}

// lease returns the container's lease, a new one on the image if it has none.
func (s *Store) lease(id, imageID string) (l lease, created bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.use.leases[id]
	if ok && l.Image != "" {
		return l, false, nil
	}
	e, err := s.view.Load().find(imageID)
	if err != nil {
		return lease{}, false, err
	}
	l = lease{Image: e.ID, Layers: e.layers}
	s.use.leases[id] = l
	return l, true, nil
}

// Unmount undoes Mount, also one cut short, and deletes the writable layer.
// It succeeds if there is nothing.
func (s *Store) Unmount(_ context.Context, id string) error {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return fault.New(fault.Invalid, "image.Unmount", "container ID %q", id)
	}
	if err := overlay.Unmount(s.config.rootfs(id)); err != nil {
		return fmt.Errorf("unmount the root file system of container %s: %w", id, err)
	}
	if err := idmap.DetachAll(s.config.mapped(id)); err != nil {
		return err
	}
	if err := s.trash.Put(s.config.writable(id)); err != nil {
		return err
	}
	s.tally.Forget(id)
	s.mu.Lock()
	l := s.use.leases[id]
	delete(s.use.leases, id)
	s.mu.Unlock()
	return s.collect(l.Layers)
}

// mapped is where the layers of a container's root are attached, shown by the
// map of its user namespace, while the overlay is mounted that takes them.
func (c Config) mapped(id string) string { return filepath.Join(c.State, "mapped", id) }

// ids is how owners are mapped.
func (o MountOptions) ids() idmap.Map {
	if o.Users == nil {
		return idmap.Map{}
	}
	return o.Users.Map
}
