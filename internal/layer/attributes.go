package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const paxXattr = "SCHILY.xattr."

// attributes sets owner, extended attributes and mode, in that order: a change
// of owner drops capabilities and set-user-ID.
func (t *tree) attributes(h *tar.Header, dir int, base string) error {
	if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !wantedXattr(name) {
			continue
		}
		err := unix.Lsetxattr(procPath(dir, base), name, []byte(value), 0)
		// What a file system, or the kind of file, cannot have is left out,
		// except capabilities, without which a program fails later.
		optional := name != "security.capability"
		if err != nil && (!optional || !(errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL))) {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	return unix.Fchmodat(dir, base, uint32(h.Mode)&0o7777, 0)
}

// wantedXattr keeps overlayfs's own attributes out, by which a layer could
// point into others, and labels, which belong to the host's policy.
func wantedXattr(name string) bool {
	return !strings.HasPrefix(name, "trusted.overlay.") && name != "security.selinux"
}

// setTime sets the time of last change. One that the file system cannot hold
// is no reason to fail.
func setTime(dir int, base string, at time.Time) {
	ts, err := unix.TimeToTimespec(at)
	if err == nil {
		_ = unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
}
