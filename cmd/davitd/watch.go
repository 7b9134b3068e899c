package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// every calls f at intervals until ctx ends, which is no error.
func every(ctx context.Context, interval time.Duration, f func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f()
		}
	}
}

// damaged is where what cannot be read is moved to, whatever part had it.
func (c *config) damaged() string { return filepath.Join(c.Root, "damaged") }

// A damage is what has been moved aside, until somebody has looked at it and
// removed it from there.
type damage struct {
	dir   string
	found atomic.Pointer[[]string]
}

// list never blocks.
func (d *damage) list() []string {
	var lines []string
	for _, name := range *d.found.Load() {
		lines = append(lines, "lost or unreadable, and set aside until somebody removes it: "+filepath.Join(d.dir, name))
	}
	return lines
}

func (d *damage) look() {
	var names []string
	entries, _ := os.ReadDir(d.dir) // none: nothing was ever damaged
	for _, e := range entries {
		names = append(names, e.Name())
	}
	d.found.Store(&names)
}

// watch looks now and then until ctx ends.
func (d *damage) watch(ctx context.Context) error {
	return every(ctx, 2*time.Second, d.look)
}

// How davitd gives back what long lists took: Go itself would, over minutes.
const (
	memoryTick  = 5 * time.Second
	quietBytes  = 8 << 20  // allocated in a tick at most, if nothing much goes on
	excessBytes = 32 << 20 // held beyond what was needed before, at least
)

// A heap watches davitd's own.
type heap struct {
	sample    []metrics.Sample // ever allocated, then all that is held
	allocated uint64           // at the last look
	needed    uint64           // held when it was given back last, or less
}

func newHeap() *heap {
	h := &heap{}
	// Go: runtime/metrics.
	for _, name := range []string{
		"/gc/heap/allocs:bytes", "/memory/classes/heap/objects:bytes", "/memory/classes/heap/free:bytes", "/memory/classes/heap/unused:bytes",
	} {
		h.sample = append(h.sample, metrics.Sample{Name: name})
	}
	h.allocated, h.needed = h.read()
	return h
}

func (h *heap) read() (allocated, held uint64) {
	metrics.Read(h.sample)
	for _, s := range h.sample[1:] {
		held += s.Value.Uint64()
	}
	return h.sample[0].Value.Uint64(), held
}

// tidy gives memory back if much is held, and nothing much has gone on since
// the last call. It reports whether it did.
func (h *heap) tidy() bool {
	allocated, held := h.read()
	quiet := allocated-h.allocated < quietBytes
	h.allocated, h.needed = allocated, min(h.needed, held)
	if !quiet || held < h.needed+excessBytes {
		return false
	}
	runtime.GC() // what pools keep is given back by the second
	debug.FreeOSMemory()
	h.allocated, h.needed = h.read()
	return true
}

// watch gives memory back where there is much, until ctx ends.
func (h *heap) watch(ctx context.Context) error {
	return every(ctx, memoryTick, func() { h.tidy() })
}
