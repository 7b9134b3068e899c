package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// Every pair of state and event, also of those that the tables leave out.
func TestTransitions(t *testing.T) {
	states := []State{Preparing, Ready, NotReady, Created, Running, Exited, Unknown}
	events := []event{made, stopped, started, startFailed, died, lost}
	type pair struct {
		State
		event
	}
	check := func(table map[State]map[event]State, want map[pair]State) {
		t.Helper()
		for _, s := range states {
			for _, e := range events {
				got := s
				err := enter(table, &got, e, "it")
				to, ok := want[pair{s, e}]
				if ok != (err == nil) || ok && got != to || !ok && got != s {
					t.Errorf("%s + %s: got %s, %v; want %q", s, e, got, err, to)
				}
			}
		}
	}
	check(podStates, map[pair]State{
		{Preparing, made}:   Ready,
		{Preparing, lost}:   NotReady,
		{Ready, stopped}:    NotReady,
		{Ready, lost}:       NotReady,
		{NotReady, stopped}: NotReady,
		{NotReady, lost}:    NotReady,
	})
	check(containerStates, map[pair]State{
		{Preparing, made}:      Created, // no other: an exit waits until it is made
		{Created, started}:     Running,
		{Created, startFailed}: Exited,
		{Created, died}:        Exited,
		{Created, lost}:        Exited,
		{Running, died}:        Exited,
		{Running, lost}:        Exited,
		{Exited, started}:      Exited, // the exit was heard of first
		{Exited, startFailed}:  Exited, // not {Exited, died}: a second exit would rewrite history
		{Unknown, died}:        Exited,
		{Unknown, lost}:        Exited,
	})
}

func TestStartFails(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	n.set(func() { n.fail["Processes.Start"] = fault.New(fault.Unknown, "", "exec: no such file: nope") })
	err = d.StartContainer(t.Context(), id)
	wantKind(t, err, fault.Unknown)
	c, _ := d.Container(id)
	if c.State != Exited || c.Reason != "StartError" || c.ExitCode != 128 || c.FinishedAt.IsZero() || !strings.Contains(c.Message, "nope") {
		t.Errorf("%+v", c)
	}
	if len(n.procs) != 0 {
		t.Errorf("process left: %v", n.procs)
	}
	wantKind(t, d.StartContainer(t.Context(), id), fault.Precondition)
	must(t, d.RemoveContainer(t.Context(), id))
	n.set(func() { delete(n.fail, "Processes.Start") })
	again, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	must(t, d.StartContainer(t.Context(), again))
}

// A start that fails, and whose process cannot be removed at first, ends in time.
func TestStartFailsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, err := d.Run(t.Context(), podConfig("web", private), "")
		must(t, err)
		id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
		must(t, err)
		n.set(func() { n.fail["Processes.Start"], n.fail["Processes.Remove"] = errInjected, errors.New("no answer") })
		if err := d.StartContainer(t.Context(), id); err == nil || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("%v", err)
		}
		if c, _ := d.Container(id); c.State != Created {
			t.Errorf("%+v", c)
		}
		time.Sleep(time.Minute)
		n.set(func() { clear(n.fail) })
		time.Sleep(2 * time.Minute)
		if c, _ := d.Container(id); c.State != Exited || c.Reason != "StartError" {
			t.Errorf("%+v", c)
		}
		must(t, d.Remove(t.Context(), podID))
		d.stop()
		n.clean()
	})
}

// Creating fails: nothing is left, and the name is free.
func TestCreateFails(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	before := n.left()
	n.set(func() { n.fail["Processes.Create"] = fault.New(fault.Unknown, "", "executable not found") })
	_, err = d.CreateContainer(t.Context(), podID, containerConfig("main"))
	wantKind(t, err, fault.Unknown)
	absent := containerConfig("main")
	absent.Image.Image = "absent"
	_, err = d.CreateContainer(t.Context(), podID, absent)
	wantKind(t, err, fault.NotFound)
	odd := containerConfig("main")
	odd.StopSignal = 9999
	_, err = d.CreateContainer(t.Context(), podID, odd)
	wantKind(t, err, fault.Invalid)
	_, err = d.CreateContainer(t.Context(), "absent", containerConfig("main"))
	wantKind(t, err, fault.NotFound)
	_, err = d.Run(t.Context(), podConfig("other", private), "unknown")
	wantKind(t, err, fault.Invalid)
	if after := n.left(); strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("had %v\nhave %v", before, after)
	}
	if ids := subdirectories(filepath.Join(n.root, "containers")); len(ids) > 0 {
		t.Errorf("left: %v", ids)
	}
}

