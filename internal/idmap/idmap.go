// Package idmap maps the user and group IDs of a user namespace to those of
// the host, and makes mount trees that show files by such a map.
//
// It owns no state: a namespace is a descriptor, a tree is attached where its
// caller says and is its caller's to detach. Packages namespace, image and pod
// call it. It needs Linux 5.12, and says so where that is missing.
package idmap

import (
	"errors"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/holder"
)

// A Range maps Length IDs, from Container inside to Host outside, in order.
type Range struct{ Container, Host, Length uint32 }

// A Map is how the IDs of users and of groups are mapped. The zero value maps
// nothing, and stands for no user namespace at all.
type Map struct{ UIDs, GIDs []Range }

// Users is a user namespace.
type Users struct {
	Map
	Path string // of the file it is pinned by; empty: there is none yet
}

// overflow is who owns what no range covers. kernel: kernel/fs_overflowuid.
const overflow = 65534

// FromCRI returns the map of an API's two lists. Invalid for a list that the
// kernel would refuse.
func FromCRI(uids, gids []*runtimeapi.IDMapping) (Map, error) {
	var m Map
	for _, l := range []struct {
		what string
		from []*runtimeapi.IDMapping
		to   *[]Range
	}{{"uids", uids, &m.UIDs}, {"gids", gids, &m.GIDs}} {
		for _, r := range l.from {
			if r.GetLength() == 0 {
				return Map{}, fault.New(fault.Invalid, "", "%s: a mapping of length 0", l.what)
			}
			if uint64(r.GetContainerId())+uint64(r.GetLength()) > math.MaxUint32 || uint64(r.GetHostId())+uint64(r.GetLength()) > math.MaxUint32 {
				return Map{}, fault.New(fault.Invalid, "", "%s: a mapping of %d IDs from %d to %d passes the last ID", l.what, r.GetLength(), r.GetContainerId(), r.GetHostId())
			}
			*l.to = append(*l.to, Range{r.GetContainerId(), r.GetHostId(), r.GetLength()})
		}
	}
	return m, nil
}

// Empty reports whether m maps nothing.
func (m Map) Empty() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Equal reports whether two maps are the same.
func (m Map) Equal(o Map) bool { return slices.Equal(m.UIDs, o.UIDs) && slices.Equal(m.GIDs, o.GIDs) }

// Host returns who a user and a group of the namespace are on the host. An
// empty map leaves them as they are.
func (m Map) Host(uid, gid uint32) (hostUID, hostGID uint32) {
	if m.Empty() {
		return uid, gid
	}
	return toHost(m.UIDs, uid), toHost(m.GIDs, gid)
}

func toHost(ranges []Range, id uint32) uint32 {
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Length {
			return r.Host + (id - r.Container)
		}
	}
	return overflow
}

// attributes are those of a process that begins in namespaces of its own. It
// may have groups: the map is written by the host's root.
func (m Map) attributes(flags uintptr) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Cloneflags: flags | unix.CLONE_NEWUSER, Pdeathsig: unix.SIGKILL, GidMappingsEnableSetgroups: true,
	}
	for _, r := range m.UIDs {
		a.UidMappings = append(a.UidMappings, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Length)})
	}
	for _, r := range m.GIDs {
		a.GidMappings = append(a.GidMappings, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Length)})
	}
	return a
}

// A process of several threads cannot enter another user namespace, so each
// new one begins with a process of its own.

// WithNamespaces calls f while there is a process in a new user namespace,
// and in the new namespaces that flags (CLONE_NEW…) asks for, owned by it. proc
// is the directory of the process below /proc. The process is gone afterwards;
// what of its namespaces nobody has kept goes with it.
//
// The calling goroutine must be locked to its thread: the process dies with it.
func (m Map) WithNamespaces(flags uintptr, f func(proc string) error) error {
	const op = "idmap.WithNamespaces"
	program, err := holder.Open()
	if err != nil {
		return fault.New(fault.Unimplemented, op, "a program in memory: %w", err)
	}
	defer program.Close()
	p, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(program.Fd())), []string{"davitd", "hold"},
		&os.ProcAttr{Dir: "/", Env: []string{}, Sys: m.attributes(flags)})
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fault.New(fault.Exhausted, op, "the limit of namespaces is reached (user.max_*_namespaces): %w", err)
	case err != nil:
		return fault.New(fault.Internal, op, "a process in a new user namespace: %w", err)
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	return f("/proc/" + strconv.Itoa(p.Pid))
}

// Open returns a user namespace with this map that lasts as long as its
// descriptor, or what refers to it.
func (m Map) Open() (f *os.File, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = m.WithNamespaces(0, func(proc string) error {
		f, err = os.Open(proc + "/ns/user")
		return err
	})
	return f, err
}

// open returns the namespace that is pinned, else a new one.
func (u *Users) open() (*os.File, error) {
	if u.Path == "" {
		return u.Open()
	}
	f, err := os.Open(u.Path)
	if err != nil {
		return nil, fault.New(fault.Internal, "", "user namespace: %w", err)
	}
	return f, nil
}
