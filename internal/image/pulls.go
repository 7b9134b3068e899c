package image

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// A PullState is how far a pull is.
type PullState struct {
	ID     string // of its own, as long as the store is open
	Ref    string // as it was asked for
	Began  time.Time
	Phase  PullPhase
	Layers []LayerState // topmost last; none until the configuration is there
	Err    error        // of one that failed
}

// A LayerState is how far a pull is with one layer.
type LayerState struct {
	Progress
	BytesPerSecond int64 // over the last seconds
}

// A PullPhase is what a pull does.
type PullPhase uint8

// The phases, in order.
const (
	PullResolving  PullPhase = iota // fetches manifest and configuration
	PullVerifying                   // asks the verifiers
	PullFetching                    // layers
	PullCommitting                  // makes everything durable
	PullDone
	PullFailed
)

// String returns the phase's name.
func (p PullPhase) String() string {
	return [...]string{"resolving", "verifying", "fetching", "committing", "done", "failed"}[min(p, PullFailed)]
}

// watchEvery is how often, at most, a watcher is told of progress.
const watchEvery = 100 * time.Millisecond

// maxEnded is how many pulls that ended are kept for a watcher that is slow.
const maxEnded = 1000

// pulls knows the pulls under way.
type pulls struct {
	mu       sync.Mutex
	last     uint64
	active   map[uint64]*tracked
	watchers map[*watcher]struct{}
}

// A watcher is one call of WatchPulls. Its fields are guarded by pulls.mu.
type watcher struct {
	ended   []PullState
	changed chan struct{} // has room for one
}

// A tracked is one pull under way. Its fields are guarded by pulls.mu.
type tracked struct {
	pulls *pulls
	id    uint64
	state PullState
	rates map[string]*rate // by blob
}

// A rate is how fast bytes come.
type rate struct {
	at    time.Time
	bytes int64
}

func newPulls() pulls {
	return pulls{active: map[uint64]*tracked{}, watchers: map[*watcher]struct{}{}}
}

// Pulls returns the pulls under way, the oldest first.
func (s *Store) Pulls() []PullState {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	return s.pulls.states()
}

// WatchPulls tells of the pulls under way, the oldest first: at once what there
// is, maybe nothing, and then each time something changed, with those that have
// ended since, each once. It ends with ctx.
func (s *Store) WatchPulls(ctx context.Context) iter.Seq[[]PullState] {
	return func(yield func([]PullState) bool) {
		p := &s.pulls
		w := &watcher{changed: make(chan struct{}, 1)}
		p.mu.Lock()
		p.watchers[w] = struct{}{}
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.watchers, w)
		}()
		pause := time.NewTicker(watchEvery)
		defer pause.Stop()
		for {
			p.mu.Lock()
			now := append(w.ended, p.states()...)
			w.ended = nil
			p.mu.Unlock()
			slices.SortStableFunc(now, func(a, b PullState) int { return a.Began.Compare(b.Began) })
			if !yield(now) {
				return
			}
			if !wait(ctx, w.changed) || !wait(ctx, pause.C) {
				return
			}
		}
	}
}

// wait returns false if ctx ended first.
func wait[T any](ctx context.Context, event <-chan T) bool {
	select {
	case <-event:
		return true
	case <-ctx.Done():
		return false
	}
}

// states returns copies of all states. p.mu must be held.
func (p *pulls) states() []PullState {
	var all []PullState
	for _, id := range slices.Sorted(maps.Keys(p.active)) {
		all = append(all, p.active[id].copied())
	}
	return all
}

func (t *tracked) copied() PullState {
	state := t.state
	state.Layers = slices.Clone(state.Layers)
	return state
}

// changed wakes the watchers. p.mu must be held.
func (p *pulls) changed() {
	for w := range p.watchers {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// begin makes a pull known; end is to follow.
func (p *pulls) begin(ref string) *tracked {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	t := &tracked{pulls: p, id: p.last, rates: map[string]*rate{}}
	t.state = PullState{ID: strconv.FormatUint(p.last, 10), Ref: ref, Began: time.Now()}
	p.active[t.id] = t
	p.changed()
	return t
}

func (t *tracked) end(err error) {
	p := t.pulls
	p.mu.Lock()
	defer p.mu.Unlock()
	t.state.Phase, t.state.Err = PullDone, err
	if err != nil {
		t.state.Phase = PullFailed
	}
	delete(p.active, t.id)
	for w := range p.watchers {
		if w.ended = append(w.ended, t.copied()); len(w.ended) > maxEnded {
			w.ended = slices.Delete(w.ended, 0, 1)
		}
	}
	p.changed()
}

// enter says what the pull does from now on.
func (t *tracked) enter(phase PullPhase) {
	t.pulls.mu.Lock()
	defer t.pulls.mu.Unlock()
	t.state.Phase = phase
	t.pulls.changed()
}

// fetching says which layers the pull is going to get, topmost first.
func (t *tracked) fetching(list []wanted) {
	t.pulls.mu.Lock()
	defer t.pulls.mu.Unlock()
	t.state.Phase = PullFetching
	for _, w := range slices.Backward(list) {
		t.state.Layers = append(t.state.Layers, LayerState{Progress: Progress{Layer: w.Digest.String(), Total: w.Size}})
	}
	t.pulls.changed()
}

// layer notes how far the pull is with a layer. It is to be called now and then
// also if nothing happens, for the rate.
func (t *tracked) layer(now Progress) {
	t.pulls.mu.Lock()
	defer t.pulls.mu.Unlock()
	i := slices.IndexFunc(t.state.Layers, func(l LayerState) bool { return l.Layer == now.Layer })
	if i < 0 {
		return
	}
	next := LayerState{Progress: now, BytesPerSecond: t.rate(now, t.state.Layers[i])}
	if next != t.state.Layers[i] {
		t.state.Layers[i] = next
		t.pulls.changed()
	}
}

// rate returns the rate of a layer, which was last before: what is
// measured every half second, the older fading.
func (t *tracked) rate(now Progress, last LayerState) int64 {
	const every = 500 * time.Millisecond
	r := t.rates[now.Layer]
	if r == nil || last.Phase == Waiting {
		t.rates[now.Layer] = &rate{at: time.Now(), bytes: now.Bytes}
		return 0
	}
	if now.Phase == Done {
		return 0
	}
	passed := time.Since(r.at)
	if passed < every {
		return last.BytesPerSecond
	}
	measured := int64(float64(now.Bytes-r.bytes) / passed.Seconds())
	r.at, r.bytes = time.Now(), now.Bytes
	return (cmp.Or(last.BytesPerSecond, measured) + measured) / 2
}