func TestOutOfMemory(t *testing.T) {
	const begin = "killed by the kernel for want of memory: "
	for _, c := range []struct {
		limit int64
		exit  monitor.Exit
		want  string
	}{
		{0, monitor.Exit{}, "the container has no limit of its own"}, // of a davit-monitor that does not tell
		{5, monitor.Exit{Signal: 9}, "the container's own limit is 5 bytes; the victim was the container's first process"},
		{5, monitor.Exit{OOM: &monitor.OOM{Scope: monitor.OOMOfContainer, Limit: 5, Peak: 5, Victim: "tail", VictimPid: 7}},
			"the container has hit its limit of 5 bytes; the container has used at most 5 bytes; the victim was tail (PID 7)"},
		{0, monitor.Exit{OOM: &monitor.OOM{Scope: monitor.OOMOfPod, Cgroup: "/pods/p", Limit: 9, Peak: 8}},
			"the pod has hit its limit of 9 bytes (control group /pods/p); the container has no limit of its own; the pod has used at most 8 bytes"},
		{5, monitor.Exit{OOM: &monitor.OOM{Scope: monitor.OOMAbove, Cgroup: "/pods", Limit: 9}},
			"what the pod is in has hit its limit of 9 bytes (control group /pods); the container's own limit is 5 bytes"},
		{5, monitor.Exit{OOM: &monitor.OOM{Scope: monitor.OOMOfNode, Limit: 99, Peak: 4, Victim: "a\xff", VictimPid: 7}},
			"the node had no memory left, of 99 bytes; the container's own limit is 5 bytes; the container has used at most 4 bytes; the victim was a? (PID 7)"},
	} {
		if got := outOfMemory(c.limit, c.exit); got != begin+c.want {
			t.Errorf("%+v:\n%s\n%s", c.exit, got, begin+c.want)
		}
	}
}

func TestExitReasons(t *testing.T) {
	for _, c := range []struct {
		name   string
		exit   monitor.Exit
		killed bool
		reason string
	}{
		{"zero", monitor.Exit{Code: 0}, false, "Completed"},
		{"one", monitor.Exit{Code: 1}, false, "Error"},
		{"killed by somebody", monitor.Exit{Code: 137, Signal: 9}, false, "Error"},
		{"out of memory", monitor.Exit{Code: 137, Signal: 9, OOMKilled: true}, false, "OOMKilled"},
		{"davit's kill", monitor.Exit{Code: 137, Signal: 9, OOMKilled: true}, true, "Error"},
		{"a child was out of memory", monitor.Exit{Code: 143, Signal: 15, OOMKilled: true}, false, "Error"},
		{"zero after a child was", monitor.Exit{Code: 0, OOMKilled: true}, false, "Completed"},
	} {
		s := &containerState{}
		s.State, s.Killed = Running, c.killed
		must(t, s.exit(c.exit))
		if s.Reason != c.reason || s.ExitCode != c.exit.Code {
			t.Errorf("%s: %s %d", c.name, s.Reason, s.ExitCode)
		}
		if (s.Message != "") != (c.reason == "OOMKilled") {
			t.Errorf("%s: says %q", c.name, s.Message)
		}
	}
}

