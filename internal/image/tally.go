package image

import (
	"context"
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
	ctx    context.Context        // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup // walkers

	mu      sync.Mutex // guards what follows; never held across I/O
	layers  map[string]*figure
	queue   []string
	walkers int

	pace sync.Mutex // held by a walk that rests, so that all rest
}

// A figure is what was counted last, and when; at is zero if nothing was.
type figure struct {
	bytes, inodes uint64
	at            time.Time
	next          time.Time // not to be walked again before
	queued        bool
}

func newTally(dir func(id string) string) *tally {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // the owner is close
	return &tally{dir: dir, ctx: ctx, cancel: cancel, layers: map[string]*figure{}}
}

// close ends walks under way, and waits.
func (t *tally) close() error {
	t.mu.Lock()
	t.cancel() // with mu held, so that nobody starts after
	t.mu.Unlock()
	t.wg.Wait()
	return nil
}

// begin makes a layer known; forget ends that.
func (t *tally) begin(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.layers[id] == nil {
		t.layers[id] = &figure{}
	}
}

func (t *tally) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.layers, id)
}

// of returns what one layer takes, and sees to it that the next answer is newer.
func (t *tally) of(id string) (figure, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.layers[id]
	if f == nil {
		return figure{}, false
	}
	t.want(id, f, time.Now())
	return *f, true
}

// sum returns what all layers take, and when the oldest of its parts was counted.
func (t *tally) sum() figure {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	all := figure{at: now}
	for id, f := range t.layers {
		if f.at.IsZero() || now.Sub(f.at) > walkRest {
			t.want(id, f, now)
		}
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
	blocks, inodes, err := w.measure(filepath.Join(t.dir(id), "upper"))
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
