package operation

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

var errWork = errors.New("work failed")

func newCrew(t *testing.T) *Crew {
	c := NewCrew(t.Context(), slog.New(slog.DiscardHandler))
	t.Cleanup(c.Dismiss)
	return c
}

func never() {}

// wantErr requires a kind, and all parts in the text.
func wantErr(t *testing.T, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("got %v (%s), want %s", err, fault.KindOf(err), kind)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestDismiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		c := NewCrew(ctx, slog.New(slog.DiscardHandler))
		cancel()
		var ended atomic.Int32
		for range 3 {
			if !c.Start(func(ctx context.Context) {
				if ctx.Value(key{}) != "value" {
					t.Error("the context's values are gone")
				}
				<-ctx.Done()
				time.Sleep(time.Second)
				ended.Add(1)
			}) {
				t.Error("not started")
			}
		}
		synctest.Wait()
		if c.Context().Err() != nil {
			t.Error("the work ended with the context that the crew was made from")
		}
		var twice sync.WaitGroup
		for range 2 {
			twice.Go(c.Dismiss)
		}
		twice.Wait()
		if n := ended.Load(); n != 3 {
			t.Errorf("%d of 3 had ended", n)
		}
		if c.Start(func(context.Context) { t.Error("started") }) {
			t.Error("a crew that was dismissed starts")
		}
		after := false
		o := c.Begin(t.Context(), "late", time.Minute, func(context.Context) error { t.Error("begun"); return nil }, func() { after = true })
		wantErr(t, o.Wait(t.Context()), fault.Unavailable, "shutting down")
		if !after || !o.Over() {
			t.Error("what never began is not over")
		}
	})
}

// The end of an operation, as those learn of it who wait.
func TestWait(t *testing.T) {
	deadline := func(d time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
		return func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) }
	}
	cancelled := func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Second, cancel)
		return ctx, cancel
	}
	work := func(step string, takes time.Duration, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			if step != "" {
				defer span.Step(ctx, step)()
			}
			select {
			case <-time.After(takes):
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	for _, test := range []struct {
		name   string
		f      func(context.Context) error
		caller func(context.Context) (context.Context, context.CancelFunc)
		kind   fault.Kind
		says   string // "": no error
		took   time.Duration
	}{
		{"works", work("", time.Second, nil), deadline(time.Minute), 0, "", time.Second},
		{"fails", work("", time.Second, errWork), deadline(time.Minute), fault.Internal, "work failed", time.Second},
		{"the caller's time is up: a second before, with the step", work("cni add", time.Minute, nil), deadline(20 * time.Second),
			fault.Unavailable, "job is still under way: at step cni add for 19s", 19 * time.Second},
		{"a short time", work("cni add", time.Minute, nil), deadline(time.Second), fault.Unavailable, "for 900ms", 900 * time.Millisecond},
		{"between steps", work("", time.Minute, nil), deadline(10 * time.Second), fault.Unavailable, "job is still under way", 9 * time.Second},
		{"the caller goes", work("kill", time.Minute, nil), cancelled, fault.Canceled, "at step kill", time.Second},
		{"over budget", work("", 10*time.Minute, nil), deadline(time.Hour), fault.Deadline, "job took longer than 5m0s", 5 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrew(t)
				ctx, cancel := test.caller(t.Context())
				defer cancel()
				ctx, _ = span.Begin(ctx)
				begun, after := time.Now(), 0
				o := c.Begin(ctx, "job", 5*time.Minute, test.f, func() { after++ })
				err := o.Wait(ctx)
				if test.says != "" {
					wantErr(t, err, test.kind, test.says)
				} else if err != nil {
					t.Error(err)
				}
				if took := time.Since(begun); took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
				_ = o.Wait(t.Context()) // one who has time
				if !o.Over() || after != 1 {
					t.Errorf("over %v, after ran %d times", o.Over(), after)
				}
				if again := o.Wait(ctx); test.says == "" && again != nil {
					t.Error(again)
				}
			})
		})
	}
}

