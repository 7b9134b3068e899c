package stats

import (
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// views shows what it is made of.
type views struct {
	pods       []*pod.Snapshot
	containers []*pod.ContainerSnapshot
}

func (v *views) List() []*pod.Snapshot { return v.pods }
func (v *views) Live() []*pod.ContainerSnapshot {
	return slices.DeleteFunc(slices.Clone(v.containers), func(c *pod.ContainerSnapshot) bool { return !active(c) })
}

func (v *views) pod(id, parent string) *pod.Snapshot {
	p := &pod.Snapshot{ID: id, State: pod.Ready, CreatedAt: time.Now(), Config: &runtimeapi.PodSandboxConfig{
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent},
	}}
	v.pods = append(v.pods, p)
	return p
}

func (v *views) container(id, podID string, state pod.State) *pod.ContainerSnapshot {
	c := &pod.ContainerSnapshot{ID: id, PodID: podID, State: state, CreatedAt: time.Now(), Config: &runtimeapi.ContainerConfig{}}
	v.containers = append(v.containers, c)
	return c
}

// layers says the same of each.
type layers struct{}

func (layers) WritableUsage(string) (image.Usage, error) { return image.Usage{Mountpoint: "/"}, nil }
func (layers) WritableUsages() image.Usage               { return image.Usage{} }

func TestNanoCores(t *testing.T) {
	r := New(&views{}, nil, layers{})
	begun := time.Now()
	for _, ask := range []struct {
		after time.Duration
		used  time.Duration
		want  uint64
	}{
		{2 * time.Second, time.Second, 5e8},             // the first time: since it began
		{2500 * time.Millisecond, 2 * time.Second, 8e8}, // too soon for a window
		{4 * time.Second, 5 * time.Second, 2e9},         // 4 s in 2 s
		{4500 * time.Millisecond, 9 * time.Second, 2e9}, // too soon: what it was
		{14 * time.Second, 5 * time.Second, 0},          // nothing since
		{16 * time.Second, 4 * time.Second, 25e7},       // less than before: another cgroup
		{18 * time.Second, 6 * time.Second, 1e9},
	} {
		reading := cgroup.Reading{At: begun.Add(ask.after), CPU: cgroup.CPU{UsageNanos: uint64(ask.used), Known: true}}
		if got := r.nanoCores("c", reading, begun); got != ask.want {
			t.Errorf("after %s: %d, want %d", ask.after, got, ask.want)
		}
	}
	if got := perSecond(5, 0); got != 0 {
		t.Errorf("in no time: %d", got)
	}
}

// What has ended leaves nothing behind.
func TestPrune(t *testing.T) {
	v := &views{}
	v.container("runs", "p", pod.Running)
	v.container("exited", "p", pod.Exited)
	v.pod("p", "")
	r := New(v, nil, layers{})
	for _, id := range []string{"runs", "exited", "gone", "p"} {
		r.nanoCores(id, cgroup.Reading{At: time.Now()}, time.Now())
	}
	r.prune()
	if len(r.windows) != 2 || r.windows["runs"].at.IsZero() || r.windows["p"].at.IsZero() {
		t.Errorf("%v is left", r.windows)
	}
}

func TestOwnParents(t *testing.T) {
	v := &views{}
	v.pod("a", "/kubepods/poda")
	v.pod("b", "/shared")
	v.pod("c", "shared/")
	v.pod("d", "")
	v.pod("e", "/kubepods/pode").State = pod.NotReady
	v.pod("f", "/kubepods/pode")
	got := New(v, nil, layers{}).parents()
	for id, want := range map[string]bool{"a": true, "b": false, "c": false, "d": false, "f": true} {
		if got.own(id) != want {
			t.Errorf("pod %s has a parent of its own: %v", id, !want)
		}
	}
}

