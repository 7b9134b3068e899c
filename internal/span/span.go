// Package span records what an operation did, step by step, so that one log
// line can say where its time went and an error can name the step.
//
// The seam for OpenTelemetry and duration metrics is Step.
package span

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Trace collects the steps of one operation. Safe for concurrent use.
type Trace struct {
	mu    sync.Mutex
	steps []Part
	said  int            // bytes of what programs said
	last  *fault.Program // kept already, with the step that ran it
	joins *Trace         // of the operation that is waited for, if another's
}

// A Part is one step of an operation, as it is by now.
type Part struct {
	Name   string
	Began  time.Time
	Took   time.Duration // 0 while it runs
	Failed bool
	// Command is the command line of the program that the step ran, as far as
	// it is known; Said is the end of what that wrote before it failed.
	Command, Said string
}

// Limits of one Trace: what many of them take is bounded by how many there are.
const (
	maxSteps = 64
	maxSaid  = 4 << 10
)

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

// An End notes the end of a step, and that it failed if there is an error.
type End func(err ...error)

// Step notes that a step begins; the function it returns notes its end.
// Without a Trace in ctx both do nothing.
func Step(ctx context.Context, name string) End { return begin(ctx, Part{Name: name}) }

// Command is Step for running a program.
func Command(ctx context.Context, name, line string) End {
	return begin(ctx, Part{Name: name, Command: line})
}

func begin(ctx context.Context, s Part) End {
	t := From(ctx)
	if t == nil {
		return func(...error) {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.steps) >= maxSteps {
		return func(...error) {}
	}
	s.Began = time.Now()
	i := len(t.steps)
	t.steps = append(t.steps, s)
	return func(errs ...error) { t.end(i, errors.Join(errs...)) }
}

func (t *Trace) end(i int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.steps[i]
	s.Took, s.Failed = max(time.Since(s.Began), 1), err != nil
	// The steps around this one end with the same error.
	var ran *fault.Program
	if !errors.As(err, &ran) || ran == t.last {
		return
	}
	t.last = ran
	s.Command = ran.Line
	if t.said += len(ran.Said); t.said <= maxSaid {
		s.Said = ran.Said
	}
}

// Join notes that the operation of ctx waits for that of other: its steps are
// those of both.
func Join(ctx context.Context, other *Trace) {
	t := From(ctx)
	if t == nil || t == other {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.joins = other
}

// Steps returns the steps by now, in the order in which they began.
func (t *Trace) Steps() []Part {
	own, other := t.own()
	if other == nil {
		return own
	}
	more, _ := other.own()
	return slices.SortedStableFunc(slices.Values(append(own, more...)), func(a, b Part) int { return a.Began.Compare(b.Began) })
}

func (t *Trace) own() ([]Part, *Trace) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.steps), t.joins
}

// Running returns the step under way that began last and for how long it has
// run; empty if none is.
func (t *Trace) Running() (name string, age time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.steps) - 1; i >= 0; i-- {
		if s := t.steps[i]; s.Took == 0 {
			return s.Name, time.Since(s.Began)
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
		if s.Took > 0 {
			took = s.Took.Round(10 * time.Microsecond).String()
		}
		b.WriteString(s.Name + "=" + took)
	}
	return slog.String("steps", b.String())
}
