package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/store"
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
// NotFound if the image is not present.
func (s *Store) Mount(_ context.Context, id, imageID string, o MountOptions) (string, error) {
	lowers, err := s.borrow(id, imageID)
	if err != nil {
		return "", err
	}
	s.tally.begin(id)
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
	mounted, err := isMount(target)
	if mounted || err != nil {
		return target, err
	}
	writable := s.config.writable(id)
	o := overlay{lowers: lowers, upper: upperDir(writable), work: filepath.Join(writable, "work"), label: options.Label}
	if err := o.prepare(options.ids()); err != nil {
		return "", err
	}
	if err := o.mountFor(options.Users, target, s.config.mapped(id)); err != nil {
		return "", fault.New(fault.KindOf(err), "", "mount the root file system of container %s: %w", id, err)
	}
	return target, nil
}

// borrow takes a lease on an image for id, which may hold it already, writes
// it down, and returns the directories of the image's layers, topmost first.
func (s *Store) borrow(id, imageID string) ([]string, error) {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return nil, fault.New(fault.Invalid, "image.Mount", "container ID %q", id)
	}
	l, created, err := s.lease(id, imageID)
	if err != nil {
		return nil, err
	}
	writable := s.config.writable(id)
	if err := makeDir(writable, 0o700); err != nil {
		return nil, err
	}
	if created {
		if err := store.SaveJSON(leaseFile(writable), leaseVersion, l); err != nil {
			return nil, err
		}
	}
	lowers := make([]string, 0, len(l.Layers)+2)
	for _, layerID := range l.Layers {
		lower, err := s.layers.Lower(layerID)
		if err != nil {
			return nil, err
		}
		lowers = append(lowers, lower)
	}
	return lowers, nil
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
	if err := unmount(s.config.rootfs(id)); err != nil {
		return fmt.Errorf("unmount the root file system of container %s: %w", id, err)
	}
	if err := idmap.DetachAll(s.config.mapped(id)); err != nil {
		return err
	}
	if err := s.trash.Put(s.config.writable(id)); err != nil {
		return err
	}
	s.tally.forget(id)
	s.mu.Lock()
	l := s.use.leases[id]
	delete(s.use.leases, id)
	s.mu.Unlock()
	return s.collect(l.Layers)
}

// unmount unmounts all that is mounted on a directory, and removes it.
func unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case errors.Is(err, unix.EINVAL):
			err := os.Remove(target)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return err
		}
	}
}

// isMount reports whether something is mounted on a directory.
func isMount(path string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Lstat(path, &here); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(path), &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
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

// mountFor mounts o as users are to see it, if not nil.
func (o overlay) mountFor(users *idmap.Users, target, stage string) error {
	if users == nil || users.Empty() {
		return o.mount(target)
	}
	return o.mountMapped(target, stage, users)
}

// mountMapped mounts o, shown by the map of users. What is in the layers keeps
// its owners on disk, and nothing is copied; overlayfs takes over the maps of
// its lower layers. The upper layer has the owners as they are on the host.
//
// It returns Unimplemented where the kernel or the file system of the layers
// cannot do that: overlayfs can from Linux 5.19 on.
func (o overlay) mountMapped(target, stage string, users *idmap.Users) (err error) {
	defer func() { err = errors.Join(err, idmap.DetachAll(stage)) }()
	var lowers []string
	for i, lower := range o.lowers {
		at := filepath.Join(stage, strconv.Itoa(i))
		if err := (idmap.Tree{Source: lower, Users: users, ReadOnly: true}).Attach(at); err != nil {
			return err
		}
		lowers = append(lowers, at)
	}
	o.lowers = lowers
	if err := o.mount(target); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fault.New(fault.Unimplemented, "", "overlayfs of this kernel takes no ID-mapped layers: %w", err)
		}
		return err
	}
	return nil
}
