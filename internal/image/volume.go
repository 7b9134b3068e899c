package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/overlay"
)

// A Volume is an image, or an artifact, that a container sees as one of its volumes.
type Volume struct {
	Container string // ID
	Index     int    // among the container's
	ImageID   string
	SubPath   string // a directory or file of the image to show instead of all; may be empty
	MountOptions
}

// id is what the volume's lease and mount are filed under. Nothing else
// is filed under names with a dot.
func (v Volume) id() string { return v.Container + volumeMark + strconv.Itoa(v.Index) }

const volumeMark = ".volume-"

// MountVolume mounts an image, or a part of it, read-only and returns where.
// The layers stay until UnmountVolumes, whatever becomes of the image. A
// volume that is there already, or in part, is made again. After an error,
// too, UnmountVolumes releases what there is.
//
// The part is looked up with the image for root: neither ".." nor a symbolic
// link of the image's leads out of it. It is what was looked up that is
// mounted, not what its path leads to later.
//
// NotFound if the image is not present, or has no such part; Precondition if
// that is neither a directory nor a file.
func (s *Store) MountVolume(ctx context.Context, v Volume) (string, error) {
	lowers, done, err := s.borrow(ctx, v.id(), v.ImageID)
	if err != nil {
		return "", err
	}
	defer done()
	// The kernel stacks at least two.
	bottom := filepath.Join(s.config.writable(v.id()), "bottom")
	if err := makeDir(bottom, 0o755); err != nil {
		return "", err
	}
	if len(lowers) == 0 {
		lowers = append(lowers, s.config.empty())
	}
	target := s.config.rootfs(v.id())
	if err := overlay.Unmount(target); err != nil {
		return "", err
	}
	if err := makeDir(target, 0o700); err != nil {
		return "", err
	}
	o := overlay.Mount{Lowers: append(lowers, bottom), Label: v.Label}
	if err := o.For(v.Users, target, s.config.mapped(v.id())); err != nil {
		return "", fault.New(fault.KindOf(err), "", "mount: %w", err)
	}
	if strings.Trim(v.SubPath, "/") != "" {
		if err := narrow(target, v.SubPath); err != nil {
			return "", err
		}
	}
	// A container may ask for propagation, which needs a source that can.
	if err := unix.Mount("", target, "", unix.MS_SHARED, ""); err != nil {
		return "", fault.New(fault.Internal, "", "share the mount: %w", err)
	}
	return target, nil
}

// narrow mounts a part of what is mounted at target there instead of the whole.
func narrow(target, part string) error {
	handle, err := pathrs.OpenInRoot(target, part)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.NotFound, "", "sub path %q is not in the image", part)
	}
	if err != nil {
		return fault.New(fault.Precondition, "", "sub path %q: %w", part, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return fault.New(fault.Precondition, "", "sub path %q: %w", part, err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fault.New(fault.Precondition, "", "sub path %q is neither a directory nor a file", part)
	}
	tree, err := unix.OpenTree(int(handle.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fault.New(fault.Internal, "", "sub path %q: open_tree: %w", part, err)
	}
	defer unix.Close(tree)
	if err := overlay.Unmount(target); err != nil {
		return err
	}
	if info.IsDir() {
		err = makeDir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fault.New(fault.Internal, "", "sub path %q: move_mount: %w", part, err)
	}
	return nil
}

// UnmountVolumes undoes every MountVolume of a container, also one cut short.
// It succeeds if there is nothing.
func (s *Store) UnmountVolumes(ctx context.Context, container string) error {
	var ids []string
	s.mu.Lock()
	for id := range s.use.leases {
		if strings.HasPrefix(id, container+volumeMark) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		if err := s.Unmount(ctx, id); err != nil {
			return fmt.Errorf("volume: %w", err)
		}
	}
	return nil
}
