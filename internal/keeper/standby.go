package keeper

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// renewEvery is how often one that stands by looks whether another program was
// installed in its place: nobody tells it, since nobody knows it.
const renewEvery = 2 * time.Second

// standBy takes the keeper's lock once it is free; nil if ctx ends before. When
// another program is installed where this one came from, it becomes that one:
// it would be the wrong one to take over what the upgraded keeper left.
func (o Options) standBy(ctx context.Context) (*os.File, error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(monitor.LockPath(o.Dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { // ends with the process if ctx does
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		locked <- err
	}()
	var refused os.FileInfo
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-locked:
			o.renew(program, refused) // which lets go of the lock, and waits again
			return f, err
		case <-ctx.Done():
			return nil, nil
		case <-tick.C:
			refused = o.renew(program, refused)
		}
	}
}

// renew becomes the program at path unless it is this one, or the one that was
// refused before. It returns only if nothing came of it, and then what is to
// be refused from now on.
func (o Options) renew(path string, refused os.FileInfo) os.FileInfo {
	installed, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return refused // it is being exchanged, or was removed
	}
	own, ownErr := os.Stat("/proc/self/exe")
	if err = errors.Join(err, ownErr); err == nil {
		if os.SameFile(installed, own) || refused != nil && os.SameFile(installed, refused) && installed.ModTime().Equal(refused.ModTime()) {
			return refused
		}
		o.Log.Info("another davit-monitor was installed and stands by from now on", "program", path)
		err = turnInto(o.hangups, path, []string{"davit-monitor", "keep", "--state", o.Dir, "--wait"}, os.Environ())
	}
	if errors.Is(err, unix.ETXTBSY) {
		return refused // it is being written
	}
	o.Log.Error("davit-monitor stands by as it is, not as the one installed", "installed", path, "error", err)
	return installed
}
