package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A claimFile lets the next keeper follow what this one was parent of.
type claimFile struct {
	Pid    int    `json:"pid"`
	Start  uint64 `json:"start"`
	Record bool   `json:"record"`
}

// recoverClaims takes over what a keeper that was killed has left: exits that
// it wrote, and processes that live on, or died since.
func (k *Keeper) recoverClaims() error {
	exits, err := os.ReadDir(filepath.Join(k.dir, "exits"))
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range exits {
		var ended monitor.Ended
		if load(filepath.Join(k.dir, "exits", e.Name()), &ended) == nil {
			k.claims[e.Name()] = &claim{pid: ended.Pid, record: true, ended: &ended}
		}
	}
	left, err := os.ReadDir(filepath.Join(k.dir, "claims"))
	if err != nil {
		return err
	}
	for _, e := range left {
		var f claimFile
		if k.claims[e.Name()] != nil || load(filepath.Join(k.dir, "claims", e.Name()), &f) != nil {
			continue
		}
		c := &claim{pid: f.Pid, start: f.Start, record: f.Record}
		k.claims[e.Name()] = c
		if err := k.follow(e.Name(), c); err != nil {
			k.log.Warn("process of the keeper before has gone", "id", e.Name(), "pid", f.Pid, "error", err)
			k.end(e.Name(), c, unknownEnd(f.Pid))
		}
	}
	return nil
}

func load(path string, v any) error {
	if strings.HasPrefix(filepath.Base(path), ".") {
		return errors.Join(errors.New("a write that was cut short"), os.Remove(path))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func unknownEnd(pid int) monitor.Ended {
	return monitor.Ended{Pid: pid, Code: 255, At: time.Now(), Unknown: true}
}

// follow watches a process that is not this keeper's child. k.mu must be held.
func (k *Keeper) follow(id string, c *claim) error {
	fd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return err
	}
	// Only with the pidfd in hand does the start time prove whose it is.
	if p, err := readProcess(c.pid); err != nil || p.start != c.start {
		return errors.Join(fmt.Errorf("pid %d is another process now", c.pid), err, unix.Close(fd))
	}
	c.followed, c.pidfd = true, fd
	k.watch(id, c)
	return nil
}

// watch ends c once its pidfd tells, and owns that. k.mu must be held.
func (k *Keeper) watch(id string, c *claim) {
	fd, pid := c.pidfd, c.pid
	go func() {
		ended := awaitPidfd(fd, pid)
		k.mu.Lock() // until then a successor could still use the pidfd
		defer k.mu.Unlock()
		_ = unix.Close(fd)
		if k.claims[id] == c && c.ended == nil {
			k.end(id, c, ended)
		}
	}()
}

// reapWait is how long a dead process's parent may take to reap it before its
// exit code counts as unknown.
const reapWait = 3 * time.Second

// awaitPidfd waits for the process to end, and where the kernel tells its exit
// code (>= 6.15), for it to be reaped.
func awaitPidfd(fd, pid int) monitor.Ended {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(poll, -1); err == nil && n > 0 {
			break
		} else if err != nil && !errors.Is(err, unix.EINTR) {
			return unknownEnd(pid)
		}
	}
	at := time.Now()
	for time.Since(at) < reapWait {
		status, err := exitInfo(fd)
		if err == nil {
			ended := endedBy(pid, status)
			ended.At = at
			return ended
		}
		if !errors.Is(err, errNotReaped) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	ended := unknownEnd(pid)
	ended.At = at
	return ended
}

var errNotReaped = errors.New("not reaped yet")

// kernel: include/uapi/linux/pidfd.h, struct pidfd_info and PIDFD_INFO_EXIT.
type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	ids      [11]uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3
	pidfdGetInfo  = 3<<30 | uint(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11
)

// exitInfo asks the kernel how the process of a pidfd ended.
func exitInfo(fd int) (unix.WaitStatus, error) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(pidfdGetInfo), uintptr(unsafe.Pointer(&info)))
	switch {
	case errno == unix.ESRCH: // it was being reaped while the kernel answered
		return 0, errNotReaped
	case errno != 0:
		return 0, errno
	case info.mask&pidfdInfoExit == 0:
		return 0, errNotReaped
	}
	return unix.WaitStatus(info.exitCode), nil
}

type process struct {
	parent int
	start  uint64
}

// readProcess reads what identifies a process. A zombie is one, too.
func readProcess(pid int) (process, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, err
	}
	// kernel: proc.rst, stat. The command's name may contain anything, ")" too.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return process{}, fmt.Errorf("stat of %d: no name", pid)
	}
	fields := strings.Fields(string(data[i+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("stat of %d: %d fields", pid, len(fields))
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return process{parent, start}, err
}
