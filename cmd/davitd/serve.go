package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// stopWait is how long calls under way may take to end once davitd is to stop.
const stopWait = 5 * time.Second

// listen makes the socket under a temporary name and renames it, so that
// nobody ever meets one that is not served or that others may connect to.
func listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	temporary := filepath.Join(dir, fmt.Sprintf(".s%d", os.Getpid()))
	// kernel: unix(7), sun_path has 108 bytes with the zero at the end.
	if n := max(len(path), len(temporary)); n > 107 {
		return nil, fmt.Errorf("socket %s: the path is %d bytes long, the kernel allows 107", path, n)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("socket %s: there is a directory of that name", path)
	}
	_ = os.Remove(temporary)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: temporary})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = errors.Join(os.Chmod(temporary, 0o660), os.Chown(temporary, os.Getuid(), os.Getgid()))
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temporary))
	}
	return l, nil
}

// served reports whether a program listens at a socket already.
func served(path string) bool {
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// serve serves each server on its socket until ctx ends, then lets calls under
// way end. The sockets go. ready is called once all of them are there, and
// returns a line for the service manager.
func serve(ctx context.Context, sockets map[string]*grpc.Server, log *slog.Logger, ready func() string) error {
	listeners, files := map[string]net.Listener{}, map[string]os.FileInfo{}
	defer func() {
		for path, l := range listeners {
			_ = l.Close()
			if now, err := os.Lstat(path); err == nil && os.SameFile(now, files[path]) { // no other program's
				_ = os.Remove(path)
			}
		}
	}()
	for path := range sockets {
		l, err := listen(path)
		if err != nil {
			return err
		}
		listeners[path] = l
		if files[path], err = os.Lstat(path); err != nil {
			return err
		}
	}
	served := make(chan error, len(sockets))
	for path, s := range sockets {
		go func() {
			err := s.Serve(listeners[path])
			if errors.Is(err, grpc.ErrServerStopped) { // it ended before this began
				err = nil
			}
			served <- err
		}()
	}
	notify(log, daemon.SdNotifyReady+"\nSTATUS="+ready())
	var errs []error
	select {
	case err := <-served: // none ends by itself
		errs = append(errs, err)
	case <-ctx.Done():
		notify(log, daemon.SdNotifyStopping+"\nSTATUS=Stopping; containers run on")
		log.Info("stopping; calls under way may end", "within", stopWait)
	}
	var stopping sync.WaitGroup
	for _, s := range sockets {
		stopping.Go(func() {
			forced := time.AfterFunc(stopWait, s.Stop)
			defer forced.Stop()
			s.GracefulStop()
		})
	}
	stopping.Wait()
	for range len(sockets) - len(errs) {
		errs = append(errs, <-served)
	}
	return errors.Join(errs...)
}

// notify tells the service manager, if there is one. systemd: sd_notify(3).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager was not told", "state", state, "error", err)
	}
}

// checkLimits says so once if davit could not hold many containers. The limit
// is not raised here: containers inherit what davitd was started with.
func checkLimits(log *slog.Logger) {
	const enough = 1 << 16
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Max < enough {
		log.Info("few open files are allowed, which limits the number of containers", "limit", limit.Max, "enough", enough)
	}
}
