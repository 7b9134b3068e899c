package pod

import (
	"testing"
)

func TestLife(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, id := n.run(d, "web", shared)
	s, err := d.Pod(podID[:12])
	must(t, err)
	if s.State != Ready || s.HolderPid == 0 || s.Paths["pid"] == "" || s.Network.Driver != "fake" {
		t.Errorf("pod: %+v", s)
	}
	c, err := d.Container(id[:12])
	must(t, err)
	if c.State != Running || c.StartedAt.IsZero() || c.Pid == 0 || c.StopSignal != "SIGTERM" {
		t.Errorf("container: %+v", c)
	}
	must(t, d.StopContainer(t.Context(), id, 1e9))
	if c, err = d.Container(id); err != nil || c.State != Exited || c.ExitCode != 143 || c.Reason != "Error" {
		t.Errorf("container: %+v, %v", c, err)
	}
	must(t, d.Stop(t.Context(), podID))
	if s, err = d.Pod(podID); err != nil || s.State != NotReady || len(s.Held) > 0 {
		t.Errorf("pod: %+v, %v", s, err)
	}
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}
