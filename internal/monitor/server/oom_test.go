package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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

func TestParseKill(t *testing.T) {
	const head = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0"
	for text, want := range map[string]*kill{
		head + ",oom_memcg=/p,task_memcg=/p/c1,task=tail,pid= 7042,uid=    0":                                                        {"/p", "/p/c1", "tail", 7042},
		"oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/p/c1,task=a,pid=9,uid=0": {"", "/p/c1", "a", 9},
		head + ",oom_memcg=/p,task_memcg=/p/c1,task=a,pid=1,b,pid=9,uid=0":                                                           {"/p", "/p/c1", "a,pid=1,b", 9},
		"Memory cgroup out of memory: Killed process 7042 (tail) total-vm:99kB":                                                      nil,
		head: nil, "oom-kill:": nil, head + ",task=a,pid=x,uid=0": nil, head + ",task=a,pid=9": nil,
	} {
		got, ok := parseKill(text)
		if ok != (want != nil) || want != nil && got != *want {
			t.Errorf("%s: %+v, %v", text, got, ok)
		}
	}
}

func TestParseRecord(t *testing.T) {
	const text = "oom-kill:constraint=CONSTRAINT_NONE,global_oom,task_memcg=/p/c1,task=a,pid=9,uid=0\n SUBSYSTEM=memory\n"
	for head, want := range map[string]bool{"6,1,2,-;": true, "3,1,2,-,caller=T1;": true, "12,1,2,-;": false, ";": false, "": false} {
		if _, ok := parseRecord(head + text); ok != want {
			t.Errorf("%q: %v", head, ok)
		}
	}
}

func FuzzParseKill(f *testing.F) {
	f.Add("6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/p,task_memcg=/p/c1,task=tail,pid= 7042,uid=    0")
	f.Fuzz(func(t *testing.T, text string) {
		if k, ok := parseRecord(text); ok && k.pid <= 0 {
			t.Errorf("%+v", k)
		}
	})
}

// Whose limit it was, by the kernel's log and by the files of cgroups alone.
func TestOOMCause(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	set := func(dir string, values ...string) {
		noError(t, os.MkdirAll(dir, 0o700))
		for i := 0; i < len(values); i += 2 {
			noError(t, os.WriteFile(filepath.Join(dir, values[i]), []byte(values[i+1]+"\n"), 0o600))
		}
	}
	for _, version := range []string{memoryEvents, "memory.oom_control"} {
		top := t.TempDir()
		pod := filepath.Join(top, "kubepods/podx")
		own := filepath.Join(pod, id)
		limit, peak := "memory.limit_in_bytes", "memory.max_usage_in_bytes"
		none := "9223372036854771712"
		if version == memoryEvents {
			limit, peak, none = "memory.max", "memory.peak", "max"
		}
		set(own, limit, "100", peak, "100")
		set(pod, limit, "200", peak, "150")
		set(filepath.Dir(pod), limit, none, peak, "300")
		s := &server{dir: t.TempDir()}
		c := s.newContainer(id)
		c.rec.Container = monitor.Container{ID: id, OOMEvents: filepath.Join(own, version)}
		in := "/machine/kubepods/podx" // davit-monitor's cgroup namespace has another root
		for _, k := range []struct {
			kill kill
			want monitor.OOM
		}{
			{kill{in + "/" + id, in + "/" + id, "a", 7}, monitor.OOM{Scope: monitor.OOMOfContainer, Limit: 100, Peak: 100}},
			{kill{in + "/" + id + "/sub", in + "/" + id + "/sub", "a", 7}, monitor.OOM{Scope: monitor.OOMOfContainer}},
			{kill{in, in + "/" + id + "/sub", "a", 7}, monitor.OOM{Scope: monitor.OOMOfPod, Cgroup: in, Limit: 200, Peak: 150}},
			{kill{filepath.Dir(in), in + "/" + id, "a", 7}, monitor.OOM{Scope: monitor.OOMAbove, Cgroup: filepath.Dir(in), Peak: 300}},
			{kill{"", in + "/" + id, "a", 7}, monitor.OOM{Scope: monitor.OOMOfNode, Limit: nodeMemory(), Peak: 100}},
		} {
			w := &oomWatch{s: s, kernel: kernelLog{tried: true, fd: -1, kills: []kill{k.kill, {of: "/another", victim: "b", pid: 8}}}}
			k.want.Victim, k.want.VictimPid = "a", 7
			if got := w.oomCause(c); *got != k.want {
				t.Errorf("%s, %+v: %+v", version, k.kill, got)
			}
		}
		w := &oomWatch{s: s}
		if version == memoryEvents {
			set(own, memoryEvents+".local", "oom 1")
		}
		if got := w.oomCause(c); got == nil || *got != (monitor.OOM{Scope: monitor.OOMOfContainer, Limit: 100, Peak: 100}) {
			t.Errorf("%s: by counters, %+v", version, got)
		}
		set(own, memoryEvents+".local", "oom 0", peak, "90")
		set(pod, memoryEvents+".local", "oom 2", peak, "200")
		if got := w.oomCause(c); got == nil || *got != (monitor.OOM{Scope: monitor.OOMOfPod, Limit: 200, Peak: 200}) {
			t.Errorf("%s: of the pod by counters, %+v", version, got)
		}
		set(pod, memoryEvents+".local", "oom 0", peak, "190")
		if got := w.oomCause(c); got != nil {
			t.Errorf("%s: nobody's by counters, %+v", version, got)
		}
	}
}

// The kernel's log as the kernel gives it can be read, and has an end.
func TestKernelLog(t *testing.T) {
	l := kernelLog{path: kmsg}
	if _, ok := l.find(strings.Repeat("nobody", 10)); ok {
		t.Error("a kill of nobody")
	}
	if l.fd >= 0 {
		noError(t, unix.Close(l.fd))
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
