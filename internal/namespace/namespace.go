// Package namespace makes a pod's net, ipc and uts namespaces without a
// process in them, pinned by bind mounts, and a user namespace that owns them
// if the pod is to have one.
//
// It owns the files "user", "net", "ipc" and "uts" below a directory that its
// caller names. No process is left, and the caller's own namespaces are never
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
	"github.com/davit-runtime/davit/internal/idmap"
)

// A Spec says which namespaces a pod has of its own and how they start.
type Spec struct {
	Net, IPC, UTS bool
	Users         idmap.Map         // of the user namespace that owns them; empty: they are the host's
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
	{"user", unix.CLONE_NEWUSER, func(s Spec) bool { return !s.Users.Empty() }}, // first: it owns the others
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
	return onThread(func() error {
		if spec.Users.Empty() {
			return build(dir, spec, sysctls, "")
		}
		flags := spec.flags() &^ unix.CLONE_NEWUSER
		return spec.Users.WithNamespaces(uintptr(flags), func(proc string) error {
			return build(dir, spec, sysctls, proc)
		})
	})
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

// build sets up new namespaces and pins them: those of the process whose
// directory below /proc is given or, without one, the calling thread's, which
// are made. The thread is in them afterwards, but in no other user namespace.
func build(dir string, spec Spec, sysctls []sysctl, proc string) error {
	const op = "namespace.Create"
	flags := spec.flags()
	if flags == 0 {
		return nil
	}
	if proc != "" {
		if err := enterAll(proc, spec); err != nil {
			return err
		}
	} else {
		if err := unix.Unshare(flags); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return fault.New(fault.Exhausted, op, "the limit of namespaces is reached (user.max_*_namespaces): %w", err)
			}
			return fault.New(fault.Internal, op, "unshare: %w", err)
		}
		proc = fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
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
	owner, _ := spec.Users.Host(0, 0)
	for _, s := range sysctls {
		if err := s.setFor(owner); err != nil {
			return err
		}
	}
	for _, k := range kinds {
		if !k.asked(spec) {
			continue
		}
		if err := unix.Mount(proc+"/ns/"+k.name, filepath.Join(dir, k.name), "", unix.MS_BIND, ""); err != nil {
			return fault.New(fault.Internal, op, "pin the %s namespace: %w", k.name, err)
		}
	}
	return nil
}

// flags are those of the namespaces asked for.
func (s Spec) flags() (flags int) {
	for _, k := range kinds {
		if k.asked(s) {
			flags |= k.flag
		}
	}
	return flags
}

// enterAll takes the calling thread into the namespaces of a process, except its
// user namespace, into which no thread of many can go.
func enterAll(proc string, spec Spec) error {
	for _, k := range kinds {
		if !k.asked(spec) || k.flag == unix.CLONE_NEWUSER {
			continue
		}
		fd, err := unix.Open(proc+"/ns/"+k.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, k.flag)
			_ = unix.Close(fd)
		}
		if err != nil {
			return fault.New(fault.Internal, "namespace.Create", "enter the %s namespace: %w", k.name, err)
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
		if err := idmap.Detach(filepath.Join(dir, k.name)); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.New(fault.Internal, "namespace.Release", "%w", err)
	}
	return nil
}
