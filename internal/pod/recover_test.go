package pod

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
)

// Every combination of what recovery sees.
func TestVerdicts(t *testing.T) {
	bools := []bool{false, true}
	for _, f := range []podFinding{{state: Preparing}, {state: Ready}, {state: NotReady}} {
		for _, f.doomed = range bools {
			for _, f.there = range bools {
				for _, f.holder = range bools {
					want := keep
					switch {
					case f.state == Preparing, f.doomed:
						want = discard
					case f.state == NotReady:
						want = settle
					case !f.there, !f.holder: // a reboot; the first process of its PID namespace died
						want = miss
					}
					if got := f.verdict(); got != want {
						t.Errorf("%+v: %s, want %s", f, got, want)
					}
				}
			}
		}
	}
	for _, c := range []struct {
		f    containerFinding
		want verdict
	}{
		{containerFinding{state: Preparing}, discard},
		{containerFinding{state: Preparing, known: true, exit: true}, discard},
		{containerFinding{state: Running, known: true, doomed: true}, discard},
		{containerFinding{state: Running, known: true, orphan: true}, discard},
		{containerFinding{state: Exited, orphan: true}, discard},
		{containerFinding{state: Exited}, keep},
		{containerFinding{state: Exited, known: true, exit: true}, keep}, // told once
		{containerFinding{state: Created}, miss},
		{containerFinding{state: Running}, miss},
		{containerFinding{state: Running, starting: true}, miss},
		{containerFinding{state: Created, known: true}, keep},
		{containerFinding{state: Running, known: true, starting: true}, keep},
		{containerFinding{state: Created, known: true, starting: true}, restart},
		{containerFinding{state: Created, known: true, starting: true, exit: true}, bury},
		{containerFinding{state: Running, known: true, exit: true}, bury},
		{containerFinding{state: Unknown, known: true, exit: true}, bury},
	} {
		if got := c.f.verdict(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.f, got, c.want)
		}
	}
}

// davitd restarts: everything is as before, and an exit meanwhile has its code.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, id := n.run(d, "web", shared)
		other, err := d.CreateContainer(t.Context(), podID, containerConfig("other"))
		must(t, err)
		must(t, d.StartContainer(t.Context(), other))
		pod, _ := d.Pod(podID)
		running, _ := d.Container(id)
		d.stop()
		n.die(other, 42)
		d = n.open()
		again, err := d.Pod(podID)
		must(t, err)
		if !proto.Equal(pod.Config, again.Config) || pod.State != again.State || !pod.CreatedAt.Equal(again.CreatedAt) ||
			pod.Network.Driver != again.Network.Driver || pod.Paths["net"] != again.Paths["net"] || !slices.Equal(pod.Held, again.Held) {
			t.Errorf("was %+v\nis  %+v", pod, again)
		}
		c, _ := d.Container(id)
		if c.State != Running || c.Pid != running.Pid || !c.StartedAt.Equal(running.StartedAt) || !proto.Equal(c.Config, running.Config) {
			t.Errorf("was %+v\nis  %+v", running, c)
		}
		c, _ = d.Container(other)
		if c.State != Exited || c.ExitCode != 42 || c.Reason != "Error" {
			t.Errorf("%+v", c)
		}
		same, err := d.Run(t.Context(), podConfig("web", shared), "")
		if err != nil || same != podID {
			t.Errorf("ran again: %q, %v", same, err)
		}
		must(t, d.Remove(t.Context(), podID))
		d.stop()
		n.clean()
	})
}

// After a reboot: pods not ready, containers exited, all released, names of
// new attempts free.
func TestReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, id := n.run(d, "web", shared)
		d.stop()
		n.boot = "boot 2"
		clear(n.procs)
		clear(n.have)
		n.have["network "+podID] = true // an address lease
		must(t, os.RemoveAll(n.state))
		d = n.open()
		time.Sleep(time.Second)
		pod, _ := d.Pod(podID)
		if pod.State != NotReady || len(pod.Held) > 0 {
			t.Errorf("%+v", pod)
		}
		c, _ := d.Container(id)
		if c.State != Exited || c.ExitCode != 255 || c.Reason != "Unknown" || c.FinishedAt.IsZero() {
			t.Errorf("%+v", c)
		}
		if left := n.left(); len(left) > 0 {
			t.Error(left)
		}
		config := podConfig("web", shared)
		config.Metadata.Attempt++
		next, err := d.Run(t.Context(), config, "")
		must(t, err)
		must(t, d.Remove(t.Context(), podID))
		must(t, d.Remove(t.Context(), next))
		d.stop()
		n.clean()
	})
}

