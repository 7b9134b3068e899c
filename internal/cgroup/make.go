package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// Prepare makes davit's own parent for an empty parent; any other is the
// caller's, and systemd makes its own. It is idempotent.
func (h *Host) Prepare(_ context.Context, parent string) error {
	if strings.Trim(parent, "/") != "" || h.driver == Systemd {
		return nil
	}
	for _, t := range h.trees {
		if err := ensure(t, filepath.Join(t.mount, ownParent)); err != nil {
			return err
		}
		if t.unified && h.layout == V2 {
			h.enable(t.mount)
			h.enable(filepath.Join(t.mount, ownParent))
		}
	}
	return nil
}

// Create makes a cgroup for a process that no OCI runtime starts, ready to be
// joined through the cgroup.procs of each of p.Dirs. It is idempotent.
func (h *Host) Create(_ context.Context, p Place) error {
	for _, t := range h.trees {
		for _, d := range p.Dirs {
			if strings.HasPrefix(d, t.mount+"/") {
				if err := ensure(t, d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Expect tells that a process will be moved into a cgroup soon. It returns at
// once. The first move after a while waits for an RCU grace period, 10 to 20 ms
// on a host with work to do, and those that follow do not: so Expect makes one
// that changes nothing, of this process to where it is, beside what else there
// is to do until then.
//
// kernel: kernel/cgroup/cgroup.c, cgroup_attach_lock; kernel/rcu/sync.c.
func (h *Host) Expect() {
	if h.moving.CompareAndSwap(false, true) {
		h.moves.Go(func() {
			defer h.moving.Store(false)
			if procs := ownProcs(h.trees[0]); procs != "" {
				_ = os.WriteFile(procs, []byte("0"), 0)
			}
		})
	}
}

// ownProcs returns the file that lists the processes of this one's cgroup.
func ownProcs(t tree) string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == strings.Join(t.controllers, ",") {
			return filepath.Join(t.mount, f[2], "cgroup.procs")
		}
	}
	return ""
}

// Close removes davit's own parent if nothing is left in it.
func (h *Host) Close() error {
	h.moves.Wait()
	for _, t := range h.trees {
		err := os.Remove(filepath.Join(t.mount, ownParent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Internal, "cgroup.Close", "%w", err)
		}
	}
	return nil
}

// ensure makes dir and what is missing above it. A cpuset of v1 starts with
// no CPUs, and then refuses processes: it takes its parent's.
func ensure(t tree, dir string) error {
	if dir == t.mount {
		return nil
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err = ensure(t, filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fault.New(kindOf(err), "", "control group: %w", err)
	}
	if !slices.Contains(t.controllers, "cpuset") {
		return nil
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		now, err := readFile(dir, name)
		if err != nil || now != "" {
			continue
		}
		if above, err := readFile(filepath.Dir(dir), name); err == nil && above != "" {
			if err := writeFile(dir, name, above); err != nil {
				return err
			}
		}
	}
	return nil
}

// enable passes every controller that dir has on to its children, one by one:
// one that cannot be (cpu, while real-time processes exist) must not keep the others.
func (h *Host) enable(dir string) {
	have, err := readFile(dir, "cgroup.controllers")
	if err != nil {
		return
	}
	on, _ := readFile(dir, "cgroup.subtree_control")
	for _, c := range strings.Fields(have) {
		if slices.Contains(strings.Fields(on), c) {
			continue
		}
		if err := writeFile(dir, "cgroup.subtree_control", "+"+c); err != nil {
			h.warnEnable.Do(func() {
				h.log.Warn("a cgroup controller cannot be enabled for containers: its limits are not in force", "controller", c, "error", err)
			})
		}
	}
}

// readFile returns a file's content without the last newline.
func readFile(dir, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(text)), err
}

// writeFile writes to a file that must be there. The error names it, and what
// the kernel refused.
func writeFile(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fault.New(kindOf(err), "", "%q: %w", value, err)
	}
	return nil
}

// kindOf says whose fault the kernel's refusal is.
func kindOf(err error) fault.Kind {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
		return fault.Invalid
	}
	return fault.Precondition
}
