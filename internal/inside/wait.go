package inside

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// WaitAlone waits until no other process has been seen in this one's mount
// namespace twice, that long apart, or until ctx ends. A container whose
// sessions are lost ends so.
func WaitAlone(ctx context.Context, apart time.Duration) error {
	look := time.NewTicker(apart)
	defer look.Stop()
	for before := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		now, err := alone("/proc")
		if err != nil || now && before {
			return err
		}
		before = now
	}
}

func alone(proc string) (bool, error) {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/mnt"))
	if err != nil {
		return false, err
	}
	all, _ := filepath.Glob(filepath.Join(proc, "[0-9]*/ns/mnt"))
	n := 0
	for _, path := range all {
		if ns, _ := os.Readlink(path); ns == own {
			n++
		}
	}
	if n == 0 {
		return false, errors.New("this process is not in /proc")
	}
	return n == 1, nil
}
