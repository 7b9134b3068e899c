package server_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

func TestExec(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.container(runtime, "sleep", "1000")
		_, err := n.Create(n.ctx(), c)
		must(t, err)
		_, err = n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"true"}})
		wantKind(t, err, fault.Precondition)
		must(t, n.Start(n.ctx(), c.ID))
		sh := func(script string, timeout time.Duration, limit int) (monitor.ExecResult, time.Duration, error) {
			t.Helper()
			begin := time.Now()
			r, err := n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"sh", "-c", script}, Timeout: timeout, MaxBytes: limit})
			return r, time.Since(begin), err
		}
		r, _, err := sh("echo out; echo err >&2; exit 3", 0, 0)
		must(t, err)
		if r.Code != 3 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" {
			t.Errorf("%d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		r, _, err = sh("seq 1 200000; echo done >&2", 0, 1000)
		must(t, err)
		if len(r.Stdout)+len(r.Stderr) != 1000 || r.Code != 0 {
			t.Errorf("%d bytes, code %d", len(r.Stdout)+len(r.Stderr), r.Code)
		}
		r, took, err := sh("sleep "+nap+" & echo started", 0, 0)
		must(t, err)
		if string(r.Stdout) != "started\n" || took > patience {
			t.Errorf("%q after %s", r.Stdout, took)
		}
		tree := strings.ReplaceAll("(sleep NAP6 & setsid sleep NAP7 & (setsid sleep NAP9 </dev/null >/dev/null 2>&1 &) ; sleep NAP8)", "NAP", nap)
		_, took, err = sh(tree, 300*time.Millisecond, 0)
		wantKind(t, err, fault.Deadline)
		if took > patience {
			t.Errorf("after %s", took)
		}
		for _, last := range []string{"6", "7", "8", "9"} {
			if running("sleep\x00" + nap + last) {
				t.Errorf("sleep %s%s runs on", nap, last)
			}
		}
		_, took, err = sh("(while :; do echo x; done) & exit 0", 500*time.Millisecond, 0)
		wantKind(t, err, fault.Deadline)
		t.Log(took, err)
		_, err = n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"nosuchprogram"}})
		wantKind(t, err, fault.Invalid)
		t.Log(err)
		n.killOnce(c.ID, "sleep\x00"+nap+"0")
		_, _, err = sh("exec sleep "+nap+"0", 0, 0)
		wantKind(t, err, fault.Unavailable)
		n.exit(c.ID)
		n.remove(c.ID)
	})
}

func TestReopenUnderLoad(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sh", "-c", "seq 1 1000000")
	n.run(c)
	var files []string
	for i := range 50 {
		rotated := fmt.Sprintf("%s.%03d", c.LogPath, i)
		must(t, os.Rename(c.LogPath, rotated))
		if err := n.ReopenLog(n.ctx(), c.ID); err != nil {
			wantKind(t, err, fault.Precondition) // it has ended
			must(t, os.Rename(rotated, c.LogPath))
			break
		}
		files = append(files, rotated)
		if i%10 == 3 {
			n.killMonitor()
		}
	}
	n.exit(c.ID)
	var got []string
	for _, f := range append(files, c.LogPath) {
		got = append(got, lines(t, f)["stdout"]...)
	}
	t.Logf("%d files", len(files)+1)
	want := make([]string, 1000000)
	for i := range want {
		want[i] = fmt.Sprint(i + 1)
	}
	compare(t, "stdout", got, want)
	n.remove(c.ID)
}

func TestOOM(t *testing.T) {
	n := newNode(t)
	const controller = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(controller); err != nil {
		t.Fatal("this test needs cgroup v1's memory controller")
	}
	for _, davitKills := range []bool{false, true} {
		c := n.container("crun", "sh", "-c", "tail /dev/zero")
		if davitKills {
			c = n.container("crun", "sleep", "1000")
		}
		s := spec(n.rootfs, c.ID, []string{"tail", "/dev/zero"})
		if davitKills {
			s.Process.Args = []string{"sleep", "1000"}
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/zero", Source: "/dev/zero", Type: "bind", Options: []string{"bind"}})
		limit := int64(16 << 20)
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		n.writeSpec(c, s)
		c.OOMEvents = controller + "/" + cgroups + "/" + c.ID + "/memory.oom_control"
		n.run(c)
		if davitKills {
			must(t, n.Signal(n.ctx(), c.ID, 9))
		}
		if exit := n.exit(c.ID); exit.Code != 137 || exit.OOMKilled == davitKills {
			t.Errorf("davit kills: %t: exit %+v", davitKills, exit)
		}
		n.remove(c.ID)
	}
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	runtimes(t, func(t *testing.T, runtime string) {
		c := n.container(runtime, "sleep", "1000")
		n.run(c)
		shares := uint64(512)
		must(t, n.Update(n.ctx(), c.ID, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}))
		got, err := os.ReadFile("/sys/fs/cgroup/cpu/" + cgroups + "/" + c.ID + "/cpu.shares")
		if err != nil || strings.TrimSpace(string(got)) != "512" {
			t.Errorf("cpu.shares %q %v", got, err)
		}
		n.remove(c.ID)
	})
}

// The score that protects davit does not come down to containers.
func TestOOMScore(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "sleep", "1000")
	n.run(c)
	r, err := n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"}})
	must(t, err)
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	must(t, err)
	if string(r.Stdout) != string(own)+string(own) {
		t.Errorf("%q, want %q twice", r.Stdout, own)
	}
	n.remove(c.ID)
}
