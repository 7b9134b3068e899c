package pod

import (
	"fmt"
	"maps"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// life takes a pod with a container through its whole life and returns the
// first error.
func life(t *testing.T, d *daemon) error {
	ctx := t.Context()
	pod := podConfig("web", shared)
	if os.Geteuid() == 0 {
		withUsers(pod) // there is more to release
	}
	podID, err := d.Run(ctx, pod, "")
	if err != nil {
		return err
	}
	id, err := d.CreateContainer(ctx, podID, withVolume(containerConfig("main"), ""))
	if err != nil {
		return err
	}
	if err := d.StartContainer(ctx, id); err != nil {
		return err
	}
	if err := d.StopContainer(ctx, id, time.Second); err != nil {
		return err
	}
	if err := d.Stop(ctx, podID); err != nil {
		return err
	}
	return d.Remove(ctx, podID)
}

// Each call to a driver, and each save, fails once, before or after doing its
// work. The kubelet then stops and removes what is listed; nothing may stay.
func TestEachCallFails(t *testing.T) {
	for _, after := range []bool{false, true} {
		for failAt := 4; ; failAt++ { // the first three are Open's and Serve's
			past := false
			t.Run(fmt.Sprintf("after=%v/%d", after, failAt), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNode(t)
					d := n.open()
					synctest.Wait()
					n.set(func() { n.failAt, n.after = failAt, after })
					_ = life(t, d)
					past = len(n.names()) < failAt
					for _, pod := range d.List() {
						must(t, d.Stop(t.Context(), pod.ID))
						must(t, d.Remove(t.Context(), pod.ID))
					}
					time.Sleep(time.Minute) // for retries in the background
					d.stop()
					n.clean()
				})
			})
			if past || t.Failed() {
				break
			}
		}
	}
}

// davitd dies before and after each save; what is on disk then, and what the world is like
// then, is what the next davitd finds.
func TestCrashAtEachSave(t *testing.T) {
	for crashAt := 1; ; crashAt++ {
		past := false
		t.Run(fmt.Sprint(crashAt), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				d := n.open()
				var then *node
				saves := 0
				n.atSave = func() {
					if saves++; saves == crashAt {
						then = n.copy()
					}
				}
				must(t, life(t, d))
				d.stop()
				if past = then == nil; past {
					return
				}
				next := then.open()
				time.Sleep(time.Minute)
				// A container that had exited has its code; one that lives runs on.
				then.mu.Lock()
				for _, c := range next.Containers() {
					p := then.procs[c.ID]
					switch {
					case p == nil:
						t.Errorf("container %s is %s and there is no process", c.ID, c.State)
					case p.Exit != nil && (c.State != Exited || c.ExitCode != p.Exit.Code):
						t.Errorf("container is %s %d, its process exited with %d", c.State, c.ExitCode, p.Exit.Code)
					case p.Exit == nil && p.Started != (c.State == Running):
						t.Errorf("container is %s, started=%v", c.State, p.Started)
					}
				}
				then.mu.Unlock()
				for _, pod := range next.List() {
					if pod.State == Preparing {
						t.Errorf("half a pod is listed still: %+v", pod)
					}
					must(t, next.Stop(t.Context(), pod.ID))
					must(t, next.Remove(t.Context(), pod.ID))
				}
				must(t, life(t, next)) // its name is free
				next.stop()
				then.clean()
			})
		})
		if past || t.Failed() {
			break
		}
	}
}

// copy returns the node as it is now.
func (n *node) copy() *node {
	c := newNode(n.t)
	for from, to := range map[string]string{n.root: c.root, n.state: c.state} {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			n.t.Error(err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for thing := range n.have {
		c.have[thing] = true
	}
	for id, p := range n.procs {
		p := *p
		c.procs[id] = &p
	}
	c.pid = n.pid
	c.memory, c.score = maps.Clone(n.memory), maps.Clone(n.score)
	return c
}
