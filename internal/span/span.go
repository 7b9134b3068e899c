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
	"sync/atomic"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Trace collects the steps of one operation. Safe for concurrent use.
type Trace struct {
	own *steps
	// joins are those of another operation that this one waits for; not its
	// Trace, which may wait for yet another.
	joins atomic.Pointer[steps]
}

type steps struct {
	mu   sync.Mutex
	all  []Part
	said int            // bytes of what programs said
	last *fault.Program // kept already, with the step that ran it
}

// A Part is one step of an operation, as it is by now.
type Part struct {
	Name   string
	Began  time.Time
	Took   time.Duration // 0 while it runs
	Failed bool
	// Command is the command line of the program that the step ran, as far as
	// it is known; Said is the end of what that wrote, if it failed or was slow.
	Command, Said string
}

// Slow is after how long something has taken so long that people ask why.
const Slow = time.Second

// Limits of one Trace: what many of them take is bounded by how many there are.
const (
	maxSteps = 64
	maxSaid  = 4 << 10
)

type key struct{}

// Begin returns a context that carries a new Trace.
func Begin(ctx context.Context) (context.Context, *Trace) {
	t := &Trace{own: &steps{}}
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
func Step(ctx context.Context, name string) End {
	end := begin(ctx, Part{Name: name})
	return func(errs ...error) { end(errors.Join(errs...), nil) }
}

// Command is Step for running a program, of which said is what it wrote, as far
// as that is known and not in the error.
func Command(ctx context.Context, name, line string) (end func(err error, said []byte)) {
	return begin(ctx, Part{Name: name, Command: line})
}

func begin(ctx context.Context, s Part) (end func(err error, said []byte)) {
	t := From(ctx)
	if t == nil {
		return func(error, []byte) {}
	}
	o := t.own
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.all) >= maxSteps {
		return func(error, []byte) {}
	}
	s.Began = time.Now()
	i := len(o.all)
	o.all = append(o.all, s)
	return func(err error, said []byte) { o.end(i, err, said) }
}

// errSlow stands for the error of a program that had none.
var errSlow = errors.New("it was slow")

func (o *steps) end(i int, err error, said []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.all[i]
	s.Took, s.Failed = max(time.Since(s.Began), 1), err != nil
	if err == nil && s.Took >= Slow && len(said) > 0 {
		err = fault.Ran(errSlow, []string{s.Command}, said)
	}
	// The steps around this one end with the same error.
	var ran *fault.Program
	if !errors.As(err, &ran) || ran == o.last {
		return
	}
	o.last = ran
	s.Command = ran.Line
	if o.said += len(ran.Said); o.said <= maxSaid {
		s.Said = ran.Said
	}
}

// Join notes that the operation of ctx waits for that of other: its steps are
// those of both.
func Join(ctx context.Context, other *Trace) {
	if t := From(ctx); t != nil && t != other {
		t.joins.Store(other.own)
	}
}

// Steps returns the steps by now, in the order in which they began.
func (t *Trace) Steps() []Part {
	all := t.own.copy()
	if other := t.joins.Load(); other != nil {
		all = append(all, other.copy()...)
		slices.SortStableFunc(all, func(a, b Part) int { return a.Began.Compare(b.Began) })
	}
	return all
}

func (o *steps) copy() []Part {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.all)
}

// Running returns the step under way that began last and for how long it has
// run; empty if none is.
func (t *Trace) Running() (name string, age time.Duration) {
	for _, s := range slices.Backward(t.own.copy()) {
		if s.Took == 0 {
			return s.Name, time.Since(s.Began)
		}
	}
	return "", 0
}

// Attr returns the steps and their durations as one log attribute, empty if
// there were none.
func (t *Trace) Attr() slog.Attr {
	all := t.own.copy()
	if len(all) == 0 {
		return slog.Attr{}
	}
	var b strings.Builder
	for i, s := range all {
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
