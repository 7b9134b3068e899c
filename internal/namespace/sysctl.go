package namespace

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A sysctl is one setting to write inside the new namespaces.
type sysctl struct {
	path     string // below /proc/sys, slashed
	value    string
	optional bool // one of davit's own defaults: a kernel may lack it or refuse it
}

// defaults are set in a network namespace of the pod's own unless the pod
// says otherwise, so that it needs no privilege to ping and to listen on port 80.
//
// CRI: CRI.md, "linux.sysctls".
var defaults = []sysctl{
	{"net/ipv4/ping_group_range", "0 2147483647", true},
	{"net/ipv4/ip_unprivileged_port_start", "0", true},
}

// checkSysctls returns what to set for spec, sorted by name, or Invalid naming
// the sysctl at fault.
//
// kernel: only these are kept for each namespace, see net/sysctl_net.c,
// ipc/ipc_sysctl.c and ipc/mq_sysctl.c.
func checkSysctls(spec Spec) ([]sysctl, error) {
	const op = "namespace.Create"
	var out []sysctl
	for name, value := range spec.Sysctls {
		path := slashed(name)
		for _, element := range strings.Split(path, "/") {
			if element == "" || element == "." || element == ".." || strings.ContainsRune(element, 0) {
				return nil, fault.New(fault.Invalid, op, "sysctl %q: malformed name", name)
			}
		}
		switch {
		case strings.HasPrefix(path, "net/"):
			if !spec.Net {
				return nil, fault.New(fault.Invalid, op, "sysctl %q: the pod has no network namespace of its own", name)
			}
		case strings.HasPrefix(path, "kernel/shm"), strings.HasPrefix(path, "kernel/msg"),
			path == "kernel/sem", strings.HasPrefix(path, "fs/mqueue/"):
			if !spec.IPC {
				return nil, fault.New(fault.Invalid, op, "sysctl %q: the pod has no IPC namespace of its own", name)
			}
		default:
			return nil, fault.New(fault.Invalid, op, "sysctl %q is not namespaced: it would change the host", name)
		}
		out = append(out, sysctl{path: path, value: value})
	}
	if spec.Net {
		for _, d := range defaults {
			if !slices.ContainsFunc(out, func(s sysctl) bool { return s.path == d.path }) {
				out = append(out, d)
			}
		}
	}
	slices.SortFunc(out, func(a, b sysctl) int { return strings.Compare(a.path, b.path) })
	for i := 1; i < len(out); i++ {
		if out[i].path == out[i-1].path {
			return nil, fault.New(fault.Invalid, op, "sysctl %s is given twice, in two spellings", out[i].path)
		}
	}
	return out, nil
}

// slashed returns name in slashed form. The first separator decides: after a
// dot, dots separate and slashes stand for dots, as in net.ipv4.conf.eth0/100.rp_filter.
func slashed(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// setFor writes the sysctl of namespaces whose root is a certain user. Those of
// IPC let only that user write, not even the host's root; those of the network
// are for who may administer it. It must run in a thread that is to end.
//
// kernel: ipc/ipc_sysctl.c, ipc_permissions; net/sysctl_net.c, net_ctl_permissions.
func (s sysctl) setFor(uid uint32) error {
	if uid == 0 || strings.HasPrefix(s.path, "net/") {
		return s.set()
	}
	// Not unix.Setresuid, which is for all threads.
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return fault.New(fault.Internal, "namespace.Create", "become user %d: %w", uid, errno)
	}
	err := s.set()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same); errno != 0 && err == nil {
		return fault.New(fault.Internal, "namespace.Create", "become root again: %w", errno)
	}
	return err
}

// set writes the sysctl. /proc/sys shows the namespaces of the task that opens
// the file, so this must run in the thread that has them.
func (s sysctl) set() error {
	fd, err := unix.Open("/proc/sys/"+s.path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(s.value))
		_ = unix.Close(fd)
	}
	switch {
	case err == nil, s.optional:
		return nil
	case errors.Is(err, unix.ENOENT):
		return fault.New(fault.Invalid, "namespace.Create", "sysctl %s: this kernel has none of that name in a namespace", s.path)
	}
	return fault.New(fault.Invalid, "namespace.Create", "sysctl %s=%q: %w", s.path, s.value, err)
}
