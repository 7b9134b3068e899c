package trial

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/layout"
)

// newWorld serves samples and starts a davitd that finds them.
func newWorld(t *testing.T, layerMB int) (*world, *layout.Registry) {
	t.Helper()
	testkit.Root(t)
	dir := layout.Dir(t.TempDir())
	testkit.Leftovers(t)
	made := samples(t, dir, layerMB)
	registry, err := layout.Serve(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(registry.Close)
	d := testkit.NewDaemon(t, configuration("http://"+registry.Host))
	return &world{t: t, d: d, c: d.Client(t), samples: made}, registry
}

// TestKillWhilePulling: davitd is killed at random moments of pulls. Whatever
// it lists afterwards is whole, what PullImage answered is there, the pull is
// repeated and succeeds, and in the end nothing is left.
func TestKillWhilePulling(t *testing.T) {
	kills := setting(t, "DAVIT_TRIAL_KILLS", 5)
	megabytes := 1
	if kills > 20 {
		megabytes = 12
	}
	random := rand.New(rand.NewPCG(seed(t), 0))
	w, _ := newWorld(t, megabytes)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()

	took := w.pullAll(ctx)
	if len(w.check(ctx)) != len(w.samples) {
		t.Fatal("images are missing before the first kill")
	}
	w.removeImages(ctx)
	before := w.settled()
	answered, whole := 0, 0
	for n := range kills {
		done := w.killWhilePulling(ctx, time.Duration(random.Int64N(int64(took)*11/10)))
		listed := w.check(ctx)
		whole += len(listed)
		answered += len(done)
		for _, s := range done {
			if !slices.ContainsFunc(listed, func(l sample) bool { return l.id == s.id }) {
				t.Errorf("kill %d: the pull of %s was answered, and it is not there", n, s.tag)
			}
		}
		took = w.pullAll(ctx)
		if len(w.check(ctx)) != len(w.samples) {
			t.Errorf("kill %d: images are missing after a repeated pull", n)
		}
		w.removeImages(ctx)
		if t.Failed() {
			t.Fatalf("in kill %d", n)
		}
	}
	w.mustBe(before)
	t.Logf("figure: %d kills, each within the %d ms of a pull; %d pulls had been answered, %d images were there; %d images compared",
		kills, took.Milliseconds(), answered, whole, w.checked)
}

// pullAll pulls all samples at once and returns how long that took.
func (w *world) pullAll(ctx context.Context) time.Duration {
	w.t.Helper()
	start := time.Now()
	var pulls sync.WaitGroup
	for _, s := range w.samples {
		pulls.Go(func() {
			if _, err := w.c.Pull(ctx, s.ref()); err != nil {
				w.t.Errorf("pull %s: %v", s.tag, err)
			}
		})
	}
	pulls.Wait()
	return time.Since(start)
}

// killWhilePulling kills davitd some time after pulls of all samples began, and
// starts it again. It returns the samples whose pulls were answered before.
func (w *world) killWhilePulling(ctx context.Context, moment time.Duration) (answered []sample) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var pulls sync.WaitGroup
	for _, s := range w.samples {
		pulls.Go(func() {
			if _, err := w.c.Pull(ctx, s.ref()); err == nil {
				mu.Lock()
				defer mu.Unlock()
				answered = append(answered, s)
			}
		})
	}
	time.Sleep(moment) // random: what is judged is any moment
	w.d.Kill()
	cancel()
	pulls.Wait()
	if err := w.d.Start(); err != nil {
		w.t.Fatal(err)
	}
	return answered
}
