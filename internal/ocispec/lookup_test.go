package ocispec

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// A file system whose server never answers holds up nobody for long, and one
// thread however many ask.
func TestDeadFileSystem(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("this kernel has no FUSE")
	}
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)
	if err := unix.Mount("dead", dir, "fuse", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	l := &lookups{patience: 50 * time.Millisecond, pending: map[string]*lookup{}}
	path := filepath.Join(dir, "data")
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if _, err := l.resolve(path); !fault.Is(err, fault.Unavailable) {
				t.Errorf("%v", err)
			}
		})
	}
	all.Wait()
	l.mu.Lock()
	stuck := l.pending[path]
	if len(l.pending) != 1 {
		t.Errorf("%d are looked up", len(l.pending))
	}
	l.mu.Unlock()
	_ = unix.Close(server) // the kernel fails all that wait
	<-stuck.done
	if got, err := l.resolve("/proc/self/.."); got != "/proc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
