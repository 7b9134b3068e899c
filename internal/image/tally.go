package image

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

// A tally knows what writable layers take on disk. Where the file system keeps
// accounts (project quotas) it asks that; else it walks the layer, later, off
// the path of who asks.
type tally struct {
	dir    func(id string) string // of a container's writable side
	books  *accounts              // nil: none are kept
	ctx    context.Context        // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup // walkers

	mu      sync.Mutex // guards what follows; never held across I/O
	layers  map[string]*figure
	queue   []string
	walkers int

	pace sync.Mutex // held by a walk that rests, so that all rest
}

// A figure is what was counted last, and when; at is zero if nothing was. One
// is kept for each layer there is, also of containers that have exited.
type figure struct {
	project       uint32 // 0: to be walked
	bytes, inodes uint64
	at            time.Time
	next          time.Time // not to be walked again before
	queued        bool
}

func newTally(dir func(id string) string) *tally {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the owner is close
	return &tally{dir: dir, books: openAccounts(dir("")), ctx: ctx, cancel: cancel, layers: map[string]*figure{}}
}

// close ends walks under way, and waits.
func (t *tally) close() error {
	t.mu.Lock()
	t.cancel() // with mu held, so that nobody starts after
	t.mu.Unlock()
	t.wg.Wait()
	if t.books != nil {
		return t.books.close()
	}
	return nil
}

// begin makes a layer known before there is anything in it: where accounts are
// kept, it is given a project. One that is there already is known as it is.
// forget ends that.
func (t *tally) begin(id string) {
	f := &figure{}
	if t.books != nil {
		dir := t.dir(id)
		if f.project = projectIn(dir); f.project == 0 && !isThere(upperDir(dir)) {
			_ = t.books.begin(dir) // without one it is walked
			f.project = projectIn(dir)
		}
	}
	t.add(id, f)
}

// adopt makes known what an earlier process made. Not every lease has a layer.
func (t *tally) adopt(id string) {
	if dir := t.dir(id); isThere(upperDir(dir)) {
		f := &figure{}
		if t.books != nil {
			f.project = projectIn(dir)
		}
		t.add(id, f)
	}
}

func (t *tally) add(id string, f *figure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.layers[id] == nil {
		t.layers[id] = f
	}
}

func upperDir(writable string) string { return filepath.Join(writable, "upper") }

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (t *tally) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.layers, id)
}

// of returns what one layer takes, and sees to it that the next answer is newer.
func (t *tally) of(id string) (figure, bool) {
	t.mu.Lock()
	f := t.layers[id]
	if f == nil {
		t.mu.Unlock()
		return figure{}, false
	}
	if f.project == 0 {
		t.want(id, f, time.Now())
	}
	now := *f
	t.mu.Unlock()
	t.ask(id, &now)
	return now, true
}

// ask fills in what the file system's accounts say. One that no longer keeps
// any, having been mounted otherwise, has the layer walked from now on.
func (t *tally) ask(id string, f *figure) {
	if f.project == 0 {
		return
	}
	size, inodes, err := t.books.of(f.project)
	if err == nil {
		f.bytes, f.inodes, f.at = size, inodes, time.Now()
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.layers[id]; known != nil {
		known.project = 0
		t.want(id, known, time.Now())
	}
}

// sum returns what all layers take, and when the oldest of its parts was counted.
func (t *tally) sum() figure {
	now := time.Now()
	t.mu.Lock()
	parts := make(map[string]figure, len(t.layers))
	for id, f := range t.layers {
		if f.project == 0 && (f.at.IsZero() || now.Sub(f.at) > walkRest) {
			t.want(id, f, now)
		}
		parts[id] = *f
	}
	t.mu.Unlock()
	all := figure{at: now}
	for id, f := range parts {
		t.ask(id, &f)
		all.bytes += f.bytes
		all.inodes += f.inodes
		if !f.at.IsZero() && f.at.Before(all.at) {
			all.at = f.at
		}
	}
	return all
}

// want has a layer walked, if it is time. t.mu must be held.
func (t *tally) want(id string, f *figure, now time.Time) {
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
func (t *tally) work() {
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

func (t *tally) walk(id string) {
	begun := time.Now()
	busy := time.Duration(0)
	w := walk{pause: func(d time.Duration) error {
		busy += d
		return t.rest(d)
	}}
	blocks, inodes, err := w.measure(upperDir(t.dir(id)))
	last := time.Since(w.since)
	busy += last
	t.mu.Lock()
	if f := t.layers[id]; f != nil {
		f.queued = false
		f.next = begun.Add(max(walkEvery, walkShare*busy))
		if err == nil {
			f.bytes, f.inodes, f.at = blocks*512, inodes, begun
		}
	}
	t.mu.Unlock()
	_ = t.rest(last)
}

// rest keeps all walks together to their share of a CPU.
func (t *tally) rest(busy time.Duration) error {
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
