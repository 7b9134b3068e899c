package layer

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A Trash takes directories away at once and deletes them behind the caller's
// back. What it has not deleted when the process ends, the next one deletes.
type Trash struct {
	dir    string
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	slot   chan struct{} // one deletion at a time
	wg     sync.WaitGroup
}

// OpenTrash returns the trash in dir, and goes on deleting what is in it.
// Close ends that and waits for it.
func OpenTrash(dir string, log *slog.Logger) (*Trash, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	t := &Trash{dir: dir, log: log, slot: make(chan struct{}, 1)}
	t.ctx, t.cancel = context.WithCancel(context.Background()) //nolint:forbidigo // the owner is Close
	for _, e := range entries {
		t.remove(filepath.Join(dir, e.Name()))
	}
	return t, nil
}

// Put takes path, which must be on the trash's file system, away. It succeeds
// if there is nothing.
func (t *Trash) Put(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	into, err := os.MkdirTemp(t.dir, "")
	if err != nil {
		return os.RemoveAll(path) // a full disk must not stop a deletion
	}
	err = os.Rename(path, filepath.Join(into, filepath.Base(path)))
	t.remove(into)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else was faster
	}
	return err
}

func (t *Trash) remove(path string) {
	t.wg.Go(func() {
		select {
		case t.slot <- struct{}{}:
			defer func() { <-t.slot }()
		case <-t.ctx.Done():
			return
		}
		if err := removeAll(t.ctx, path, 4); err != nil && t.ctx.Err() == nil {
			t.log.Warn("deleting what is not needed any more", "path", path, "error", err)
		}
	})
}

// Wait returns when all is deleted that was put in so far.
func (t *Trash) Wait() { t.wg.Wait() }

// Close stops deleting.
func (t *Trash) Close() {
	t.cancel()
	t.wg.Wait()
}

// removeAll is os.RemoveAll that looks up from its work now and then, in the
// uppermost levels of directories.
func removeAll(ctx context.Context, path string, levels int) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if levels > 0 {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if err := removeAll(ctx, filepath.Join(path, e.Name()), levels-1); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(path)
}
