package pod

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The mounts of a pod's own, in a mount namespace that ends with the test.
func TestKernelMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with its mount namespace
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		tryMounts(t, dir)
	}()
	<-done
}

func tryMounts(t *testing.T, dir string) {
	m := kernelMounts{}
	shm, pid := filepath.Join(dir, "shm"), filepath.Join(dir, "pid")
	for range 2 { // nothing is there
		if err := m.unmount(shm); err != nil {
			t.Error(err)
		}
	}
	if err := m.shm(shm); err != nil {
		t.Error(err)
	}
	if err := m.pin(os.Getpid(), pid); err != nil {
		t.Error(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 64<<20 {
		t.Errorf("shm: %+v, %v", fs, err)
	}
	if info, err := os.Stat(shm); err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("shm: %v, %v", info, err)
	}
	var pinned, own unix.Stat_t
	if err := unix.Stat(pid, &pinned); err != nil {
		t.Error(err)
	}
	if err := unix.Stat("/proc/self/ns/pid", &own); err != nil || pinned.Ino != own.Ino {
		t.Errorf("pinned %d, want %d, %v", pinned.Ino, own.Ino, err)
	}
	for _, path := range []string{shm, pid, shm, pid} {
		if err := m.unmount(path); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