// The record of a pod or container that lives may be lost in any way: it lives
// on, and is known as before.
func TestRecordsLost(t *testing.T) {
	damages := map[string]func(text []byte) []byte{ // nil: the file is deleted
		"deleted":        func([]byte) []byte { return nil },
		"empty":          func([]byte) []byte { return []byte{} },
		"cut short":      func(text []byte) []byte { return text[:len(text)/2] },
		"another":        func(text []byte) []byte { return bytes.Replace(text, []byte(`"ID": "`), []byte(`"ID": "0`), 1) },
		"other version":  func([]byte) []byte { return []byte(`{"version": 99, "data": {}}`) },
		"a digit turned": func(text []byte) []byte { return bytes.Replace(text, []byte("20"), []byte("30"), 1) },
	}
	for name, damage := range damages {
		for _, stage := range []string{"created", "running", "exited meanwhile"} {
			t.Run(name+" "+stage, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNode(t)
					d := n.open()
					podID, err := d.Run(t.Context(), podConfig("web", shared), "")
					must(t, err)
					id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
					must(t, err)
					if stage != "created" {
						must(t, d.StartContainer(t.Context(), id))
					}
					pod, _ := d.Pod(podID)
					c, _ := d.Container(id)
					d.stop()
					if stage == "exited meanwhile" {
						n.die(id, 7)
					}
					for _, path := range []string{filepath.Join(n.root, "pods", podID, "record.json"), filepath.Join(n.root, "containers", id, "record.json")} {
						text, err := os.ReadFile(path)
						must(t, err)
						if text = damage(text); text == nil {
							must(t, os.RemoveAll(filepath.Dir(path)))
						} else {
							must(t, os.WriteFile(path, text, 0o600))
						}
					}
					for range 2 {
						d = n.open()
						synctest.Wait()
						if s, err := d.Pod(podID); err != nil || !reflect.DeepEqual(s.Held, pod.Held) || s.State != Ready || !proto.Equal(s.Config, pod.Config) || !s.CreatedAt.Equal(pod.CreatedAt) {
							t.Errorf("%+v, %v; before %+v", s, err, pod)
						}
						s, err := d.Container(id)
						must(t, err)
						if stage != "exited meanwhile" && (s.State != c.State || !proto.Equal(s.Config, c.Config) || s.Pid != c.Pid || !s.StartedAt.Equal(c.StartedAt)) ||
							stage == "exited meanwhile" && (s.State != Exited || s.ExitCode != 7) {
							t.Errorf("%+v; before %+v", s, c)
						}
						d.stop()
					}
					aside, _ := os.ReadDir(filepath.Join(n.root, "damaged"))
					if want := map[bool]int{true: 0, false: 2}[name == "deleted"]; len(aside) != want {
						t.Errorf("aside: %v", aside)
					}
					d = n.open()
					must(t, d.Remove(t.Context(), podID))
					d.stop()
					n.clean()
				})
			})
		}
	}
}

// Records that cannot be read, and of which there is no copy, are moved aside;
// what they held goes; the rest is not concerned. So with what has no record.
func TestDamagedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		healthy, id := n.run(d, "healthy", shared)
		pod, _ := n.run(d, "one", private)
		keeper, c := n.run(d, "two", shared)
		d.stop()
		must(t, os.WriteFile(filepath.Join(n.root, "pods", pod, "record.json"), []byte("{"), 0o600))
		must(t, os.WriteFile(filepath.Join(n.root, "containers", c, "record.json"), nil, 0o600))
		must(t, os.Remove(filepath.Join(n.state, "pods", pod, "record.json")))
		must(t, os.Truncate(filepath.Join(n.state, "containers", c, "record.json"), 9))
		stray := newID()
		n.procs[stray] = &process{}
		must(t, os.MkdirAll(filepath.Join(n.state, "containers", stray), 0o700))
		d = n.open()
		time.Sleep(time.Second)
		if aside, _ := os.ReadDir(filepath.Join(n.root, "damaged")); len(aside) != 2 {
			t.Errorf("aside: %v", aside)
		}
		if s, err := d.Container(id); err != nil || s.State != Running {
			t.Errorf("%+v, %v", s, err)
		}
		if all := d.List(); len(all) != 2 {
			t.Errorf("%d pods", len(all))
		}
		must(t, d.Remove(t.Context(), healthy))
		must(t, d.Remove(t.Context(), keeper))
		d.stop()
		n.clean()
	})
}

// The network is told how pods are connected that are ready; of one that is being
// stopped nobody knows what it has given back, and others may have by now.
func TestCollectIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		ready, _ := n.run(d, "ready", private)
		stopping, _ := n.run(d, "stopping", private)
		n.set(func() { n.fail["Network.Detach"] = errInjected })
		if err := d.Stop(t.Context(), stopping); err == nil {
			t.Error("stopped")
		}
		d.stop()
		n.set(func() { delete(n.fail, "Network.Detach") })
		d = n.open()
		drivers := map[string]string{}
		for _, a := range n.live {
			drivers[a.ID] = a.Driver
		}
		if len(drivers) != 2 || drivers[ready] != "fake" || drivers[stopping] != "" {
			t.Errorf("told %v", drivers)
		}
		must(t, d.Remove(t.Context(), ready))
		must(t, d.Remove(t.Context(), stopping))
		d.stop()
		n.clean()
	})
}

// The holder dies: the pod is not ready any more, and can be stopped.
func TestHolderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, _ := n.run(d, "web", shared)
		synctest.Wait()
		n.die(podID, 137)
		if pod, _ := d.Pod(podID); pod.State != NotReady {
			t.Errorf("%+v", pod)
		}
		must(t, d.Remove(t.Context(), podID))
		d.stop()
		n.clean()
	})
}

func TestMonitorIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.set(func() { n.hang["Processes.List"] = make(chan struct{}) })
		if _, err := Open(t.Context(), n.options()); err == nil {
			t.Error("opened")
		}
	})
}
