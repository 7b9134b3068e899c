// Package operation runs work that goes on when its caller has gone, that others
// may join, and that has a pod or a container for itself meanwhile.
package operation

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

var (
	errStopped = fault.New(fault.Canceled, "", "stopped while it was being made")
	errClosing = fault.New(fault.Unavailable, "", "davitd is shutting down")
)

// A Crew is the goroutines that work for nobody who waits, and their end.
type Crew struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// NewCrew returns a crew whose work has ctx's values, but ends with Dismiss only.
func NewCrew(ctx context.Context, log *slog.Logger) *Crew {
	c := &Crew{log: log}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return c
}

// Context is the one that the crew's work ends with.
func (c *Crew) Context() context.Context { return c.ctx }

// Start runs f, with a context that ends with the crew. It reports whether it
// did: not once the crew has been dismissed.
func (c *Crew) Start(f func(context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(func() { f(c.ctx) })
	return true
}

// Dismiss ends the work and waits for it. Idempotent.
func (c *Crew) Dismiss() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// An Operation is work that goes on when its caller has gone, and that others
// may join.
type Operation struct {
	what   string // "pod 0123… : run"
	trace  *span.Trace
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error       // once done is closed
	left   atomic.Bool // a caller has gone before its end
}

// Begin starts f within budget. Steps are noted in the trace that ctx, the
// caller's, carries, but ctx does not bound f. after runs when f has returned
// and before anybody learns of it.
func (c *Crew) Begin(ctx context.Context, what string, budget time.Duration, f func(context.Context) error, after func()) *Operation {
	o := &Operation{what: what, trace: span.From(ctx), done: make(chan struct{})}
	work, cancel := context.WithCancelCause(c.ctx)
	o.cancel = cancel
	if o.trace == nil {
		work, o.trace = span.Begin(work)
	} else {
		work = span.Attach(work, o.trace)
	}
	ok := c.Start(func(context.Context) {
		work, stop := context.WithTimeoutCause(work, budget, fault.New(fault.Deadline, "", "%s took longer than %v", what, budget))
		o.err = f(work)
		stop()
		cancel(nil)
		after()
		close(o.done)
		if o.left.Load() {
			c.log.Info("ended after its caller had gone", "operation", what, "error", o.err, o.trace.Attr())
		}
	})
	if !ok {
		cancel(nil)
		o.err = errClosing
		after()
		close(o.done)
	}
	return o
}

// Wait waits for the operation's end and returns its error. If ctx ends before
// that, it returns Unavailable and names the step under way and its age.
//
// No operation is over, and succeeded.
func (o *Operation) Wait(ctx context.Context) error {
	if o == nil {
		return nil
	}
	span.Join(ctx, o.trace)
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.Over() {
			return o.err
		}
		o.left.Store(true)
		return o.stuck(ctx)
	}
}

// Over reports whether the operation has ended.
func (o *Operation) Over() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// Interrupt cancels a making and waits for its end. Whatever that was is no error.
func (o *Operation) Interrupt(ctx context.Context) error {
	if o == nil {
		return nil
	}
	o.cancel(errStopped)
	if err := o.Wait(ctx); !o.Over() {
		return err
	}
	return nil
}

// stuck says what the operation is at; ctx, the caller's, has ended.
func (o *Operation) stuck(ctx context.Context) error {
	kind := fault.Unavailable
	if errors.Is(ctx.Err(), context.Canceled) {
		kind = fault.Canceled
	}
	step, age := o.trace.Running()
	if step == "" {
		return fault.New(kind, "", "%s is still under way", o.what)
	}
	return fault.New(kind, "", "%s is still under way: at step %s for %v", o.what, step, age.Round(time.Millisecond))
}

// early returns a context that ends shortly before ctx does by its deadline,
// so that a word about what is stuck still reaches the caller.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Second, time.Until(deadline)/10)))
}

// A Slot lets one operation at a time have a pod or a container.
type Slot struct {
	token chan struct{}
	by    atomic.Pointer[Operation] // whose it is
}

// NewSlot returns a slot that nobody has.
func NewSlot() Slot { return Slot{token: make(chan struct{}, 1)} }

// Take waits for the slot as long as ctx allows. It returns Unavailable, which
// names what has the slot, if ctx ends first.
func (s *Slot) Take(ctx context.Context, what string) error {
	select {
	case s.token <- struct{}{}:
		return nil
	default:
	}
	defer s.waits(ctx)()
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case s.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return s.busy(ctx, what)
	}
}

// Seize takes the slot of something that nobody else knows yet.
func (s *Slot) Seize() { s.token <- struct{}{} }

// Await waits until nobody has the slot, but for no longer than patience. It
// returns an error as Take does.
func (s *Slot) Await(ctx context.Context, what string, patience time.Duration) error {
	defer s.waits(ctx)()
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case s.token <- struct{}{}:
		s.Give()
	case <-time.After(patience):
	case <-ctx.Done():
		return s.busy(ctx, what)
	}
	return nil
}

// waits notes that the operation of ctx waits for the one that has the slot.
func (s *Slot) waits(ctx context.Context) span.End {
	o := s.by.Load()
	if o == nil {
		return func(...error) {}
	}
	span.Join(ctx, o.trace)
	return span.Step(ctx, "wait for "+o.what)
}

// busy says what has the slot; ctx, of somebody who waited for it, has ended.
func (s *Slot) busy(ctx context.Context, what string) error {
	if o := s.by.Load(); o != nil {
		return o.stuck(ctx)
	}
	return fault.New(fault.Unavailable, "", "%s: another operation is under way", what)
}

// Give ends Take, or Seize.
func (s *Slot) Give() {
	s.by.Store(nil)
	<-s.token
}

// With runs f as an operation that has the slot, and waits for it as long as
// ctx allows. The operation goes on after that.
func (c *Crew) With(ctx context.Context, s *Slot, what string, budget time.Duration, f func(context.Context) error) error {
	if err := s.Take(ctx, what); err != nil {
		return err
	}
	return c.Occupy(ctx, s, what, budget, f).Wait(ctx)
}

// Occupy begins an operation that has the slot, which the caller took.
func (c *Crew) Occupy(ctx context.Context, s *Slot, what string, budget time.Duration, f func(context.Context) error) *Operation {
	begun := make(chan struct{})
	o := c.Begin(ctx, what, budget, func(ctx context.Context) error { <-begun; return f(ctx) }, s.Give)
	s.by.Store(o)
	close(begun)
	return o
}
