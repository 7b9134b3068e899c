package server

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-runtime/davit/internal/monitor"
)

func TestOOMKills(t *testing.T) {
	for text, want := range map[string]int{
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n": 2,
		"oom_kill_disable 0\nunder_oom 0\noom_kill 1\n":                1,
		"oom_kill_disable 0\nunder_oom 0\n":                            0, // before Linux 4.13
		"":                                                             0,
	} {
		if got := oomKills([]byte(text)); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// oomNode is a pod's cgroup of cgroup v2 in plain files, with containers in it.
type oomNode struct {
	t   *testing.T
	s   *server
	pod string
}

func (n *oomNode) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *oomNode) kills(dir string, kills int) {
	n.t.Helper()
	n.must(os.WriteFile(filepath.Join(dir, memoryEvents), fmt.Appendf(nil, "oom %d\noom_kill %d\n", kills, kills), 0o600))
}

func (n *oomNode) add(id string) (c *container, dir string) {
	n.t.Helper()
	dir = filepath.Join(n.pod, id+".scope")
	n.must(os.MkdirAll(dir, 0o700))
	n.kills(dir, 0)
	c = n.s.newContainer(id)
	n.must(os.Mkdir(c.dir, 0o700))
	c.rec.Container = monitor.Container{ID: id, OOMEvents: filepath.Join(dir, memoryEvents)}
	c.rec.OOMOthers = c.knownOOM()
	n.s.containers[id] = c
	return c, dir
}

// The cgroup of a container may have gone before its OOM kill was read. The
// pod's has it still, beside those of others and of earlier containers.
func TestOOMOfAGoneCgroup(t *testing.T) {
	n := &oomNode{t: t, pod: t.TempDir(), s: &server{dir: t.TempDir(), containers: map[string]*container{}}}
	w := &oomWatch{s: n.s}
	n.kills(n.pod, 3)
	mine, dir := n.add("mine")
	other, otherDir := n.add("other")
	count := func(when string, c *container, want int) {
		t.Helper()
		if got := w.count(c); got != want || c.get().OOMKills != want {
			t.Errorf("%s: %d OOM kills of %s, noted %d; want %d", when, got, c.id, c.get().OOMKills, want)
		}
	}
	count("at first", mine, 0)

	n.kills(otherDir, 1)
	n.kills(n.pod, 4)
	count("the other's, with its cgroup", other, 1)
	n.must(os.RemoveAll(dir))
	count("after the other's", mine, 0)

	n.kills(n.pod, 5)
	count("its own", mine, 1)
	count("its own, again", mine, 1)
	n.must(os.RemoveAll(otherDir))
	count("mine's is not the other's", other, 1)

	later, laterDir := n.add("later")
	n.must(os.RemoveAll(laterDir))
	count("earlier ones", later, 0)
	n.kills(n.pod, 7)
	count("two of its own", later, 2)

	old, oldDir := n.add("old") // made by a davit-monitor that did not count
	old.rec.OOMOthers = nil
	n.must(os.RemoveAll(oldDir))
	count("an unknown number before it", old, 0)

	n.must(os.RemoveAll(n.pod))
	count("with the pod's cgroup gone", later, 2)

	v1, v1Dir := n.add("v1")
	v1.rec.Container.OOMEvents = filepath.Join(v1Dir, "memory.oom_control")
	n.kills(n.pod, 9)
	count("on cgroup v1", v1, 0)
}
