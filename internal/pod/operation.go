package pod

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

// How long operations may take, whoever waits for them.
const (
	makeBudget    = 5 * time.Minute // of a pod or a container
	startBudget   = 2 * time.Minute
	releaseBudget = time.Minute
)

var (
	errStopped = fault.New(fault.Canceled, "", "stopped while it was being made")
	errClosing = fault.New(fault.Unavailable, "", "davitd is shutting down")
)

// A crew is the goroutines that work for nobody who waits, and their end.
type crew struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// start runs f, with a context that ends with the crew. It reports whether it
// did: not once the crew has been dismissed.
func (c *crew) start(f func(context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(func() { f(c.ctx) })
	return true
}

// dismiss ends the work and waits for it. Idempotent.
func (c *crew) dismiss() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// An operation is work that goes on when its caller has gone, and that others
// may join.
type operation struct {
	what   string // "pod 0123… : run"
	trace  *span.Trace
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error       // once done is closed
	left   atomic.Bool // a caller has gone before its end
}

// begin starts f within budget. Steps are noted in the trace that ctx, the
// caller's, carries, but ctx does not bound f. after runs when f has returned
// and before anybody learns of it.
func (c *crew) begin(ctx context.Context, what string, budget time.Duration, f func(context.Context) error, after func()) *operation {
	o := &operation{what: what, trace: span.From(ctx), done: make(chan struct{})}
	work, cancel := context.WithCancelCause(c.ctx)
	o.cancel = cancel
	if o.trace == nil {
		work, o.trace = span.Begin(work)
	} else {
		work = span.Attach(work, o.trace)
	}
	ok := c.start(func(context.Context) {
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

// wait waits for the operation's end and returns its error. If ctx ends before
// that, it returns Unavailable and names the step under way and its age.
//
// No operation is over, and succeeded.
func (o *operation) wait(ctx context.Context) error {
	if o == nil {
		return nil
	}
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.over() {
			return o.err
		}
		o.left.Store(true)
		return o.stuck(ctx)
	}
}

// over reports whether the operation has ended.
func (o *operation) over() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// interrupt cancels a making and waits for its end. Whatever that was is no error.
func (o *operation) interrupt(ctx context.Context) error {
	if o == nil {
		return nil
	}
	o.cancel(errStopped)
	if err := o.wait(ctx); !o.over() {
		return err
	}
	return nil
}

// stuck says what the operation is at; ctx, the caller's, has ended.
func (o *operation) stuck(ctx context.Context) error {
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

// A slot lets one operation at a time have a pod or a container.
type slot struct {
	token chan struct{}
	by    atomic.Pointer[operation] // whose it is
}

func newSlot() slot { return slot{token: make(chan struct{}, 1)} }

// take waits for the slot as long as ctx allows. It returns Unavailable, which
// names what has the slot, if ctx ends first.
func (s *slot) take(ctx context.Context, what string) error {
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case s.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return s.busy(ctx, what)
	}
}

// await waits until nobody has the slot, but for no longer than patience. It
// returns an error as take does.
func (s *slot) await(ctx context.Context, what string, patience time.Duration) error {
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case s.token <- struct{}{}:
		s.give()
	case <-time.After(patience):
	case <-ctx.Done():
		return s.busy(ctx, what)
	}
	return nil
}

// busy says what has the slot; ctx, of somebody who waited for it, has ended.
func (s *slot) busy(ctx context.Context, what string) error {
	if o := s.by.Load(); o != nil {
		return o.stuck(ctx)
	}
	return fault.New(fault.Unavailable, "", "%s: another operation is under way", what)
}

// give ends take.
func (s *slot) give() {
	s.by.Store(nil)
	<-s.token
}

// with runs f as an operation that has the slot, and waits for it as long as
// ctx allows. The operation goes on after that.
func (c *crew) with(ctx context.Context, s *slot, what string, budget time.Duration, f func(context.Context) error) error {
	if err := s.take(ctx, what); err != nil {
		return err
	}
	return c.occupy(ctx, s, what, budget, f).wait(ctx)
}

// occupy begins an operation that has the slot, which the caller took.
func (c *crew) occupy(ctx context.Context, s *slot, what string, budget time.Duration, f func(context.Context) error) *operation {
	begun := make(chan struct{})
	o := c.begin(ctx, what, budget, func(ctx context.Context) error { <-begun; return f(ctx) }, s.give)
	s.by.Store(o)
	close(begun)
	return o
}
