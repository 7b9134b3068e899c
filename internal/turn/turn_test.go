package turn_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/turn"
)

// take starts to wait for a turn and returns whether it is there.
func take(ctx context.Context, t *testing.T, turn *turn.Turn) func() bool {
	var got atomic.Bool
	go func() {
		if err := turn.Take(ctx); err != nil {
			t.Error(err)
		}
		got.Store(true)
	}()
	return func() bool { synctest.Wait(); return got.Load() }
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turn.NewQueue(2)
		var turns [5]*turn.Turn
		for i := range turns {
			turns[i] = q.Join()
		}
		var got [5]func() bool
		for i := len(turns) - 1; i >= 0; i-- {
			got[i] = take(t.Context(), t, turns[i])
		}
		for ended, want := range [][5]bool{{true, true}, {true, true, true}, {true, true, true, true}, {true, true, true, true, true}} {
			if ended > 0 {
				turns[ended-1].End()
				turns[ended-1].End()
			}
			for i := range got {
				if got[i]() != want[i] {
					t.Errorf("after the end of %d, turn %d is taken: %v", ended, i, got[i]())
				}
			}
		}
		for _, t := range turns {
			t.End()
		}
	})
}

// Who waits keeps the turn for as long as pays; whoever computes too long has
// to let others.
func TestPauses(t *testing.T) {
	for _, c := range []struct {
		name           string
		compute, pause time.Duration // again and again
		times          int
		lost           bool
	}{
		{"no wait", time.Millisecond, 0, 100, false},
		{"short waits", time.Millisecond, 200 * time.Microsecond, 1000, false},
		{"as long as it computes", time.Millisecond, time.Millisecond, 100, true},
		{"a long one", 100 * time.Millisecond, 30 * time.Millisecond, 1, true},
		{"one that was earned", 100 * time.Millisecond, 24 * time.Millisecond, 1, false},
		{"a long turn", 100 * time.Millisecond, 0, 19, false},
		{"too long a turn", 100 * time.Millisecond, 0, 22, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := turn.NewQueue(1)
				a, b := q.Join(), q.Join()
				if err := a.Take(t.Context()); err != nil {
					t.Fatal(err)
				}
				other := take(t.Context(), t, b)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for i := 0; i < c.times && !other(); i++ {
					time.Sleep(c.compute)
					a.Pause()
					time.Sleep(c.pause)
					if other() {
						cancel() // since b has the turn for good
					}
					if err := a.Resume(ctx); (err != nil) != other() {
						t.Errorf("resumed: %v", err)
					}
				}
				if other() != c.lost {
					t.Errorf("the other has the turn: %v", other())
				}
				a.End()
				if !other() {
					t.Error("the other never has the turn")
				}
				b.End()
			})
		})
	}
}

// However turns end, none is lost, and none is there twice.
func TestAccounts(t *testing.T) {
	const most = 3
	q := turn.NewQueue(most)
	var computing atomic.Int32
	var wg sync.WaitGroup
	enter := func() {
		if n := computing.Add(1); n > most {
			t.Errorf("%d compute", n)
		}
	}
	for i := range 60 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+i)*time.Millisecond)
			defer cancel()
			n := q.Join()
			defer n.End()
			for range 5 {
				if i%7 == 3 {
					return // in the queue
				}
				if err := n.Take(ctx); err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					return
				}
				for range 5 {
					enter()
					computing.Add(-1)
					n.Pause()
					if i%5 == 2 && rand.N(9) == 0 {
						return // in a pause
					}
					time.Sleep(rand.N(time.Millisecond)) //nolint:forbidigo // what is waited for
					if n.Resume(ctx) != nil {
						return
					}
				}
				if i%2 == 0 {
					n.End()
				}
			}
		})
	}
	wg.Wait()
	for range most {
		if err := q.Join().Take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if q.Join().Take(ctx) == nil {
		t.Error("there is one more turn than at first")
	}
}
