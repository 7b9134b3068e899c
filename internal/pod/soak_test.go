package pod

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// Many callers at once do what comes to their minds with few pods, calls fail
// and hang now and then, processes die, davitd is closed and opened. In the
// end everything can be removed, and nothing is left.
func TestSoak(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { soak(t, seed) })
		})
	}
}

func soak(t *testing.T, seed uint64) {
	n := newNode(t)
	n.chance = rand.New(rand.NewPCG(seed, 1))
	for range 3 {
		d := n.open()
		var wg sync.WaitGroup
		for worker := range 8 {
			random := rand.New(rand.NewPCG(seed, uint64(worker)))
			wg.Go(func() {
				for range 40 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(20000))*time.Millisecond)
					n.act(ctx, t, d, random)
					cancel()
					time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
				}
			})
		}
		wg.Wait()
		d.stop()
	}
	n.set(func() { n.chance = nil })
	d := n.open()
	time.Sleep(10 * time.Minute)
	for _, pod := range d.List() {
		must(t, d.Remove(t.Context(), pod.ID))
	}
	time.Sleep(10 * time.Minute)
	if left := d.Containers(); len(left) > 0 {
		t.Errorf("left: %+v", left[0])
	}
	d.stop()
	n.clean()
}

// act does one thing at random. Of errors, only kinds that the world gives
// rise to are right.
func (n *node) act(ctx context.Context, t *testing.T, d *daemon, random *rand.Rand) {
	name := fmt.Sprint("pod", random.IntN(3))
	pods, containers := d.List(), d.Containers()
	podID, id := "absent", "absent"
	if len(pods) > 0 {
		podID = pods[random.IntN(len(pods))].ID
	}
	if len(containers) > 0 {
		id = containers[random.IntN(len(containers))].ID
	}
	var err error
	switch random.IntN(12) {
	case 0, 1:
		_, err = d.Run(ctx, podConfig(name, shared), "")
	case 2, 3:
		_, err = d.CreateContainer(ctx, podID, containerConfig(fmt.Sprint("c", random.IntN(3))))
	case 4, 5:
		err = d.StartContainer(ctx, id)
	case 6, 7:
		err = d.StopContainer(ctx, id, time.Duration(random.IntN(5))*time.Second)
	case 8:
		err = d.RemoveContainer(ctx, id)
	case 9:
		err = d.Stop(ctx, podID)
	case 10:
		err = d.Remove(ctx, podID)
	case 11:
		n.die(id, random.IntN(256))
	}
	right := []fault.Kind{
		fault.Internal /* injected */, fault.NotFound, fault.Exists, fault.Precondition, fault.Unavailable, fault.Canceled, fault.Deadline,
	}
	if err != nil && !slices.Contains(right, fault.KindOf(err)) {
		t.Errorf("%v: %v", fault.KindOf(err), err)
	}
	for _, c := range d.Containers() {
		if c.State == Exited != !c.FinishedAt.IsZero() {
			t.Errorf("%+v", c)
		}
	}
}
