package main

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

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
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.look()
		}
	}
}
