package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// Kill ends every process in the cgroup and below, and waits until none is
// left. A cgroup that is not there is empty. It returns Deadline or Canceled,
// saying which processes stay and what they wait for, if ctx ends first.
func (h *Host) Kill(ctx context.Context, p Place) error {
	if err := sane(p); err != nil {
		return err
	}
	wait := backoff{}
	for {
		left, err := kill(p.Dirs)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if err := wait.next(ctx); err != nil {
			return fault.New(fault.KindOf(err), "cgroup.Kill", "%s: %d processes do not end: %s: %w", p.ID, len(left), describe(left), err)
		}
	}
}

// Remove removes the cgroup and those below it, and waits while the kernel
// calls them busy. One that is not there is removed. It returns Deadline or
// Canceled if ctx ends first.
func (h *Host) Remove(ctx context.Context, p Place) error {
	if err := sane(p); err != nil {
		return err
	}
	wait := backoff{}
	for {
		var busy error
		for _, d := range p.Dirs {
			if err := removeTree(d); err != nil {
				busy = err
			}
		}
		if busy == nil {
			return nil
		}
		if !errors.Is(busy, unix.EBUSY) && !errors.Is(busy, unix.ENOTEMPTY) {
			return fault.New(fault.Internal, "cgroup.Remove", "%w", busy)
		}
		if err := wait.next(ctx); err != nil {
			return fault.New(fault.KindOf(err), "cgroup.Remove", "%w: %w", busy, err)
		}
	}
}

// sane refuses a Place that does not end in its own ID: a zero one, or one
// from a damaged record, might name the cgroup of everybody.
func sane(p Place) error {
	for _, d := range p.Dirs {
		if base := filepath.Base(d); p.ID == "" || base != p.ID && base != scopeOf(p.ID) {
			return fault.New(fault.Internal, "cgroup", "%q is not the cgroup of %q", d, p.ID)
		}
	}
	return nil
}

// kill sends SIGKILL to all processes below dirs and returns those that were
// still there.
func kill(dirs []string) ([]int, error) {
	before, err := processes(dirs)
	if err != nil || len(before) == 0 {
		return nil, err
	}
	killed := false // by the kernel, since 5.14
	for _, d := range dirs {
		killed = writeFile(d, "cgroup.kill", "1") == nil
	}
	if !killed || len(dirs) > 1 { // in a hybrid layout nobody need be in the v2 tree
		// Frozen, so that nobody can fork away from the list.
		setFrozen(dirs, true)
		err = killEach(dirs)
		setFrozen(dirs, false)
		if err != nil {
			return nil, err
		}
	}
	return processes(dirs)
}

// describe says what the first few processes are and where in the kernel
// they wait: one in state D cannot be killed.
func describe(pids []int) string {
	var all []string
	for _, pid := range pids[:min(len(pids), 5)] {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		stat, _ := readFile(dir, "stat")
		where, _ := readFile(dir, "wchan")
		_, fields, _ := strings.Cut(stat, "(")
		name, fields, _ := cutLast(fields, ") ")
		state, _, _ := strings.Cut(fields, " ")
		all = append(all, fmt.Sprintf("%d (%s, state %s, in %s)", pid, name, state, where))
	}
	return strings.Join(all, ", ")
}

// cutLast is strings.Cut at the last sep: a process may have one in its name.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// killEach kills by process descriptors, and only those still in the cgroup
// once the descriptor is open: a number may have been taken by somebody else.
func killEach(dirs []string) error {
	pids, err := processes(dirs)
	if err != nil {
		return err
	}
	open := map[int]int{}
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			open[pid] = fd
		}
	}
	still, err := processes(dirs)
	for pid, fd := range open {
		if err == nil && slices.Contains(still, pid) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may have ended by itself
		}
		unix.Close(fd)
	}
	return err
}

// setFrozen stops or lets go all processes below dirs, where it can be done.
// On v1 a frozen process dies only once it is let go, also by whoever froze a
// cgroup further down: a container that runs containers may have.
func setFrozen(dirs []string, frozen bool) {
	for _, d := range dirs {
		if frozen {
			_ = writeFile(d, "freezer.state", "FROZEN")
			_ = writeFile(d, "cgroup.freeze", "1")
			continue
		}
		_ = writeFile(d, "cgroup.freeze", "0")
		if writeFile(d, "freezer.state", "THAWED") != nil {
			continue
		}
		_ = filepath.WalkDir(d, func(at string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				_ = writeFile(at, "freezer.state", "THAWED")
			}
			return nil
		})
	}
}

// processes lists the processes in dirs and in the cgroups below.
func processes(dirs []string) ([]int, error) {
	var pids []int
	for _, d := range dirs {
		err := filepath.WalkDir(d, func(at string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !e.IsDir() {
				return nil
			}
			if err != nil {
				return err
			}
			text, err := readFile(at, "cgroup.procs")
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
				return nil // removed meanwhile; or threaded, and listed by its parent
			}
			for s := range strings.FieldsSeq(text) {
				if pid, err := strconv.Atoi(s); err == nil && pid > 0 { // 0: in a PID namespace not below ours
					pids = append(pids, pid)
				}
			}
			return err
		})
		if err != nil {
			return nil, fault.New(fault.Internal, "cgroup", "processes: %w", err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// removeTree removes the cgroups below dir, then dir.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	below, _ := os.ReadDir(dir)
	for _, e := range below {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}

// A backoff waits 1 ms, then longer each time, to at most 50 ms.
type backoff struct{ last time.Duration }

func (b *backoff) next(ctx context.Context) error {
	b.last = min(max(b.last*2, time.Millisecond), 50*time.Millisecond)
	t := time.NewTimer(b.last)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
