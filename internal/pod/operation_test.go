package pod

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// A hang at any step: the caller learns which one and its age in time, a retry
// joins, and once it is over the retry gets the ID.
func TestRunHangs(t *testing.T) {
	for step, call := range map[string]string{
		"namespaces": "Namespaces.Create", "network": "Network.Attach", "holder": "Sessions.Hold", "": "save",
	} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				d := n.open()
				hang := make(chan struct{})
				n.set(func() { n.deaf[call] = hang })
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err := d.Run(ctx, podConfig("web", shared), "")
				wantKind(t, err, fault.Unavailable)
				if !strings.Contains(err.Error(), "step "+step) && step != "" || step != "" && !strings.Contains(err.Error(), "9s") {
					t.Errorf("the error names neither step nor age: %v", err)
				}
				if ctx.Err() != nil {
					t.Error("the answer came after the caller's deadline")
				}
				all := d.List()
				if len(all) != 1 || all[0].State != Preparing {
					t.Fatalf("listed: %+v", all)
				}
				var wg sync.WaitGroup
				ids := make([]string, 5)
				for i := range ids {
					wg.Go(func() { ids[i], _ = d.Run(t.Context(), podConfig("web", shared), "") })
				}
				synctest.Wait()
				close(hang)
				wg.Wait()
				for _, id := range ids {
					if id != all[0].ID {
						t.Errorf("got pod %q, want %q", id, all[0].ID)
					}
				}
				n.set(func() { delete(n.deaf, call) })
				id, err := d.Run(t.Context(), podConfig("web", shared), "")
				if err != nil || id != all[0].ID {
					t.Errorf("once more: %q, %v", id, err)
				}
				must(t, d.Remove(t.Context(), id))
				d.stop()
				n.clean()
			})
		})
	}
}

// The same for containers; and what hangs there delays nothing else.
func TestCreateHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, _ := n.run(d, "web", private)
		hang := make(chan struct{})
		n.set(func() { n.deaf["Rootfs.Mount"] = hang })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := d.CreateContainer(ctx, podID, containerConfig("second"))
		wantKind(t, err, fault.Canceled)
		if len(d.Containers()) != 1 {
			t.Error("a container that is not made is listed")
		}
		time.AfterFunc(time.Second, func() { close(hang) })
		id, err := d.CreateContainer(t.Context(), podID, containerConfig("second"))
		must(t, err)
		again, err := d.CreateContainer(t.Context(), podID, containerConfig("second"))
		if err != nil || again != id {
			t.Errorf("again: %q, %v; want %q", again, err, id)
		}
		must(t, d.StartContainer(t.Context(), id))
		_, err = d.CreateContainer(t.Context(), podID, containerConfig("second"))
		wantKind(t, err, fault.Exists)
		must(t, d.Remove(t.Context(), podID))
		d.stop()
		n.clean()
	})
}

// Stop and Remove cancel what is under way, and wait for it.
func TestStopWhileMaking(t *testing.T) {
	for _, call := range []string{"Namespaces.Create", "Network.Attach", "Sessions.Hold", "Rootfs.Mount", "Processes.Create"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				d := n.open()
				n.set(func() { n.hang[call] = make(chan struct{}) })
				var wg sync.WaitGroup
				wg.Go(func() {
					podID, err := d.Run(t.Context(), podConfig("web", shared), "")
					if err == nil {
						_, err = d.CreateContainer(t.Context(), podID, containerConfig("main"))
					}
					wantKind(t, err, fault.Canceled)
				})
				synctest.Wait()
				id := d.List()[0].ID
				must(t, d.Stop(t.Context(), id))
				must(t, d.Remove(t.Context(), id))
				wg.Wait()
				n.set(func() { delete(n.hang, call) })
				podID, _ := n.run(d, "web", shared)
				must(t, d.Remove(t.Context(), podID))
				d.stop()
				n.clean()
			})
		})
	}
}

// Something that hangs and heeds nobody: Stop says so; it is Listed all the
// while; when it ends at last, nothing is left.
func TestStopWhileDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		hang := make(chan struct{})
		n.set(func() { n.deaf["Network.Attach"] = hang })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := d.Run(ctx, podConfig("web", private), "")
		wantKind(t, err, fault.Unavailable)
		id := d.List()[0].ID
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err = d.Stop(ctx, id)
		wantKind(t, err, fault.Unavailable)
		if !strings.Contains(err.Error(), "step network for 18s") {
			t.Errorf("step and age: %v", err)
		}
		close(hang)
		time.Sleep(time.Second)
		if left := d.List(); len(left) > 0 {
			t.Errorf("left: %+v", left[0])
		}
		d.stop()
		n.clean()
	})
}

// An operation's own budget ends it when nobody else does.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		n.set(func() { n.hang["Network.Attach"] = make(chan struct{}) })
		_, err := d.Run(t.Context(), podConfig("web", private), "")
		wantKind(t, err, fault.Deadline)
		if !strings.Contains(err.Error(), "network") {
			t.Error(err)
		}
		d.stop()
		n.clean()
	})
}

// davitd is told to stop while it makes a pod: the next one cleans up.
func TestCloseWhileMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		n.set(func() { n.hang["Network.Attach"] = make(chan struct{}) })
		go func() { _, _ = d.Run(t.Context(), podConfig("web", private), "") }()
		synctest.Wait()
		d.stop()
		_, err := d.Run(t.Context(), podConfig("other", private), "")
		wantKind(t, err, fault.Unavailable)
		n.set(func() { delete(n.hang, "Network.Attach") })
		d = n.open()
		time.Sleep(time.Second)
		d.stop()
		n.clean()
	})
}
