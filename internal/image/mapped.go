package image

import (
	"errors"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
)

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
