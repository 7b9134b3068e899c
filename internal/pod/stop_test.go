package pod

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

func (n *node) stubborn(id string) {
	n.set(func() { n.procs[id].Stubborn = true })
}

func TestStopGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		_, id := n.run(d, "web", private)
		n.stubborn(id)
		from := time.Now()
		must(t, d.StopContainer(t.Context(), id, 30*time.Second))
		if took := time.Since(from); took != 30*time.Second {
			t.Errorf("took %v", took)
		}
		c, _ := d.Container(id)
		if c.State != Exited || c.ExitCode != 137 || c.Reason != "Error" || c.FinishedAt.IsZero() {
			t.Errorf("%+v", c)
		}
		must(t, d.StopContainer(t.Context(), id, time.Second)) // idempotent
		must(t, d.StopContainer(t.Context(), "absent", time.Second))
	})
}

// A caller that goes does not kill; a later one with a shorter grace does at its own time.
func TestStopCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		_, id := n.run(d, "web", private)
		n.stubborn(id)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := d.StopContainer(ctx, id, time.Minute)
		wantKind(t, err, fault.Deadline)
		time.Sleep(2 * time.Minute)
		if c, _ := d.Container(id); c.State != Running {
			t.Errorf("killed for a caller that had gone: %+v", c)
		}
		var wg sync.WaitGroup
		wg.Go(func() { must(t, d.StopContainer(t.Context(), id, time.Hour)) })
		time.Sleep(time.Second)
		_, err = d.Exec(t.Context(), id, []string{"true"}, 0) // works meanwhile
		must(t, err)
		must(t, d.ReopenLog(t.Context(), id))
		from := time.Now()
		must(t, d.StopContainer(t.Context(), id, 2*time.Second))
		wg.Wait()
		if took := time.Since(from); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestThirtyStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, id := n.run(d, "web", private)
		n.stubborn(id)
		from := time.Now()
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() { must(t, d.StopContainer(t.Context(), id, time.Duration(30-i)*time.Second)) })
			if i%3 == 0 {
				wg.Go(func() { time.Sleep(time.Second); must(t, d.Stop(t.Context(), podID)) })
				wg.Go(func() { time.Sleep(time.Second); must(t, d.RemoveContainer(t.Context(), id)) })
			}
		}
		wg.Wait()
		if took := time.Since(from); took != time.Second {
			t.Errorf("took %v", took)
		}
		if len(n.signals) != 1 {
			t.Errorf("sent %d stop signals", len(n.signals))
		}
		wg.Go(func() { must(t, d.Remove(t.Context(), podID)) })
		wg.Go(func() { must(t, d.Remove(t.Context(), podID)) })
		wg.Wait()
		d.stop()
		n.clean()
	})
}

// A process that cannot be killed is an error that names it, and clears itself.
func TestUnkillable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, id := n.run(d, "web", private)
		n.set(func() { n.procs[id].Undead = true })
		err := d.StopContainer(t.Context(), id, 0)
		wantKind(t, err, fault.Unavailable)
		if !strings.Contains(err.Error(), "process 101 outlives SIGKILL") {
			t.Error(err)
		}
		wantKind(t, d.Remove(t.Context(), podID), fault.Unavailable)
		n.die(id, 137)
		must(t, d.Remove(t.Context(), podID))
		d.stop()
		n.clean()
	})
}

// An exit that nobody told of is found out.
func TestExitUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		_, id := n.run(d, "web", private)
		_, other := n.run(d, "other", private)
		synctest.Wait()
		n.set(func() { clear(n.watch) })
		must(t, d.StopContainer(t.Context(), id, 5*time.Second))
		c, _ := d.Container(id)
		if c.State != Exited || c.ExitCode != 143 {
			t.Errorf("%+v", c)
		}
		n.set(func() { delete(n.procs, other) })
		must(t, d.StopContainer(t.Context(), other, 5*time.Second))
		c, _ = d.Container(other)
		if c.State != Exited || c.ExitCode != 255 || c.Reason != "Unknown" {
			t.Errorf("%+v", c)
		}
	})
}

// What cannot be released is an error each time, visible, and goes on in the background.
func TestStopReleaseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, _ := n.run(d, "web", private)
		n.set(func() { n.fail["Network.Detach"] = errors.New("plugin is gone") })
		for range 2 {
			err := d.Stop(t.Context(), podID)
			if err == nil || !strings.Contains(err.Error(), "release network: plugin is gone") {
				t.Fatalf("got %v", err)
			}
		}
		s, _ := d.Pod(podID)
		if s.State != NotReady || s.Held[len(s.Held)-1] != "network" {
			t.Errorf("%+v", s)
		}
		if d.Remove(t.Context(), podID) == nil {
			t.Fatal("removed a pod that has its network")
		}
		_, err := d.Run(t.Context(), podConfig("web", private), "")
		wantKind(t, err, fault.Exists)
		time.Sleep(time.Hour)
		n.set(func() { delete(n.fail, "Network.Detach") })
		time.Sleep(time.Minute)
		d.stop()
		n.clean()
	})
}

// A failed making whose release fails goes on in the background; its name is free at once.
func TestReleaseAfterFailureFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		n.set(func() { n.fail["Sessions.Hold"] = errInjected })
		n.set(func() { n.fail["Namespaces.Release"] = errors.New("busy") })
		_, err := d.Run(t.Context(), podConfig("web", shared), "")
		if !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		if all := d.List(); len(all) != 1 || all[0].State != Preparing {
			t.Fatalf("%+v", all)
		}
		n.set(func() { delete(n.fail, "Sessions.Hold") })
		podID, _ := n.run(d, "web", shared)
		n.set(func() { delete(n.fail, "Namespaces.Release") })
		time.Sleep(time.Minute)
		if len(d.List()) != 1 {
			t.Error("half a pod stays")
		}
		must(t, d.Remove(t.Context(), podID))
		d.stop()
		n.clean()
	})
}

func TestStopCreated(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	must(t, d.StopContainer(t.Context(), id, time.Minute))
	c, _ := d.Container(id)
	if c.State != Exited || c.ExitCode != 137 || !c.StartedAt.IsZero() {
		t.Errorf("%+v", c)
	}
	wantKind(t, d.StartContainer(t.Context(), id), fault.Precondition)
	must(t, d.Stop(t.Context(), podID))
	_, err = d.CreateContainer(t.Context(), podID, containerConfig("next"))
	wantKind(t, err, fault.Precondition)
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]struct {
		name string
		n    int
	}{
		"SIGTERM": {"SIGTERM", 15}, "term": {"SIGTERM", 15}, "9": {"SIGKILL", 9}, "SIGRTMIN": {"SIGRTMIN", 34},
		"SIGRTMIN+3": {"SIGRTMIN+3", 37}, "rtmin+3": {"SIGRTMIN+3", 37}, "37": {"SIGRTMIN+3", 37}, "34": {"SIGRTMIN", 34},
		"SIGRTMAX-2": {"SIGRTMAX-2", 62}, "SIGRTMAX": {"SIGRTMAX", 64},
		"SIGFOO": {}, "0": {}, "65": {}, "33": {}, "SIGRTMIN+31": {}, "SIGRTMAX+1": {}, "": {}, "SIGRTMINx": {},
	} {
		name, n, err := parseSignal(text)
		if name != want.name || n != want.n || (err == nil) != (want.n != 0) {
			t.Errorf("%q: %q, %d, %v", text, name, n, err)
		}
	}
	// Every signal of the CRI has a number.
	for n, name := range runtimeapi.Signal_name {
		if _, err := stopSignal(runtimeapi.Signal(n), ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
