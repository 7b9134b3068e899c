package layer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/mount"
)

// A point is where a layer's file is mounted, or will be.
type point struct {
	refs int // who has it in hand; guarded by files.mu

	// hold is one layer's alone. Who reads may stack what is mounted, who
	// writes may unmount it. It comes before mu.
	hold sync.RWMutex

	mu      sync.Mutex // held while it is being mounted, too: others want the same
	mounted bool
	used    time.Time // the last time
}

// take returns a layer's point, until drop.
func (f *files) take(id string) *point {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.points[id]
	if p == nil {
		p = &point{}
		f.points[id] = p
	}
	p.refs++
	return p
}

func (f *files) drop(id string, p *point) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.refs--; p.refs == 0 && !p.mounted {
		delete(f.points, id)
	}
}

// at is where a layer is mounted.
func (f *files) at(id string) string { return filepath.Join(f.mounts, nameOf(id)) }

// adopt finds what an earlier process has mounted.
func (f *files) adopt() error {
	entries, err := os.ReadDir(f.mounts)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(f.mounts, e.Name())
		id, ok := idOf(e.Name())
		is, err := mount.Is(path)
		if err != nil {
			return err
		}
		if ok && is && f.has(id) {
			f.points[id] = &point{mounted: true, used: time.Now()}
			continue
		}
		// Killed while a layer was being removed, or a probe made.
		if err := mount.Unmount(path); err != nil {
			return err
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// use implements Store.Use.
func (f *files) use(id string) (dir string, done func(), err error) {
	p := f.take(id)
	p.hold.RLock()
	if err := f.mount(id, p); err != nil {
		p.hold.RUnlock()
		f.drop(id, p)
		return "", nil, err
	}
	return f.at(id), sync.OnceFunc(func() {
		p.mu.Lock()
		p.used = time.Now()
		p.mu.Unlock()
		p.hold.RUnlock()
		f.drop(id, p)
	}), nil
}

// mount mounts a layer unless it is.
func (f *files) mount(id string, p *point) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mounted {
		return nil
	}
	if f.way == mount.None {
		return fault.New(fault.Precondition, "layer", "layer %s is an EROFS file, which cannot be mounted here", id)
	}
	if _, err := f.inspect(id); err != nil {
		return err
	}
	if err := os.Mkdir(f.at(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return classify(err)
	}
	if err := f.way.Mount(f.path(id), f.at(id)); err != nil {
		return err
	}
	p.mounted = true
	return nil
}

// unmount takes a layer's mount away. p.hold is held for writing.
func (f *files) unmount(id string, p *point) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.mounted {
		return nil
	}
	if err := mount.Unmount(f.at(id)); err != nil {
		return err
	}
	p.mounted = false
	if err := os.Remove(f.at(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweep implements Store.Sweep.
func (f *files) sweep(idle time.Duration, keep func(id string) bool) error {
	f.mu.Lock()
	ids := make([]string, 0, len(f.points))
	for id := range f.points {
		ids = append(ids, id)
	}
	f.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if keep(id) {
			continue
		}
		p := f.take(id)
		if p.hold.TryLock() {
			p.mu.Lock()
			due := time.Since(p.used) >= idle
			p.mu.Unlock()
			if due {
				errs = append(errs, f.unmount(id, p))
			}
			p.hold.Unlock()
		}
		f.drop(id, p)
	}
	return errors.Join(errs...)
}