// The exit comes while the container is made, or before its start is known.
func TestExitEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d := n.open()
		podID, err := d.Run(t.Context(), podConfig("web", private), "")
		must(t, err)
		create := make(chan struct{})
		n.set(func() { n.deaf["Processes.Create"] = create })
		time.AfterFunc(time.Second, func() {
			d.exited(monitor.Exit{ID: d.containersOf(podID)[0].id, Code: 3, At: time.Now()})
			close(create)
		})
		id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
		must(t, err)
		c, _ := d.Container(id)
		if c.State != Exited || c.ExitCode != 3 {
			t.Errorf("%+v", c)
		}

		id, err = d.CreateContainer(t.Context(), podID, containerConfig("second"))
		must(t, err)
		hang := make(chan struct{})
		n.set(func() { n.deaf["Processes.Start"] = hang })
		time.AfterFunc(time.Second, func() {
			n.set(func() { n.procs[id].Started = true })
			n.die(id, 0)
			close(hang)
		})
		must(t, d.StartContainer(t.Context(), id))
		c, _ = d.Container(id)
		if c.State != Exited || c.ExitCode != 0 || c.Reason != "Completed" || c.StartedAt.IsZero() {
			t.Errorf("%+v", c)
		}
	})
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	config := containerConfig("main")
	config.Linux = &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{
		CpuQuota: 1000, CpuPeriod: 100000, CpuShares: 2, MemoryLimitInBytes: 1 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}},
	}}
	id, err := d.CreateContainer(t.Context(), podID, config)
	must(t, err)
	if cpu := n.spec.Linux.Resources.CPU; cpu.Quota != nil || cpu.Shares != nil {
		t.Error("the spec has a CPU quota or shares")
	}
	must(t, d.StartContainer(t.Context(), id))
	if len(n.limits) != 1 || n.limits[0].CpuQuota != 1000 || n.limits[0].CpuShares != 2 {
		t.Errorf("limits at start: %v", n.limits)
	}
	change := &runtimeapi.LinuxContainerResources{
		CpuQuota: 2000, Unified: map[string]string{"memory.high": "max"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2}, {PageSize: "1GB", Limit: 3}},
	}
	must(t, d.UpdateContainer(t.Context(), id, change))
	want := &runtimeapi.LinuxContainerResources{
		CpuQuota: 2000, CpuPeriod: 100000, CpuShares: 2, MemoryLimitInBytes: 1 << 20,
		Unified: change.Unified, HugepageLimits: change.HugepageLimits,
	}
	c, _ := d.Container(id)
	if !proto.Equal(c.Resources, want) {
		t.Errorf("%v", c.Resources)
	}
	n.set(func() { n.fail["Cgroups.Limit"] = errInjected })
	if d.UpdateContainer(t.Context(), id, &runtimeapi.LinuxContainerResources{CpuQuota: 1}) == nil {
		t.Error("no error")
	}
	d.stop()
	n.set(func() { delete(n.fail, "Cgroups.Limit") })
	d = n.open()
	c, _ = d.Container(id)
	if !proto.Equal(c.Resources, want) {
		t.Errorf("after a restart: %v", c.Resources)
	}
	must(t, d.StopContainer(t.Context(), id, 0))
	wantKind(t, d.UpdateContainer(t.Context(), id, change), fault.Precondition)
}

// What is not asked for and yet in force, or not in force as asked.
func TestInForce(t *testing.T) {
	n := newNode(t)
	opt := n.options()
	opt.Host.MinOOMScoreAdj = -500
	p, err := Open(t.Context(), opt)
	must(t, err)
	defer p.Close()
	got := p.inForce(&runtimeapi.LinuxContainerResources{OomScoreAdj: -997, CpuQuota: 5000})
	if want := (&runtimeapi.LinuxContainerResources{OomScoreAdj: -500, CpuQuota: 5000, CpuPeriod: 100000}); !proto.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// limited returns a node whose one container has been given 100 bytes.
func limited(t *testing.T) (n *node, d *daemon, id string) {
	n = newNode(t)
	d = n.open()
	_, id = n.run(d, "web", private)
	must(t, d.UpdateContainer(t.Context(), id, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100, OomScoreAdj: 1}))
	synctest.Wait()
	return n, d, id
}

var double = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200, OomScoreAdj: 2}

// agrees requires that what davit says is in force is, wholly, and returns it.
func (n *node) agrees(d *daemon, id string) int64 {
	n.t.Helper()
	c, err := d.Container(id)
	must(n.t, err)
	n.mu.Lock()
	defer n.mu.Unlock()
	said, score := c.Resources.MemoryLimitInBytes, c.Resources.OomScoreAdj
	if said != n.memory[id] || score != n.score[id] || said != 100*score {
		n.t.Errorf("said to be %d and %d, is %d and %d", said, score, n.memory[id], n.score[id])
	}
	return said
}

