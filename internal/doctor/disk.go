package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var diskChecks = []Check{
	{Name: "disk-space", What: "bytes and inodes where images, pods and state are, against the kubelet's eviction thresholds", run: checkDiskSpace, Faults: []Fault{
		{"disk-space-low", Error, "less is free than the kubelet's evictionHard: it evicts pods; a warning where there is no kubelet"},
		{"inodes-low", Error, "fewer inodes are free than the kubelet's evictionHard; a warning where there is no kubelet"},
	}},
	{Name: "directories", What: "what davit's directories and the kubelet's are on", run: checkDirectories, Faults: []Fault{
		{"root-on-unfit-filesystem", Error, "davit's root is on a file system that cannot be below overlayfs"},
		{"root-on-tmpfs", Warning, "davit's root is on a tmpfs: images and records are gone after a boot, and take memory"},
		{"state-not-on-tmpfs", Warning, "davit's state is on a disk: what should be gone after a boot is not"},
		{"directory-closed", Warning, "a directory above davit's root or state is closed to other users: containers in user namespaces cannot start"},
		{"read-only", Error, "davit's root or state, or the kubelet's directory, is mounted read-only"},
		{"kubelet-dir-noexec", Warning, "the kubelet's directory is mounted noexec: programs in volumes cannot run"},
	}},
	{Name: "propagation", What: "that mounts can be shared between node and containers", run: checkPropagation, Faults: []Fault{
		{"root-mount-private", Warning, "/ is not a shared mount: volumes with mountPropagation do not propagate"},
	}},
}

// A store is a directory that must not get full.
type store struct {
	dir, what         string
	available, inodes float64 // least percentages free
}

// fullPercent is the least percentage free, whatever the kubelet is set to.
const fullPercent = 1

func checkDiskSpace(l *look) {
	d := l.davit()
	var stores []store
	k := l.kubelet()
	threshold := func(key string, def float64) float64 {
		if k == nil {
			return def
		}
		// Who sets some thresholds has set all. kubelet: mergeDefaultEvictionSettings.
		if _, set := k.Value("evictionHard"); set && !k.Switch("mergeDefaultEvictionSettings", false) {
			def = 0
		}
		return max(k.Percent("evictionHard", key, def), fullPercent)
	}
	// kubelet: eviction/defaults_linux.go, DefaultEvictionHard.
	images := func(dir string) store {
		return store{dir, "images", threshold("imagefs.available", 15), threshold("imagefs.inodesFree", 5)}
	}
	if k != nil {
		stores = append(stores, store{k.Dir, "the kubelet's pods", threshold("nodefs.available", 10), threshold("nodefs.inodesFree", 5)})
	}
	if d.here() {
		stores = append(stores, images(d.Root), store{d.State, "davit's state", 5, 5})
	}
	for _, dir := range l.answer().ImageDirs {
		stores = append(stores, images(dir))
	}
	if len(stores) == 0 {
		stores = append(stores, images("/var/lib"))
	}
	tell := l.fault
	if k == nil {
		tell = l.warn
	}
	told := map[string]bool{}
	first := func(what string, device uint64) bool { // each file system is told of once
		key := fmt.Sprint(what, device)
		defer func() { told[key] = true }()
		return !told[key]
	}
	for _, s := range stores {
		dir := l.nearest(s.dir)
		have, err := l.Space(l.at(dir))
		if err != nil {
			l.unseen(s.dir, err)
			continue
		}
		free := percent(have.FreeBytes, have.Bytes)
		if free < s.available && first("bytes", have.Device) {
			tell("disk-space-low", "davit images; crictl rmi --prune; journalctl --vacuum-size=200M; du -xh -d2 "+dir+" | sort -h | tail",
				"%s (%s): %.0f%% free, %s; %.0f%% is the least", s.dir, s.what, free, size(have.FreeBytes), s.available)
		}
		if left := percent(have.FreeFiles, have.Files); have.Files > 0 && left < s.inodes && first("inodes", have.Device) {
			tell("inodes-low", "davit images; crictl rmi --prune; du --inodes -xd2 "+dir+" | sort -n | tail", "%s (%s): %.0f%% of inodes free; %.0f%% is the least", s.dir, s.what, left, s.inodes)
		}
		if first("there", have.Device) {
			l.okay("%s: %s free", s.dir, size(have.FreeBytes))
		}
	}
}

