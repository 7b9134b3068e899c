package overlay

import (
	"errors"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
)

// For mounts on target, as users are to see it, if not nil.
func (m Mount) For(users *idmap.Users, target, stage string) error {
	if users == nil || users.Empty() {
		return m.On(target)
	}
	return m.onMapped(target, stage, users)
}

// onMapped mounts on target, shown by the map of users. What is in the layers keeps
// its owners on disk, and nothing is copied; overlayfs takes over the maps of
// its lower layers. The upper layer has the owners as they are on the host.
//
// It returns Unimplemented where the kernel or the file system of the layers
// cannot do that: overlayfs can from Linux 5.19 on.
func (m Mount) onMapped(target, stage string, users *idmap.Users) (err error) {
	defer func() { err = errors.Join(err, idmap.DetachAll(stage)) }()
	var lowers []string
	for i, lower := range m.Lowers {
		at := filepath.Join(stage, strconv.Itoa(i))
		if err := (idmap.Tree{Source: lower, Users: users, ReadOnly: true}).Attach(at); err != nil {
			return err
		}
		lowers = append(lowers, at)
	}
	m.Lowers = lowers
	if err := m.On(target); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fault.New(fault.Unimplemented, "", "overlayfs of this kernel takes no ID-mapped layers: %w", err)
		}
		return err
	}
	return nil
}
