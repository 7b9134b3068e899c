// Package writable knows what the writable layers of containers take on disk.
// Answers are from memory or from the file system's own accounts; nobody who
// asks waits for a layer to be walked. Package image, whose layers they are,
// calls it.
package writable

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// How often a writable layer is walked, and how much of one CPU all walks
// together may take. Each is walked only if somebody asks, while the answer is
// what was counted last.
const (
	walkEvery = 15 * time.Second // one that a container may be writing to
	walkRest  = 10 * time.Minute // one that nobody asks for by name
	walkShare = 20               // a twentieth
	walkTurns = 2                // how many are walked side by side
)

// A Tally knows what writable layers take on disk. Where the file system keeps
// accounts (project quotas) it asks that; else it walks the layer, later, off
// the path of who asks.
type Tally struct {
	dir    func(id string) string // of a container's writable side
	books  *accounts              // nil: none are kept
	ctx    context.Context        // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // walkers

	mu      sync.Mutex // guards what follows; never held across I/O
	layers  map[string]*figure
	queue   []string
	walkers int

	pace sync.Mutex // held by a walk that rests, so that all rest
}

// A Figure is what was counted last, and when; At is zero if nothing was.
type Figure struct {
	Bytes, Inodes uint64
	At            time.Time
}

// A figure is kept for each layer there is, also of containers that have exited.
type figure struct {
	Figure
	project uint32    // 0: to be walked
	next    time.Time // not to be walked again before
	queued  bool
}

// NewTally returns a tally that knows no layer yet; dir tells where a
// container's writable side is, and with an empty ID where all are.
func NewTally(dir func(id string) string) *Tally {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the owner is Close
	return &Tally{dir: dir, books: openAccounts(dir("")), ctx: ctx, cancel: cancel, layers: map[string]*figure{}}
}

// Close ends walks under way, and waits.
func (t *Tally) Close() error {
	t.mu.Lock()
	t.cancel() // with mu held, so that nobody starts after
	t.mu.Unlock()
	t.wg.Wait()
	if t.books != nil {
		return t.books.close()
	}
	return nil
}

// Begin makes a layer known before there is anything in it: where accounts are
// kept, it is given a project. One that is there already is known as it is.
// Forget ends that.
func (t *Tally) Begin(id string) {
	f := &figure{}
	if t.books != nil {
		dir := t.dir(id)
		if f.project = projectIn(dir); f.project == 0 && !isThere(UpperDir(dir)) {
			_ = t.books.begin(dir) // without one it is walked
			f.project = projectIn(dir)
		}
	}
	t.add(id, f)
}

// Adopt makes known what an earlier process made. Not every lease has a layer.
func (t *Tally) Adopt(id string) {
	if dir := t.dir(id); isThere(UpperDir(dir)) {
		f := &figure{}
		if t.books != nil {
			f.project = projectIn(dir)
		}
		t.add(id, f)
	}
}

func (t *Tally) add(id string, f *figure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.layers[id] == nil {
		t.layers[id] = f
	}
}

// UpperDir is the part of a writable side that is the layer.
func UpperDir(writable string) string { return filepath.Join(writable, "upper") }

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Forget ends what Begin or Adopt began.
func (t *Tally) Forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.layers, id)
}

// Of returns what one layer takes, and sees to it that the next answer is newer.
func (t *Tally) Of(id string) (Figure, bool) {
	t.mu.Lock()
	f := t.layers[id]
	if f == nil {
		t.mu.Unlock()
		return Figure{}, false
	}
	if f.project == 0 {
		t.want(id, f, time.Now())
	}
	now := *f
	t.mu.Unlock()
	t.ask(id, &now)
	return now.Figure, true
}

// ask fills in what the file system's accounts say. One that no longer keeps
// any, having been mounted otherwise, has the layer walked from now on.
func (t *Tally) ask(id string, f *figure) {
	if f.project == 0 {
		return
	}
	size, inodes, err := t.books.of(f.project)
	if err == nil {
		f.Bytes, f.Inodes, f.At = size, inodes, time.Now()
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.layers[id]; known != nil {
		known.project = 0
		t.want(id, known, time.Now())
	}
}

// Sum returns what all layers take, and when the oldest of its parts was counted.
func (t *Tally) Sum() Figure {
	now := time.Now()
	t.mu.Lock()
	parts := make(map[string]figure, len(t.layers))
	for id, f := range t.layers {
		if f.project == 0 && (f.At.IsZero() || now.Sub(f.At) > walkRest) {
			t.want(id, f, now)
		}
		parts[id] = *f
	}
	t.mu.Unlock()
	all := Figure{At: now}
	for id, f := range parts {
		t.ask(id, &f)
		all.Bytes += f.Bytes
		all.Inodes += f.Inodes
		if !f.At.IsZero() && f.At.Before(all.At) {
			all.At = f.At
		}
	}
	return all
}

// want has a layer walked, if it is time. t.mu must be held.
func (t *Tally) want(id string, f *figure, now time.Time) {
	if f.queued || now.Before(f.next) || t.ctx.Err() != nil {
		return
	}
	f.queued = true
	t.queue = append(t.queue, id)
	if t.walkers < walkTurns {
		t.walkers++
		t.wg.Go(t.work)
	}
}

// work walks layers until none is left to be.
func (t *Tally) work() {
	for {
		t.mu.Lock()
		if len(t.queue) == 0 || t.ctx.Err() != nil {
			t.walkers--
			t.mu.Unlock()
			return
		}
		id := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		t.walk(id)
	}
}

func (t *Tally) walk(id string) {
	begun := time.Now()
	busy := time.Duration(0)
	w := walk{pause: func(d time.Duration) error {
		busy += d
		return t.rest(d)
	}}
	blocks, inodes, err := w.measure(UpperDir(t.dir(id)))
	last := time.Since(w.since)
	busy += last
	t.mu.Lock()
	if f := t.layers[id]; f != nil {
		f.queued = false
		f.next = begun.Add(max(walkEvery, walkShare*busy))
		if err == nil {
			f.Bytes, f.Inodes, f.At = blocks*512, inodes, begun
		}
	}
	t.mu.Unlock()
	_ = t.rest(last)
}

// rest keeps all walks together to their share of a CPU.
func (t *Tally) rest(busy time.Duration) error {
	t.pace.Lock()
	defer t.pace.Unlock()
	timer := time.NewTimer(busy * (walkShare - 1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}
