// Package namespace makes a pod's net, ipc and uts namespaces without a
// process in them, pinned by bind mounts.
//
// It owns the files "net", "ipc" and "uts" below a directory that its caller
// names. No process is started, and the caller's own namespaces are never
// changed. Package pod calls it.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Spec says which namespaces a pod has of its own and how they start.
type Spec struct {
	Net, IPC, UTS bool
	Hostname      string            // of the uts namespace, ignored without one; empty: unchanged
	Sysctls       map[string]string // dotted or slashed, set inside the new namespaces
}

// A Maker makes namespaces. It has no state of its own.
type Maker struct{}

// New returns a Maker.
func New() *Maker { return &Maker{} }

// kinds are the namespaces a pod can have, in the order they are pinned.
var kinds = []struct {
	name  string // of the file, in /proc/PID/ns as well
	flag  int
	asked func(Spec) bool
}{
	{"net", unix.CLONE_NEWNET, func(s Spec) bool { return s.Net }},
	{"ipc", unix.CLONE_NEWIPC, func(s Spec) bool { return s.IPC }},
	{"uts", unix.CLONE_NEWUTS, func(s Spec) bool { return s.UTS }},
}

// Create makes the namespaces spec asks for and pins them below dir, which it
// makes if need be. The loopback interface of a new network namespace is up.
//
// It returns Invalid, having done nothing, for a sysctl that is not
// namespaced or whose namespace the pod does not have, and Exists if dir holds
// namespaces already. After any other error Release is due.
func (*Maker) Create(ctx context.Context, dir string, spec Spec) error {
	const op = "namespace.Create"
	sysctls, err := checkSysctls(spec)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fault.New(fault.Internal, op, "%w", err)
	}
	for _, k := range kinds {
		if !k.asked(spec) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, k.name), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
		if errors.Is(err, fs.ErrExist) {
			return fault.New(fault.Exists, op, "%w", err)
		}
		if err != nil {
			return fault.New(fault.Internal, op, "%w", err)
		}
		_ = f.Close()
	}
	return onThread(func() error { return build(dir, spec, sysctls) })
}

// onThread runs f in an operating system thread that ends with it, so that
// nothing f does to the thread can reach the rest of the process.
//
// The thread is never the process's first: that one would live on, unused,
// and hold f's namespaces as those of the process itself.
func onThread(f func() error) error {
	done := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return // still locked: the runtime ends the thread
		}
		next := make(chan struct{})
		go func() {
			defer close(next)
			run()
		}()
		<-next
		runtime.UnlockOSThread()
	}
	go run()
	return <-done
}

// build makes the calling thread's namespaces, sets them up and pins them.
func build(dir string, spec Spec, sysctls []sysctl) error {
	const op = "namespace.Create"
	flags := 0
	for _, k := range kinds {
		if k.asked(spec) {
			flags |= k.flag
		}
	}
	if flags == 0 {
		return nil
	}
	if err := unix.Unshare(flags); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return fault.New(fault.Exhausted, op, "the limit of namespaces is reached (user.max_*_namespaces): %w", err)
		}
		return fault.New(fault.Internal, op, "unshare: %w", err)
	}
	if spec.UTS && spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fault.New(fault.Invalid, op, "hostname %q: %w", spec.Hostname, err)
		}
	}
	if spec.Net {
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}} // always 1 in a new namespace
		if err := netlink.LinkSetUp(lo); err != nil {
			return fault.New(fault.Internal, op, "bring up the loopback interface: %w", err)
		}
	}
	for _, s := range sysctls {
		if err := s.set(); err != nil {
			return err
		}
	}
	for _, k := range kinds {
		if !k.asked(spec) {
			continue
		}
		from := fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), k.name)
		if err := unix.Mount(from, filepath.Join(dir, k.name), "", unix.MS_BIND, ""); err != nil {
			return fault.New(fault.Internal, op, "pin the %s namespace: %w", k.name, err)
		}
	}
	return nil
}

// Release lets the namespaces below dir go; processes and descriptors that
// are in them keep them alive. It is idempotent, and works after a Create cut
// short, after a reboot, and without dir. It leaves dir to its owner.
func (*Maker) Release(_ context.Context, dir string) error {
	var errs []error
	for _, k := range kinds {
		path := filepath.Join(dir, k.name)
		// As often as something is mounted there: EINVAL says that nothing is.
		for {
			err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("unpin %s: %w", path, err))
			}
			break
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.New(fault.Internal, "namespace.Release", "%w", err)
	}
	return nil
}