// Pods and containers in cgroups of this machine, one of which goes in between.
func TestReadPods(t *testing.T) {
	testkit.Root(t)
	host, err := cgroup.Probe(nil)
	if err != nil {
		t.Fatal(err)
	}
	if host, err = host.WithDriver(cgroup.Cgroupfs); err != nil {
		t.Fatal(err)
	}
	v := &views{}
	v.pod("own", "/davit-stats-test/own")
	v.pod("one", "/davit-stats-test/shared")
	v.pod("two", "/davit-stats-test/shared")
	v.pod("over", "").State = pod.NotReady
	parents := map[string]string{}
	for _, p := range v.pods {
		parents[p.ID] = p.Config.Linux.CgroupParent
	}
	make := func(id, podID string) *pod.ContainerSnapshot {
		place := host.Place(parents[podID], id)
		if err := host.Create(t.Context(), place); err != nil {
			t.Fatal(err)
		}
		return v.container(id, podID, pod.Running)
	}
	t.Cleanup(func() {
		top := host.Place("/", "davit-stats-test")
		for _, id := range []string{"own", "shared"} {
			for _, c := range []string{"c1", "c2", "c3"} {
				if err := host.Remove(t.Context(), host.Place("/davit-stats-test/"+id, c)); err != nil {
					t.Error(err)
				}
			}
			if err := host.Remove(t.Context(), host.Place("/davit-stats-test", id)); err != nil {
				t.Error(err)
			}
		}
		for i, d := range host.Above(host.Place("/davit-stats-test", "x")).Dirs {
			_ = os.Remove(d)
			top.Dirs[i] = d
		}
		for _, d := range top.Dirs {
			if _, err := os.Stat(d); err == nil {
				t.Errorf("%s is left", d)
			}
		}
	})
	make("c1", "own")
	make("c2", "one")
	make("c3", "two")
	v.container("gone", "two", pod.Running) // without a cgroup, as one that has just exited
	v.container("exited", "two", pod.Exited)
	r := New(v, host, layers{})
	pods, err := r.Details()
	if err != nil || len(pods) != 3 {
		t.Fatalf("%v, %v", pods, err)
	}
	for i, id := range []string{"own", "one", "two"} {
		p := pods[i]
		if p.ID != id || len(p.Containers) != 1 || !p.CPU.Known || p.At.IsZero() ||
			!p.Memory.Known && host.Layout() != cgroup.V2 { // whose controllers nobody enabled here
			t.Errorf("pod %s: %+v", id, p)
			continue
		}
		if psi := p.Containers[0].Pressure.CPU != nil; psi && (p.Pressure.CPU != nil) != (id == "own") {
			t.Errorf("pod %s: pressure %+v", id, p.Pressure)
		}
		if c := p.Containers[0]; c.Detail == nil || c.Detail.Disk.Bytes == 0 || c.Cgroup != parents[id]+"/"+c.ID {
			t.Errorf("container %s: %+v", c.ID, c)
		}
	}
	all := r.Containers(v.containers)
	if len(all) != 4 || all[3].ID != "exited" || !all[3].At.IsZero() || all[3].Layer.At.IsZero() {
		t.Errorf("listed %v", all)
	}
	if _, err := r.Container(v.containers[3]); err == nil {
		t.Error("a container that is gone has figures")
	}
	if got, err := r.Pods(nil); err != nil || len(got) != 0 {
		t.Errorf("no pods: %v, %v", got, err)
	}
}

func TestDefaultFirst(t *testing.T) {
	all := []namespace.Interface{{Name: "tunl0"}, {Name: "net1"}, {Name: "eth0"}}
	if got := defaultFirst(all, ""); got[0].Name != "eth0" || len(got) != 3 {
		t.Errorf("%v", got)
	}
	if got := defaultFirst(nil, "eth0"); got != nil {
		t.Errorf("%v", got)
	}
}

// This very process, whose descriptors and threads are known.
func TestLookAt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	runtime.LockOSThread() // at least two threads
	defer runtime.UnlockOSThread()
	p := lookAt("/proc", []int{os.Getpid(), 1 << 30}, os.Getpid())
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if n := uint64(len(entries)); p.Descriptors+3 < n || p.Descriptors > n+3 || p.Sockets == 0 || p.Sockets > p.Descriptors {
		t.Errorf("%d descriptors, %d sockets; there are %d", p.Descriptors, p.Sockets, n)
	}
	if p.threads < 2 || p.States[Running] == 0 || p.Count != 2 || !p.OpenFiles.Known || !p.Looked {
		t.Errorf("%+v", p)
	}
}

func TestParseProcesses(t *testing.T) {
	const stat = "7 (a) R 2 (b) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 12 0 500 1000 20 18446744073709551615\n"
	if state, threads, ok := parseStat([]byte(stat)); state != 'S' || threads != 12 || !ok {
		t.Errorf("state %c, %d threads, %v", state, threads, ok)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) R 1", strings.Replace(stat, " 12 ", " x ", 1)} {
		if _, _, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q is taken", bad)
		}
	}
	const limits = "Limit                     Soft Limit           Hard Limit           Units     \nMax cpu time              unlimited            unlimited            seconds   \nMax open files            1024                 1048576              files     \n"
	if n := softOpenFiles([]byte(limits)); n != (cgroup.Count{N: 1024, Known: true}) {
		t.Errorf("open files %+v", n)
	}
	for _, bad := range []string{"", "Max open files", "Max open files  unlimited  unlimited files"} {
		if n := softOpenFiles([]byte(bad)); n.Known {
			t.Errorf("%q is %+v", bad, n)
		}
	}
}

func FuzzProcesses(f *testing.F) {
	f.Add([]byte("7 (a) R 2 (b) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 12 0 500\n"))
	f.Add([]byte("Max open files            1024                 1048576              files\n"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		parseStat(text)
		softOpenFiles(text)
	})
}