// Each call and each save of an update fails once: all is as it was, or as it
// is to be, and so it is after a restart.
func TestUpdateFails(t *testing.T) {
	for _, after := range []bool{false, true} {
		for failAt := 1; ; failAt++ {
			past := false
			t.Run(fmt.Sprintf("after=%v/%d", after, failAt), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n, d, id := limited(t)
					before := len(n.names())
					n.set(func() { n.failAt, n.after = before+failAt, after })
					err := d.UpdateContainer(t.Context(), id, double)
					past = len(n.names()) < before+failAt
					time.Sleep(time.Minute) // for retries in the background
					if got := n.agrees(d, id); (got == 200) != (err == nil) {
						t.Errorf("%d after %v", got, err)
					}
					d.stop()
					n.set(func() { n.failAt = 0 })
					d = n.open()
					if got := n.agrees(d, id); (got == 200) != (err == nil) {
						t.Errorf("%d after %v and a restart", got, err)
					}
				})
			})
			if past || t.Failed() {
				break
			}
		}
	}
}

// davitd dies in an update: the next one takes it back, also before it starts the container.
func TestUpdateCutShort(t *testing.T) {
	for _, at := range []string{"Cgroups.Current", "Cgroups.Limit", "Cgroups.Rescore"} {
		synctest.Test(t, func(t *testing.T) {
			n, d, id := limited(t)
			hang := make(chan struct{})
			n.set(func() { n.deaf[at] = hang })
			updated := make(chan error, 1)
			go func() { updated <- d.UpdateContainer(t.Context(), id, double) }()
			synctest.Wait()
			then := n.copy()
			next := then.open()
			if got := then.agrees(next, id); got != 100 {
				t.Errorf("%s: %d", at, got)
			}
			next.stop()
			close(hang)
			must(t, <-updated)
			if got := n.agrees(d, id); got != 200 {
				t.Errorf("%s: %d", at, got)
			}
		})
	}
}

// No room for the record: nothing is applied.
func TestUpdateOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, d, id := limited(t)
		n.set(func() { n.fail["save"] = syscall.ENOSPC })
		wantKind(t, d.UpdateContainer(t.Context(), id, double), fault.Exhausted)
		if got := n.agrees(d, id); got != 100 {
			t.Errorf("%d", got)
		}
	})
}

func TestUpdatePod(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	must(t, d.UpdatePod(t.Context(), podID[:9], &runtimeapi.LinuxContainerResources{CpuShares: 5}, &runtimeapi.LinuxContainerResources{CpuShares: 6}))
	must(t, d.UpdatePod(t.Context(), podID, nil, &runtimeapi.LinuxContainerResources{CpuShares: 7}))
	for range 2 {
		s, err := d.Pod(podID)
		must(t, err)
		if l := s.Config.Linux; l.Overhead.CpuShares != 5 || l.Resources.CpuShares != 7 || l.CgroupParent != "/kubepods/pod1" {
			t.Errorf("%v", l)
		}
		d.stop()
		d = n.open()
	}
	if len(n.limits) > 0 {
		t.Errorf("limited: %v", n.limits)
	}
	must(t, d.Stop(t.Context(), podID))
	must(t, d.UpdatePod(t.Context(), podID, nil, nil))
	must(t, d.Remove(t.Context(), podID))
	wantKind(t, d.UpdatePod(t.Context(), podID, nil, nil), fault.NotFound)
}

