package writable

import (
	"errors"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// accounts are those that a file system keeps by project (ext4 or XFS with
// prjquota), so that a writable layer with a project of its own need not be
// walked. No limit is ever set.
//
// kernel: quotactl(2), since 5.14 by descriptor; ioctl_xfs_fsgetxattr(2)
type accounts struct{ dir *os.File }

// openAccounts returns nil where the file system of dir keeps no accounts, or
// where dir is somebody's project already: what is below may then not move
// between projects.
func openAccounts(dir string) *accounts {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	a := &accounts{f}
	project, inherited, err := projectOf(f)
	if err == nil && project == 0 && !inherited {
		if _, _, err := a.of(firstProject); err == nil {
			return a
		}
	}
	_ = f.Close()
	return nil
}

func (a *accounts) close() error { return a.dir.Close() }

// Projects are numbers that everybody on a file system chooses for himself:
// davit's are in a range that others leave alone, and unused when chosen.
const (
	firstProject = 1 << 30
	projects     = 1 << 30
)

// begin gives a directory that is still empty a project of its own, which
// whatever is made in it will have, too.
func (a *accounts) begin(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 16 {
		id := firstProject + rand.Uint32N(projects)
		if size, inodes, err := a.of(id); err != nil || size > 0 || inodes > 0 {
			continue
		}
		return setProject(f, id)
	}
	return errors.New("no project is free")
}

// projectIn returns the project of a directory; 0 is none.
func projectIn(dir string) uint32 {
	f, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer f.Close()
	project, _, err := projectOf(f)
	if err != nil || project < firstProject {
		return 0
	}
	return project
}

// A diskQuota is the kernel's struct if_dqblk.
type diskQuota struct {
	_, _, space  uint64
	_, _, inodes uint64
	_, _         uint64
	_            uint32
}

// of returns what a project has, in bytes and inodes.
func (a *accounts) of(project uint32) (size, inodes uint64, err error) {
	const getProjectQuota = 0x800007<<8 | 2 // QCMD(Q_GETQUOTA, PRJQUOTA)
	var q diskQuota
	_, _, e := unix.Syscall6(unix.SYS_QUOTACTL_FD, a.dir.Fd(), getProjectQuota, uintptr(project), uintptr(unsafe.Pointer(&q)), 0, 0)
	switch e {
	case 0, unix.ENOENT: // XFS has no account yet
		return q.space, q.inodes, nil
	}
	return 0, 0, os.NewSyscallError("quotactl_fd", e)
}

// A fileAttributes is the kernel's struct fsxattr.
type fileAttributes struct {
	flags, _, _ uint32
	project, _  uint32
	_           [8]byte
}

const (
	getAttributes  = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes  = 0x401c5820 // FS_IOC_FSSETXATTR
	inheritProject = 0x200      // FS_XFLAG_PROJINHERIT
)

func projectOf(f *os.File) (project uint32, inherited bool, err error) {
	var a fileAttributes
	err = attributes(f, getAttributes, &a)
	return a.project, a.flags&inheritProject != 0, err
}

func setProject(f *os.File, project uint32) error {
	var a fileAttributes
	if err := attributes(f, getAttributes, &a); err != nil {
		return err
	}
	a.project = project
	a.flags |= inheritProject
	return attributes(f, setAttributes, &a)
}

func attributes(f *os.File, call uintptr, a *fileAttributes) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), call, uintptr(unsafe.Pointer(a)))
	if e != 0 {
		return os.NewSyscallError("ioctl", e)
	}
	return nil
}
