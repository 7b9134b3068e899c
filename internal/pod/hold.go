package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// A step is one thing that a pod or a container holds.
//
// acquire may be cut short anywhere, by an error or by a crash. release must
// therefore succeed when acquire never ran, ran in part, or ran already, and
// when release did.
type step[E any] struct {
	name             string
	needed           func(E) bool // nil: always
	acquire, release func(context.Context, E) error
}

// A holder is a pod or a container: it has a list of what it holds.
type holder interface {
	held() []string
	hold(name string) error // writes name down as the last
	drop()                  // strikes the last
}

// acquire takes the steps in order. Each is written down before it is
// acquired. After an error the caller releases.
func acquire[E holder](ctx context.Context, e E, steps []step[E]) error {
	for _, s := range steps {
		if s.needed != nil && !s.needed(e) {
			continue
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", s.name, context.Cause(ctx))
		}
		if err := e.hold(s.name); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		end := span.Step(ctx, s.name)
		err := s.acquire(ctx, e)
		end(err)
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// release gives up what e holds, last first. It stops at the first failure,
// since what is beneath may still be in use; calling it again goes on there.
func release[E holder](ctx context.Context, e E, steps []step[E]) error {
	for held := e.held(); len(held) > 0; held = e.held() {
		name := held[len(held)-1]
		i := slices.IndexFunc(steps, func(s step[E]) bool { return s.name == name })
		if i < 0 {
			return fault.New(fault.Internal, "", "release %s: this version of davit does not know how", name)
		}
		end := span.Step(ctx, "release "+name)
		err := steps[i].release(ctx, e)
		end(err)
		if err != nil {
			return fmt.Errorf("release %s: %w", name, err)
		}
		e.drop()
	}
	return nil
}

// Waits between attempts to release what could not be released.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// retry calls attempt, with growing pauses, until it succeeds or the crew is
// dismissed. Each failure is one line in the log.
func (p *Pods) retry(what, id string, attempt func(context.Context) error) {
	p.crew.Start(func(ctx context.Context) {
		for wait := retryFirst; ; wait = min(2*wait, retryMost) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			err := attempt(ctx)
			if err == nil {
				p.log.Info(what+" at last", "id", id)
				return
			}
			if ctx.Err() != nil {
				return
			}
			p.log.Warn(what+", will be tried again", "id", id, "error", err)
		}
	})
}

// retryPod goes on releasing pod in the background, and forgets it if doomed.
func (p *Pods) retryPod(pod *pod) {
	if !pod.retrying.CompareAndSwap(false, true) {
		return
	}
	p.retry("release pod", pod.id, func(ctx context.Context) error {
		err := p.settlePod(ctx, pod)
		if err == nil {
			pod.retrying.Store(false)
		}
		return err
	})
}

// retryContainer goes on removing a doomed container in the background.
func (p *Pods) retryContainer(c *container) {
	if !c.retrying.CompareAndSwap(false, true) {
		return
	}
	p.retry("remove container", c.id, func(ctx context.Context) error {
		err := p.dropContainer(ctx, c)
		if err == nil {
			c.retrying.Store(false)
		}
		return err
	})
}