func TestOnlyRunning(t *testing.T) {
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	_, err = d.Exec(t.Context(), id, nil, 0)
	wantKind(t, err, fault.Precondition)
	wantKind(t, d.ReopenLog(t.Context(), id), fault.Precondition)
	wantKind(t, d.ReopenLog(t.Context(), "absent"), fault.NotFound)
	wantKind(t, d.StartContainer(t.Context(), "absent"), fault.NotFound)
	var out strings.Builder
	_, err = d.ExecStream(t.Context(), id, []string{"a"}, monitor.Stream{Stdout: &out})
	wantKind(t, err, fault.Precondition)
	_, err = d.ExecStream(t.Context(), "absent", []string{"a"}, monitor.Stream{Stdout: &out})
	wantKind(t, err, fault.NotFound)
	wantKind(t, d.Attach(t.Context(), id, monitor.Stream{Stdout: &out}), fault.Precondition)
	wantKind(t, d.Attach(t.Context(), "absent", monitor.Stream{Stdout: &out}), fault.NotFound)
	must(t, d.StartContainer(t.Context(), id))
	if code, err := d.ExecStream(t.Context(), id[:9], []string{"a"}, monitor.Stream{Stdout: &out}); code != 3 || err != nil || out.String() != "out" || n.exec.ContainerID != id {
		t.Errorf("%d %v %q %+v", code, err, out.String(), n.exec)
	}
	n.exec = monitor.Exec{}
	if err := d.Attach(t.Context(), id[:9], monitor.Stream{Stdout: &out}); err != nil || n.exec.ContainerID != id {
		t.Errorf("%v %+v", err, n.exec)
	}
	_, err = d.Exec(t.Context(), id[:9], []string{"a"}, time.Second)
	must(t, err)
	if e := n.exec; e.MaxBytes >= 16<<20 || e.MaxBytes == 0 || e.ContainerID != id || e.Timeout != time.Second {
		t.Errorf("%+v", e)
	}
}

// What the spec is made from, and what is written.
func TestSpec(t *testing.T) {
	n := newNode(t)
	n.image.StopSignal = "SIGQUIT"
	d := n.open()
	config := podConfig("web", shared)
	config.LogDirectory = filepath.Join(t.TempDir(), "logs")
	podID, err := d.Run(t.Context(), config, "")
	must(t, err)
	cc := containerConfig("main")
	cc.LogPath = "main/0.log"
	id, err := d.CreateContainer(t.Context(), podID, cc)
	must(t, err)
	ns := n.input.Namespaces
	dir := filepath.Join(n.state, "pods", podID)
	if ns.Net != dir+"/net" || ns.IPC != dir+"/ipc" || ns.UTS != dir+"/uts" || ns.PID != dir+"/pid" || n.input.Files.Shm != dir+"/shm" {
		t.Errorf("%+v", n.input)
	}
	c, _ := d.Container(id)
	if c.StopSignal != "SIGQUIT" || c.User.UID != 7 || c.LogPath != config.LogDirectory+"/main/0.log" {
		t.Errorf("%+v", c)
	}
	if resolv, _ := os.ReadFile(n.input.Files.ResolvConf); string(resolv) != "search a.b c\nnameserver 10.0.0.10\noptions ndots:5\n" {
		t.Errorf("%q", resolv)
	}
	if hostname, _ := os.ReadFile(n.input.Files.Hostname); string(hostname) != "web\n" {
		t.Errorf("%q", hostname)
	}
	var spec specs.Spec
	data, err := os.ReadFile(filepath.Join(n.state, "containers", id, "config.json"))
	must(t, err)
	must(t, json.Unmarshal(data, &spec))
	if group, set := spec.Annotations["run.oci.systemd.subgroup"]; spec.Annotations["seccomp"] != "ready" || !set || group != "" {
		t.Errorf("%s", data)
	}
	cc = containerConfig("escapes")
	cc.LogPath = "../../etc/passwd"
	_, err = d.CreateContainer(t.Context(), podID, cc)
	wantKind(t, err, fault.Invalid)

	// A container that joins another's processes.
	cc = containerConfig("debug")
	cc.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id},
	}}
	_, err = d.CreateContainer(t.Context(), podID, cc)
	must(t, err)
	if n.input.Namespaces.PID != "/proc/102/ns/pid" {
		t.Errorf("%+v", n.input.Namespaces)
	}

	// The host's namespaces.
	host := runtimeapi.NamespaceMode_NODE
	config = podConfig("host", host)
	config.Hostname = ""
	config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: host, Ipc: host, Pid: host}
	podID, err = d.Run(t.Context(), config, "")
	must(t, err)
	s, _ := d.Pod(podID)
	if len(s.Paths) > 0 || strings.Join(s.Held, " ") != "directory" {
		t.Errorf("%+v", s)
	}
	_, err = d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	if got := n.input.Container.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid(); got != host || n.input.Files.Shm != "/dev/shm" {
		t.Errorf("%+v", n.input)
	}
}
