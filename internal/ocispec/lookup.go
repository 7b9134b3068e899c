package ocispec

import (
	"path/filepath"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// Lookups follow symbolic links on file systems that may never answer: a dead
// NFS server holds up whoever asks for as long as it is dead. So each caller
// waits for a while only, and a path that is being looked up is not looked up
// once more: as many threads are stuck as there are such paths, however often
// they are asked for.
type lookups struct {
	patience time.Duration

	mu      sync.Mutex
	pending map[string]*lookup
}

type lookup struct {
	done   chan struct{} // closed when the others are set
	result string
	err    error
}

var hostPaths = &lookups{patience: 8 * time.Second, pending: map[string]*lookup{}}

// resolve returns a path without symbolic links. Unavailable if its file
// system does not answer.
func (l *lookups) resolve(path string) (string, error) {
	l.mu.Lock()
	p := l.pending[path]
	if p == nil {
		p = &lookup{done: make(chan struct{})}
		l.pending[path] = p
		// Nobody waits for it to the end, since nothing can end it.
		go func() {
			p.result, p.err = filepath.EvalSymlinks(path)
			l.mu.Lock()
			delete(l.pending, path)
			l.mu.Unlock()
			close(p.done)
		}()
	}
	l.mu.Unlock()
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.result, p.err
	case <-timer.C:
		return "", fault.New(fault.Unavailable, "", "its file system does not answer, for %v now", l.patience)
	}
}