// nearest returns dir, or its nearest parent that exists.
func (n *Node) nearest(dir string) string {
	for !n.exists(dir) && dir != "/" {
		dir = filepath.Dir(dir)
	}
	return dir
}

func percent(part, whole uint64) float64 {
	if whole == 0 {
		return 100
	}
	return float64(part) / float64(whole) * 100
}

func size(bytes uint64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 10<<20:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}

// unfit are file systems that overlayfs takes no writable layer from.
// kernel: overlayfs.rst, "Upper and lower directories".
var unfit = []string{"overlay", "nfs", "nfs4", "cifs", "smb3", "vfat", "exfat", "ntfs3", "9p", "ecryptfs"}

func checkDirectories(l *look) {
	d, table := l.davit(), l.mounts()
	if !d.here() && l.kubelet() == nil {
		l.skip("neither davit nor a kubelet is set up")
		return
	}
	var told []string
	on := func(dir string) (mount, bool) {
		m, known := mountOf(table, dir)
		if known {
			told = append(told, fmt.Sprintf("%s on %s", dir, m.fsType))
			if slices.Contains(m.options, "ro") || slices.Contains(m.super, "ro") {
				l.fault("read-only", "mount -o remount,rw "+m.point+"; dmesg | tail   # a disk with errors is made read-only", "%s is on %s, which is mounted read-only", dir, m.point)
			}
		}
		return m, known
	}
	if d.here() {
		if m, ok := on(d.Root); ok {
			switch {
			case slices.Contains(unfit, m.fsType) || strings.HasPrefix(m.fsType, "fuse"):
				l.fault("root-on-unfit-filesystem", moveRoot, "%s is on %s, on which overlayfs cannot put a writable layer", d.Root, m.fsType)
			case m.fsType == "tmpfs":
				l.fault("root-on-tmpfs", moveRoot, "%s is on a tmpfs", d.Root)
			}
		}
		if m, ok := on(d.State); ok && m.fsType != "tmpfs" && m.fsType != "ramfs" {
			l.fault("state-not-on-tmpfs", "mkdir -p "+d.State+" && mount -t tmpfs -o mode=0711 tmpfs "+d.State+"   # before davitd starts; or set state below /run", "%s is on %s", d.State, m.fsType)
		}
		l.checkOpen(d.Root)
		l.checkOpen(d.State)
	}
	if k := l.kubelet(); k != nil {
		if m, ok := on(k.Dir); ok && slices.Contains(m.options, "noexec") {
			l.fault("kubelet-dir-noexec", "mount -o remount,exec "+m.point, "%s is on %s, which is mounted noexec", k.Dir, m.point)
		}
	}
	l.okay("%s", strings.Join(told, ", "))
}

// moveRoot puts root first: below a table's name it would be a key of that.
const moveRoot = `# a directory on a disk with ext4, XFS or btrfs instead of /srv/davit; the images there are pulled again, so drain the node first
mkdir -p /etc/davit && touch /etc/davit/config.toml
{ echo 'root = "/srv/davit"'; sed '/^root *=/d' /etc/davit/config.toml; } >/etc/davit/config.new && mv /etc/davit/config.new /etc/davit/config.toml
systemctl restart davitd`

// checkOpen tells of directories above dir that other users cannot pass.
func (l *look) checkOpen(dir string) {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(l.at(dir))
		switch {
		case errors.Is(err, fs.ErrPermission):
			continue // a directory above is the one
		case err != nil:
			continue // it is made when davitd starts
		case info.Mode().Perm()&unix.S_IXOTH == 0:
			l.fault("directory-closed", "chmod o+x "+dir, "%s is closed to other users (%v)", dir, info.Mode().Perm())
			return
		}
	}
}

func checkPropagation(l *look) {
	table, whose := l.mounts(), "here"
	if d := l.davit(); d.running != nil {
		// What counts is what the runtime sees.
		if of := l.readMounts(d.running.Path("mountinfo")); len(of) > 0 {
			table, whose = of, "for davitd"
		}
	}
	top, known := mountOf(table, "/")
	switch {
	case !known:
		l.skip("the mount table cannot be read")
	case !top.shared:
		l.fault("root-mount-private", "mount --make-rshared /   # and restart davitd", "/ is a private mount %s", whose)
	default:
		l.okay("/ is shared")
	}
}
