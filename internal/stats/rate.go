package stats

import (
	"time"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/pod"
)

// shortest is the shortest time over which a rate means something.
const shortest = time.Second

// A window is the CPU time at one moment, and the rate until then.
type window struct {
	at    time.Time
	usage uint64
	rate  uint64
	rated bool
}

// rate fills in how much of a CPU a container uses.
func (r *Reader) rate(c *Container) {
	if c.CPU.Known {
		from := c.StartedAt
		if from.IsZero() {
			from = c.CreatedAt
		}
		c.NanoCores = r.nanoCores(c.ID, c.Reading, from)
	}
}

// nanoCores returns how much of a CPU is used, in billionths: on average since
// the last time somebody asked that is at least a second ago; the first time,
// since it began to run.
func (r *Reader) nanoCores(id string, now cgroup.Reading, begun time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.windows[id]
	next := window{at: now.At, usage: now.CPU.UsageNanos}
	if ok && next.usage >= w.usage {
		span := next.at.Sub(w.at)
		if span < shortest {
			if w.rated {
				return w.rate
			}
			return perSecond(next.usage, next.at.Sub(begun))
		}
		next.rate, next.rated = perSecond(next.usage-w.usage, span), true
		r.windows[id] = next
		return next.rate
	}
	r.windows[id] = next
	return perSecond(next.usage, next.at.Sub(begun))
}

func perSecond(nanos uint64, span time.Duration) uint64 {
	if span <= 0 {
		return 0
	}
	return uint64(float64(nanos) / span.Seconds())
}

// prune forgets, now and then, what has ended.
func (r *Reader) prune() {
	const every = 10 * time.Second
	r.mu.Lock()
	due := time.Since(r.pruned) > every
	if due {
		r.pruned = time.Now()
	}
	r.mu.Unlock()
	if !due {
		return
	}
	live := map[string]bool{}
	for _, c := range r.views.Live() {
		live[c.ID] = true
	}
	for _, p := range r.views.List() {
		live[p.ID] = p.State == pod.Ready
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.windows {
		if !live[id] {
			delete(r.windows, id)
		}
	}
}