func TestNoOperation(t *testing.T) {
	var o *Operation
	if err := errors.Join(o.Wait(t.Context()), o.Interrupt(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew(t)
		var cause error
		o := c.Begin(t.Context(), "job", time.Minute, func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return errWork
		}, never)
		if err := o.Interrupt(t.Context()); err != nil {
			t.Errorf("whatever its end was is no error: %v", err)
		}
		wantErr(t, cause, fault.Canceled, "stopped while it was being made")
		wantErr(t, o.Wait(t.Context()), fault.Internal, "work failed")

		deaf := c.Begin(t.Context(), "deaf", time.Hour, func(context.Context) error { time.Sleep(time.Minute); return nil }, never)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		wantErr(t, deaf.Interrupt(ctx), fault.Unavailable, "deaf is still under way")
	})
}

// What ends when nobody waits any more is told to the log.
func TestLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := NewCrew(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = c.Begin(ctx, "left job", time.Minute, func(context.Context) error { time.Sleep(2 * time.Second); return errWork }, never).Wait(ctx)
		_ = c.Begin(t.Context(), "joined job", time.Minute, func(context.Context) error { return errWork }, never).Wait(t.Context())
		time.Sleep(5 * time.Second)
		c.Dismiss()
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "left job") || !strings.Contains(text, "work failed") {
			t.Errorf("log:\n%s", text)
		}
	})
}

func TestSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newCrew(t), NewSlot()
		var order []string
		first := func(ctx context.Context) error {
			defer span.Step(ctx, "network")()
			time.Sleep(10 * time.Second)
			order = append(order, "first")
			return nil
		}
		var all sync.WaitGroup
		all.Go(func() {
			ctx, _ := span.Begin(t.Context())
			if err := c.With(ctx, &s, "run", time.Minute, first); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begun := time.Now()
		if err := s.Await(short, "look", time.Second); err != nil || time.Since(begun) != time.Second {
			t.Errorf("await: %v after %v", err, time.Since(begun))
		}
		// Who has no time is told what has it, and at which step that is.
		wantErr(t, s.Take(short, "stop"), fault.Unavailable, "run is still under way: at step network")
		wantErr(t, s.Await(short, "stop", time.Hour), fault.Unavailable, "run is still under way")
		// Its call has the steps of both.
		stopping, trace := span.Begin(t.Context())
		all.Go(func() {
			if err := c.With(stopping, &s, "stop", time.Minute, func(context.Context) error { order = append(order, "second"); return nil }); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if strings.Join(order, " ") != "first second" {
			t.Errorf("order %v", order)
		}
		if steps := trace.Steps(); len(steps) != 2 || steps[0].Name != "network" || steps[0].Took != 10*time.Second ||
			steps[1].Name != "wait for run" || steps[1].Took == 0 {
			t.Errorf("steps of who waited: %+v", steps)
		}
		if err := s.Await(t.Context(), "look", time.Hour); err != nil {
			t.Errorf("await a slot that is free: %v", err)
		}

		s.Seize() // by nobody who has a name
		wait, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		wantErr(t, s.Take(wait, "start"), fault.Unavailable, "start: another operation is under way")
		o := c.Occupy(t.Context(), &s, "make", time.Minute, func(context.Context) error { return errWork })
		wantErr(t, o.Wait(t.Context()), fault.Internal, "work failed")
		if err := s.Take(t.Context(), "after"); err != nil {
			t.Errorf("the slot was not given back: %v", err)
		}
		s.Give()
	})
}

// A crew that is gone gives the slot back all the same.
func TestSlotAfterDismiss(t *testing.T) {
	c, s := newCrew(t), NewSlot()
	c.Dismiss()
	wantErr(t, c.With(t.Context(), &s, "late", time.Minute, func(context.Context) error { return nil }), fault.Unavailable, "shutting down")
	if err := s.Take(t.Context(), "next"); err != nil {
		t.Error(err)
	}
}
