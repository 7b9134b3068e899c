package cgroup

import (
	"errors"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// Rescore sets oom_score_adj of those processes of p that have from. Others
// have chosen theirs themselves. All are set, or none: Precondition if the
// kernel refuses one.
//
// kernel: proc.rst, "/proc/<pid>/oom_adj & /proc/<pid>/oom_score_adj".
func (h *Host) Rescore(p Place, from, to int64) error {
	if from == to {
		return nil
	}
	seen := map[int]bool{}
	var done []int
	for { // until no process is there that one not seen yet may have forked
		pids, err := processes(p.Dirs)
		if err != nil {
			return err
		}
		found := false
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid], found = true, true
			changed, err := rescore(pid, from, to)
			if err != nil {
				for _, pid := range done {
					_, back := rescore(pid, to, from)
					err = errors.Join(err, back)
				}
				return err
			}
			if changed {
				done = append(done, pid)
			}
		}
		if !found {
			return nil
		}
	}
}

// rescore changes one process's value. One that has gone needs none.
func rescore(pid int, from, to int64) (changed bool, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	now, err := readFile(dir, "oom_score_adj")
	if err == nil && now == decimal(from) {
		changed = true
		err = writeFile(dir, "oom_score_adj", decimal(to))
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return changed, nil
	}
	return false, fault.New(fault.Precondition, "", "oom_score_adj: %w", err)
}
