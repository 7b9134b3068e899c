// Package span records what an operation did, step by step, so that one log
// line can say where its time went and an error can name the step.
//
// The seam for OpenTelemetry and duration metrics is Step.
package span

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// A Trace collects the steps of one operation. Safe for concurrent use.
type Trace struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	name string
	took time.Duration // 0 while it runs
	from time.Time
}

type key struct{}

// Begin returns a context that carries a new Trace.
func Begin(ctx context.Context) (context.Context, *Trace) {
	t := &Trace{}
	return context.WithValue(ctx, key{}, t), t
}

// Attach returns a context that carries t, for work that outlives its caller.
func Attach(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, key{}, t)
}

// From returns the Trace that ctx carries, or nil.
func From(ctx context.Context) *Trace {
	t, _ := ctx.Value(key{}).(*Trace)
	return t
}

// Step notes that a step begins; the function it returns notes its end.
// Without a Trace in ctx both do nothing.
func Step(ctx context.Context, name string) (end func()) {
	t := From(ctx)
	if t == nil {
		return func() {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := len(t.steps)
	t.steps = append(t.steps, step{name: name, from: time.Now()})
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.steps[i].took = max(time.Since(t.steps[i].from), 1)
	}
}

// Running returns the step under way that began last and for how long it has
// run; empty if none is.
func (t *Trace) Running() (name string, age time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.steps) - 1; i >= 0; i-- {
		if s := t.steps[i]; s.took == 0 {
			return s.name, time.Since(s.from)
		}
	}
	return "", 0
}

// Attr returns the steps and their durations as one log attribute, empty if
// there were none.
func (t *Trace) Attr() slog.Attr {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.steps) == 0 {
		return slog.Attr{}
	}
	var b strings.Builder
	for i, s := range t.steps {
		if i > 0 {
			b.WriteByte(' ')
		}
		took := "running"
		if s.took > 0 {
			took = s.took.Round(10 * time.Microsecond).String()
		}
		b.WriteString(s.name + "=" + took)
	}
	return slog.String("steps", b.String())
}
