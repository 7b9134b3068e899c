// Package patrol reads again, slowly and while the node has little to do, what
// was written long ago, so that what a disk has lost is found before somebody
// needs it. What is read, and what comes of it, its caller says.
package patrol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/store"
)

const (
	settling = time.Minute        // after start, which is busy enough
	every    = 7 * 24 * time.Hour // each layer
	rateFull = 32 << 20           // bytes a second
	rateLow  = 4 << 20            // while the node is busy
)

// A state is what the file says of this and the last boot.
type state struct {
	Boot  string           // the kernel's ID of it
	Clean bool             // davitd ended by itself, after which the machine did
	At    map[string]int64 // Unix time at which a thing was known to be as written

	doubt bool // what is not in At may have suffered
}

const stateVersion = 1

// A Patrol reads things, one at a time.
type Patrol struct {
	File string          // where it remembers what it has read; on a disk
	List func() []string // what there is
	// Read reads one, and does what is to be done if it is not as it was. It
	// calls pace after every n bytes. An error is one of reading.
	Read func(ctx context.Context, id string, pace func(ctx context.Context, n int) error) error
	Log  *slog.Logger
}

// Run reads what is due, until ctx ends: each thing once a week, and all that
// was there when the machine went without a word.
func (p *Patrol) Run(ctx context.Context) {
	state := load(p.File, time.Now())
	save := func(f func(string, int, any) error) {
		if err := f(p.File, stateVersion, state); err != nil {
			p.Log.Warn("writing down what was read", "error", err)
		}
	}
	save(store.SaveJSONDurable)
	defer func() {
		state.Clean = true
		save(store.SaveJSON)
	}()
	for wait := settling; sleep(ctx, wait) == nil; wait = time.Minute {
		due := state.due(p.List(), time.Now())
		save(store.SaveJSON)
		for _, id := range due {
			if err := p.Read(ctx, id, idly); ctx.Err() != nil {
				return
			} else if err != nil {
				p.Log.Warn("something that should be whole could not be read", "id", id, "error", err)
			}
			state.At[id] = time.Now().Unix()
			save(store.SaveJSON)
		}
	}
}

// due returns what is to be read now, and forgets what is not there any more.
// What it has not heard of has just been written.
func (s *state) due(list []string, now time.Time) (due []string) {
	there := map[string]bool{}
	for _, id := range list {
		there[id] = true
		at, ok := s.At[id]
		switch {
		case !ok && !s.doubt:
			s.At[id] = now.Unix()
		case !ok:
			s.At[id] = 0 // also if the next process has to do it
			due = append(due, id)
		case now.Sub(time.Unix(at, 0)) >= every:
			due = append(due, id)
		}
	}
	maps.DeleteFunc(s.At, func(id string, _ int64) bool { return !there[id] })
	s.doubt = false
	return due
}

// load reads what there is. If the machine went without a word, nothing
// counts as known.
func load(path string, now time.Time) *state {
	v := &state{}
	err := store.LoadJSON(path, stateVersion, v)
	boot, _ := store.BootID()
	v.doubt = err == nil && v.Boot != boot && !v.Clean || err != nil && !fault.Is(err, fault.NotFound)
	if v.At == nil || v.doubt {
		v.At = map[string]int64{}
	}
	for id, at := range v.At { // of a clock that was wrong
		v.At[id] = min(at, now.Unix())
	}
	v.Boot, v.Clean = boot, false
	return v
}

// idly waits as long as it takes for n bytes not to be in anybody's way.
func idly(ctx context.Context, n int) error {
	rate := rateFull
	if busy() {
		rate = rateLow
	}
	return sleep(ctx, time.Duration(n)*time.Second/time.Duration(rate))
}

// busy reports whether processes have waited for CPU or disk lately. Where the
// kernel does not tell, none has.
func busy() bool {
	for _, what := range []string{"cpu", "io"} {
		data, err := os.ReadFile("/proc/pressure/" + what)
		if err != nil {
			continue
		}
		var avg10 float64
		if _, err := fmt.Sscanf(string(data), "some avg10=%f", &avg10); err == nil && avg10 > 20 {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), context.Cause(ctx))
	}
}
