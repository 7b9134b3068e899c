package monitor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// Ensure starts the keeper of a state directory, which starts davit-monitor,
// unless one is alive, and waits until it listens. binary is davit-monitor's
// path. What the two have to say goes to monitor.log in state.
//
// The keeper is no child of the caller: it outlives it.
func Ensure(ctx context.Context, binary, state string) error {
	if err := os.MkdirAll(state, 0o711); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		// One that is dying still has the lock: look again if it does not answer.
		if !alive(state) {
			if err := spawn(binary, state); err != nil {
				return err
			}
		}
		// A keeper that lost the race for the lock has gone again; the winner answers.
		try, done := context.WithTimeout(limited, time.Second)
		_, err := Connect(state).List(try)
		done()
		if err == nil {
			return nil
		}
		if limited.Err() != nil {
			return fault.New(fault.Unavailable, "monitor.Ensure", "davit-monitor does not come up (see %s): %w", logPath(state), err)
		}
	}
}

func logPath(state string) string { return filepath.Join(state, "monitor.log") }

// alive reports whether a keeper has the lock.
func alive(state string) bool {
	f, err := os.Open(LockPath(state))
	if err != nil {
		return false
	}
	defer f.Close()
	// Shared, so that two that look at once do not see each other.
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK)
}

// spawn starts a keeper in a session of its own. The process that is started
// starts the keeper and ends, so that the keeper is not the caller's child.
func spawn(binary, state string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(logPath(state), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	process, err := os.StartProcess(binary, []string{binary, "keep", "--detach", "--state", state}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{null, log, log}, Sys: &unix.SysProcAttr{Setsid: true},
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Unavailable, "monitor.Ensure", "davit-monitor cannot be run: %w", err)
	}
	if err != nil {
		return err
	}
	status, err := process.Wait()
	if err != nil {
		return err
	}
	if !status.Success() {
		return fault.New(fault.Unavailable, "monitor.Ensure", "%s keep: %s (see %s)", binary, status, logPath(state))
	}
	return nil
}
