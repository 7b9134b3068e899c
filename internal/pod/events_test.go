package pod

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// heard returns what has been posted, in short: "pod created", "main started".
func heard(t *testing.T, s *Subscription) []string {
	t.Helper()
	var all []string
	var last time.Time
	for {
		select {
		case e := <-s.Events:
			what := "pod"
			if e.Container != nil {
				what = e.Container.Config.GetMetadata().GetName()
			}
			if e.Pod.Config.GetMetadata().GetName() == "" || e.At.Before(last) {
				t.Errorf("event %+v", e)
			}
			last = e.At
			all = append(all, what+" "+string(e.Kind))
		default:
			return all
		}
	}
}

func wantHeard(t *testing.T, s *Subscription, want ...string) {
	t.Helper()
	if got := heard(t, s); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestEvents(t *testing.T) {
	n := newNode(t)
	d := n.open()
	ctx, leave := context.WithCancel(t.Context())
	s := d.Subscribe(ctx)
	podID, id := n.run(d, "web", private)
	wantHeard(t, s, "pod created", "pod started", "main created", "main started")
	d.exited(monitor.Exit{ID: id, Code: 3, At: time.Now()})
	wantHeard(t, s, "main stopped")
	d.exited(monitor.Exit{ID: id, Code: 3, At: time.Now()})
	must(t, d.StopContainer(t.Context(), id, 0))
	must(t, d.RemoveContainer(t.Context(), id))
	must(t, d.RemoveContainer(t.Context(), id))
	wantHeard(t, s, "main deleted")
	must(t, d.Stop(t.Context(), podID))
	must(t, d.Stop(t.Context(), podID))
	wantHeard(t, s, "pod stopped")
	must(t, d.Remove(t.Context(), podID))
	wantHeard(t, s, "pod deleted")

	podID, _ = n.run(d, "db", private)
	must(t, d.Remove(t.Context(), podID))
	wantHeard(t, s, "pod created", "pod started", "main created", "main started",
		"pod stopped", "main stopped", "main deleted", "pod deleted")
	leave()
	for range s.Events { // ends, since it is closed
		t.Error("an event after all")
	}
	d.stop()
	n.clean()
}

// What was never made has no events; what cannot start has stopped.
func TestEventsOfFailures(t *testing.T) {
	n := newNode(t)
	d := n.open()
	s := d.Subscribe(t.Context())
	n.world.set(func() { n.world.fail["Network.Attach"] = errInjected })
	if _, err := d.Run(t.Context(), podConfig("none", private), ""); err == nil {
		t.Error("a pod without a network")
	}
	wantHeard(t, s)
	n.world.set(func() { n.world.fail = map[string]error{"Processes.Create": errInjected} })
	podID, err := d.Run(t.Context(), podConfig("p", private), "")
	must(t, err)
	heard(t, s)
	if _, err := d.CreateContainer(t.Context(), podID, containerConfig("c")); err == nil {
		t.Error("a container without a process")
	}
	wantHeard(t, s)
	n.world.set(func() { n.world.fail = map[string]error{"Processes.Start": errInjected} })
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("c"))
	must(t, err)
	if err := d.StartContainer(t.Context(), id); err == nil {
		t.Error("started")
	}
	wantHeard(t, s, "c created", "c stopped")
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}

// An exit that is heard of before the start's success comes after it.
func TestEventsOfAQuickEnd(t *testing.T) {
	n := newNode(t)
	d := n.open()
	s := d.Subscribe(t.Context())
	podID, err := d.Run(t.Context(), podConfig("p", private), "")
	must(t, err)
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("quick"))
	must(t, err)
	c, err := d.findContainer(id)
	must(t, err)
	c.startBegins()
	must(t, c.commit(func(s *containerState) error { s.Starting = time.Now(); return nil }))
	d.exited(monitor.Exit{ID: id, At: time.Now()})
	wantHeard(t, s, "pod created", "pod started", "quick created")
	must(t, c.note(func(s *containerState) error { return s.enter(started) }))
	d.startOver(c)
	wantHeard(t, s, "quick started", "quick stopped")
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}

// A reader that does not read loses the oldest events and holds up nobody.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b board
		ctx, leave := context.WithCancel(t.Context())
		slow, quick := b.subscribe(ctx, 4), b.subscribe(t.Context(), 4)
		for i := range 10 {
			b.post(Event{Pod: &Snapshot{HolderPid: i}})
			if e := <-quick.Events; e.Pod.HolderPid != i {
				t.Errorf("event %d: %+v", i, e)
			}
		}
		if slow.Lost() != 6 || quick.Lost() != 0 {
			t.Errorf("lost %d and %d", slow.Lost(), quick.Lost())
		}
		for i := 6; i < 10; i++ {
			if e := <-slow.Events; e.Pod.HolderPid != i {
				t.Errorf("event %d: %+v", i, e)
			}
		}
		leave()
		synctest.Wait()
		b.post(Event{})
		if _, open := <-slow.Events; open || len(quick.Events) != 1 {
			t.Error("after its end")
		}
	})
}
