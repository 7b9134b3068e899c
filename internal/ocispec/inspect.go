package ocispec

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
)

// maxProfile bounds the size of a seccomp profile's file.
const maxProfile = 4 << 20

// Make does all that a container's spec takes: it inspects the host for it,
// loads the default AppArmor profile, builds the spec and makes the working
// directory below in.Rootfs. Of in.Found it keeps nothing.
func Make(in Input) (*specs.Spec, error) {
	var err error
	if in.Found, err = Inspect(in.Container); err != nil {
		return nil, err
	}
	if in.Found.AppArmor, err = thisAppArmor.profile(in.Container.GetLinux().GetSecurityContext()); err != nil {
		return nil, err
	}
	s, err := Build(in)
	if err != nil {
		return nil, err
	}
	if err := MakeWorkingDir(in.Rootfs, s.Process.Cwd, in.Namespaces.Users); err != nil {
		return nil, err
	}
	return s, nil
}

// Inspect reads what Build needs of the host for one container: where its
// mounts lead, its devices, its seccomp profile. It changes nothing.
//
// It returns Precondition, naming the path, for what is not there.
func Inspect(c *runtimeapi.ContainerConfig) (Found, error) {
	found := Found{Sources: map[string]string{}, Devices: map[string][]Device{}}
	found.SwapAccounting, found.Hugetlb = probeControllers(cgroupRoot)
	for _, m := range c.GetMounts() {
		if !filepath.IsAbs(m.HostPath) {
			continue // an image's, or Build refuses it
		}
		source, err := CheckMount(m)
		if err != nil {
			return Found{}, err
		}
		found.Sources[m.HostPath] = source
	}
	for _, d := range c.GetDevices() {
		if !filepath.IsAbs(d.HostPath) {
			continue // Build refuses it
		}
		devices, err := findDevices(d.HostPath)
		if err != nil {
			return Found{}, err
		}
		found.Devices[d.HostPath] = devices
	}
	var err error
	if found.Hostname, err = os.Hostname(); err != nil {
		return Found{}, fault.New(fault.Internal, "ocispec.Inspect", "%w", err)
	}
	_, profile, err := seccompWanted(c.GetLinux().GetSecurityContext())
	if err != nil {
		return Found{}, err
	}
	if profile != "" {
		if found.Seccomp, err = readLimited(profile, maxProfile); err != nil {
			return Found{}, fault.New(fault.Precondition, "", "seccomp profile: %w", err)
		}
	}
	return found, nil
}

// CheckMount returns a mount's source without symbolic links. It returns
// Precondition if the source is not there, or does not propagate as the mount
// needs; Unavailable, after 8 s, if its file system does not answer.
func CheckMount(m *runtimeapi.Mount) (source string, err error) {
	source, err = hostPaths.resolve(m.HostPath)
	if err != nil {
		kind := fault.Precondition
		if fault.Is(err, fault.Unavailable) {
			kind = fault.Unavailable
		}
		return "", fault.New(kind, "", "mount at %s: host path %s: %w", m.ContainerPath, m.HostPath, err)
	}
	if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return source, nil
	}
	above, err := mountinfo.GetMounts(mountinfo.ParentsFilter(source))
	if err != nil {
		return "", fault.New(fault.Internal, "", "mount table: %w", err)
	}
	if !propagates(above, m.Propagation) {
		return "", fault.New(fault.Precondition, "", "mount at %s: host path %s is not on a shared mount, which %s needs",
			m.ContainerPath, source, m.Propagation)
	}
	return source, nil
}

// propagates reports whether the innermost of the mounts above a path is
// shared or, enough for HOST_TO_CONTAINER, a slave.
func propagates(above []*mountinfo.Info, want runtimeapi.MountPropagation) bool {
	var inner *mountinfo.Info
	for _, m := range above {
		if inner == nil || len(m.Mountpoint) >= len(inner.Mountpoint) { // of two at one place the later is on top
			inner = m
		}
	}
	if inner == nil {
		return false
	}
	for o := range strings.FieldsSeq(inner.Optional) {
		if strings.HasPrefix(o, "shared:") ||
			strings.HasPrefix(o, "master:") && want == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
			return true
		}
	}
	return false
}

// MakeWorkingDir makes the directory dir below rootfs where it is missing, and
// gives what it made to the root of users. It returns Invalid if something else
// than a directory is there.
func MakeWorkingDir(rootfs, dir string, users idmap.Map) error {
	dir = path.Join("/", dir)
	var missing []string // outermost last
	for at := dir; at != "/"; at = path.Dir(at) {
		f, err := pathrs.OpenInRoot(rootfs, at)
		if err == nil {
			_ = f.Close()
			break
		}
		missing = append(missing, at)
	}
	err := pathrs.MkdirAll(rootfs, strings.TrimPrefix(dir, "/"), 0o755)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Invalid, "", "working directory %s is not a directory", dir)
	}
	if err == nil && !users.Empty() {
		err = giveTo(users, rootfs, missing)
	}
	if err != nil {
		return fault.New(fault.Internal, "ocispec.MakeWorkingDir", "working directory %s: %w", dir, err)
	}
	return nil
}

func giveTo(users idmap.Map, rootfs string, paths []string) error {
	uid, gid := users.Host(0, 0)
	for _, p := range paths {
		f, err := pathrs.OpenInRoot(rootfs, p)
		if err != nil {
			return err
		}
		err = unix.Fchownat(int(f.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH)
		_ = f.Close()
		if err != nil {
			return &fs.PathError{Op: "chown", Path: p, Err: err}
		}
	}
	return nil
}

// skippedInDev are what is not a device of the host, or what a container has
// of its own, by name anywhere below a directory of devices.
var skippedInDev = []string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}

// findDevices returns the device at a path, or all those below the directory
// there, with paths that begin with it.
func findDevices(root string) ([]Device, error) {
	st, err := os.Stat(root)
	if err != nil {
		return nil, fault.New(fault.Precondition, "", "device: %w", err)
	}
	if !st.IsDir() {
		d, ok := device(root, root)
		if !ok {
			return nil, fault.New(fault.Precondition, "", "device %s: not a device", root)
		}
		return []Device{d}, nil
	}
	resolved, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, fault.New(fault.Precondition, "", "device: %w", err)
	}
	var all []Device
	err = filepath.WalkDir(resolved, func(at string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // unplugged meanwhile
		case err != nil:
			return err
		case e.IsDir() && slices.Contains(skippedInDev, e.Name()):
			return filepath.SkipDir
		case at == "/dev/console":
			return nil // the container's own terminal goes there
		}
		if e.Type()&fs.ModeDevice != 0 {
			if d, ok := device(at, root+strings.TrimPrefix(at, resolved)); ok {
				all = append(all, d)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fault.New(fault.Internal, "", "devices below %s: %w", root, err)
	}
	return all, nil
}

// device describes the device node at a path under the name name.
func device(at, name string) (Device, bool) {
	var st unix.Stat_t
	if unix.Stat(at, &st) != nil {
		return Device{}, false
	}
	d := Device{
		Path: name, Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return Device{}, false
	}
	return d, true
}

func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: unix.EFBIG}
	}
	return text, nil
}
