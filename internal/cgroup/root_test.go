package cgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// realHost returns this machine's control groups.
func realHost(t testing.TB) *Host {
	testkit.Root(t)
	h, err := Probe(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if h, err = h.WithDriver(Cgroupfs); err != nil {
		t.Fatal(err)
	}
	return h
}

// v2Of returns the v2 tree of h alone, which on a hybrid host has no
// controllers, but can kill.
func v2Of(t *testing.T, h *Host) *Host {
	for _, one := range h.trees {
		if one.unified {
			return &Host{log: h.log, layout: V2, driver: Cgroupfs, trees: []tree{one}}
		}
	}
	t.Skip("no cgroup v2 on this machine")
	return nil
}

// testParent returns a parent for one test that is gone, checked, when it ends.
func testParent(t testing.TB, h *Host) string {
	parent := fmt.Sprintf("/davit-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		p := h.Place("/", filepath.Base(parent))
		for i, tree := range h.trees {
			p.Dirs[i] = filepath.Join(tree.mount, parent)
		}
		if err := h.Kill(ctx, p); err != nil {
			t.Error(err)
		}
		if err := h.Remove(ctx, p); err != nil {
			t.Error(err)
		}
		for _, d := range p.Dirs {
			if _, err := os.Stat(d); !os.IsNotExist(err) {
				t.Errorf("%s is left", d)
			}
		}
	})
	return parent
}

// limitable makes p's cgroup and, on v2, passes controllers on to it, as the
// kubelet does for its pods.
func limitable(t *testing.T, h *Host, p Place) {
	t.Helper()
	if err := h.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if h.layout == V2 {
		h.enable(h.trees[0].mount)
		h.enable(filepath.Dir(p.Dirs[0]))
	}
}

// join starts a shell script whose processes are in p.
func join(t *testing.T, h *Host, p Place, script string) *exec.Cmd {
	if err := h.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	ready, signal, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command("sh", "-c", "read go; exec sh -c '"+script+"'")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{signal}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	signal.Close()
	for _, d := range p.Dirs {
		if err := writeFile(d, "cgroup.procs", fmt.Sprint(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(stdin, "go")
	if _, err := ready.Read(make([]byte, 1)); err != nil { // the script says that its processes are up
		t.Fatal(err)
	}
	return cmd
}

func TestKillAndRemoveReal(t *testing.T) {
	h := realHost(t)
	t.Run("all", func(t *testing.T) { killAndRemove(t, h) })
	t.Run("v2", func(t *testing.T) { killAndRemove(t, v2Of(t, h)) })
	t.Run("no cgroup.kill", func(t *testing.T) {
		var v1 []tree
		for _, one := range h.trees {
			if !one.unified {
				v1 = append(v1, one)
			}
		}
		if len(v1) == 0 {
			t.Skip("no cgroup v1 on this machine")
		}
		killAndRemove(t, &Host{log: h.log, layout: V1, driver: Cgroupfs, trees: v1})
	})
}

func killAndRemove(t *testing.T, h *Host) {
	p := h.Place(testParent(t, h), "c1")
	// It forks without end, so that a list of its processes is always too old.
	cmd := join(t, h, p, "trap \"\" TERM HUP; (while :; do sleep 0.01 & done) & sleep 300 & echo >&3; wait")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	sub := filepath.Join(p.Dirs[0], "sub", "subsub") // made by the container itself
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if pids, err := processes(p.Dirs); err != nil || len(pids) < 3 {
		t.Fatalf("processes: %v, %v", pids, err)
	}
	if dir, ok := h.dirOf(p, "freezer"); ok && h.layout != V2 { // one frozen by the container
		inner := filepath.Join(dir, "paused")
		if err := os.MkdirAll(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(inner, "cgroup.procs", fmt.Sprint(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(inner, "freezer.state", "FROZEN"); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Remove(short, p); fault.KindOf(err) != fault.Deadline {
		t.Fatalf("removing a busy cgroup: %v", err)
	}
	long, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := h.Kill(long, p); err != nil {
		t.Fatal(err)
	}
	<-ended
	if pids, err := processes(p.Dirs); err != nil || len(pids) != 0 {
		t.Fatalf("left: %v, %v", pids, err)
	}
	for range 2 {
		if err := h.Remove(long, p); err != nil {
			t.Fatal(err)
		}
		if err := h.Kill(long, p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitReal(t *testing.T) {
	h := realHost(t)
	p := h.Place(testParent(t, h), "c1")
	limitable(t, h, p)
	for _, r := range []*runtimeapi.LinuxContainerResources{
		{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20},
		{MemoryLimitInBytes: 32 << 20},
		{MemoryLimitInBytes: 128 << 20},
		{CpuQuota: -1},
		{MemoryLimitInBytes: 256 << 20, MemorySwapLimitInBytes: 512 << 20},
		{MemoryLimitInBytes: -1},
		{CpusetCpus: "0", CpusetMems: "0"},
		{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}},
		{},
	} {
		if err := h.Limit(t.Context(), p, r); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
	}
	// The last field is refused: all that were applied are put back.
	full := &runtimeapi.LinuxContainerResources{
		CpuShares: 700, CpuQuota: 30000, CpuPeriod: 50000, MemoryLimitInBytes: 48 << 20, MemorySwapLimitInBytes: 50 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}, CpusetMems: "0", CpusetCpus: "0",
	}
	before, err := h.Current(p, full)
	if err != nil || len(before) < 6 {
		t.Fatalf("%v, %v", before, err)
	}
	for _, bad := range []func(*runtimeapi.LinuxContainerResources){
		func(r *runtimeapi.LinuxContainerResources) { r.CpusetMems = "4000" },
		func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: "3MB", Limit: 1})
		},
	} {
		r := proto.CloneOf(full)
		bad(r)
		if err = h.Limit(t.Context(), p, r); err == nil {
			t.Fatalf("%v was accepted", r)
		}
		t.Log(err)
		if now, err := reread(before); err != nil || !slices.Equal(now, before) {
			t.Errorf("after a refused update: %v, before %v, %v", now, before, err)
		}
	}
	// Cut short anywhere, it can be put back by another process.
	if err := h.Limit(t.Context(), p, full); err != nil {
		t.Fatal(err)
	}
	for n := range before {
		half, err := reread(before)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(putBack(half[:n]), h.Restore(t.Context(), p, before)); err != nil {
			t.Error(err)
		}
		if now, err := reread(before); err != nil || !slices.Equal(now, before) {
			t.Errorf("restored to %v, before %v, %v", now, before, err)
		}
	}
}

// reread returns what the same files hold now.
func reread(values []Value) ([]Value, error) {
	var all []Value
	for _, v := range values {
		text, err := readFile(filepath.Split(v.File))
		if err != nil {
			return nil, err
		}
		all = append(all, Value{v.File, text})
	}
	return all, nil
}

// Memory in use is more than the new limit: refused, and nobody is killed.
func TestLimitBelowUsage(t *testing.T) {
	h := realHost(t)
	p := h.Place(testParent(t, h), "c1")
	limitable(t, h, p)
	// 8 MiB of anonymous memory.
	cmd := join(t, h, p, "x=$(head -c 8388608 /dev/zero | tr \"\\\\0\" x); echo >&3; read forever; echo $x")
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	err := h.Limit(t.Context(), p, &resources{CpuShares: 333, MemoryLimitInBytes: 2 << 20, MemorySwapLimitInBytes: 2 << 20})
	if !fault.Is(err, fault.Precondition) || !strings.HasPrefix(err.Error(), "memory_limit_in_bytes: ") {
		t.Errorf("%v", err)
	}
	if dir, ok := h.dirOf(p, "cpu"); ok {
		for _, name := range []string{"cpu.shares", "cpu.weight"} {
			if now, err := readFile(dir, name); err == nil && now != "1024" && now != "100" {
				t.Errorf("%s is %s", name, now)
			}
		}
	}
	if text, err := os.ReadFile(p.OOMEvents); err == nil && !strings.Contains(string(text), "oom_kill 0") {
		t.Errorf("somebody was killed: %s", text)
	}
}

func TestRescore(t *testing.T) {
	h := realHost(t)
	p := h.Place(testParent(t, h), "c1")
	cmd := join(t, h, p, "echo 500 >/proc/self/oom_score_adj; sleep 300 & echo 777 >/proc/$!/oom_score_adj; sleep 300 & echo >&3; wait")
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = h.Kill(ctx, p), cmd.Wait()
	}()
	scores := func() string {
		pids, err := processes(p.Dirs)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, pid := range pids {
			now, _ := readFile(fmt.Sprintf("/proc/%d", pid), "oom_score_adj")
			all = append(all, now)
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	if err := h.Rescore(p, 500, 600); err != nil || scores() != "600 600 777" {
		t.Errorf("%s, %v", scores(), err)
	}
	err := h.Rescore(p, 600, -1001) // as if it were too low for this process
	if !fault.Is(err, fault.Precondition) || !strings.HasPrefix(err.Error(), "oom_score_adj: ") || scores() != "600 600 777" {
		t.Errorf("%s, %v", scores(), err)
	}
}

// The OCI runtimes put a container exactly where Place says, and Kill and
// Remove leave nothing of it, whatever the runtime itself still believes.
func TestRuntimesAgree(t *testing.T) {
	h := realHost(t)
	testkit.Leftovers(t)
	for _, program := range []string{"crun", "runc"} {
		t.Run(program, func(t *testing.T) {
			p := h.Place(testParent(t, h), strings.Repeat("ab", 32))
			bundle := t.TempDir()
			program := func(args ...string) {
				t.Helper()
				cmd := exec.Command(program, append([]string{"--root", bundle + "/state"}, args...)...)
				log, err := os.Create(bundle + "/log") // not a pipe: the container keeps it open
				if err != nil {
					t.Fatal(err)
				}
				defer log.Close()
				cmd.Stderr = log
				if err := cmd.Run(); err != nil {
					text, _ := readFile(bundle, "log")
					t.Fatalf("%s: %v: %s", cmd, err, text)
				}
			}
			busybox, err := os.ReadFile("/bin/busybox")
			if err != nil {
				t.Fatal(err)
			}
			put(t, bundle+"/rootfs/dev/keep", "")
			put(t, bundle+"/rootfs/bin/sh", string(busybox))
			if err := os.Chmod(bundle+"/rootfs/bin/sh", 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, bundle+"/config.json", fmt.Sprintf(`{"ociVersion": "1.0.2", "root": {"path": "rootfs"},
				"process": {"args": ["/bin/sh", "-c", "sleep 300 & wait"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
				"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
				"linux": {"cgroupsPath": %q, "namespaces": [{"type": "mount"}, {"type": "pid"}]}}`, p.Path))
			program("create", "--bundle", bundle, p.ID)
			r := &resources{CpuPeriod: 100000, CpuQuota: 1000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
			if err := h.Limit(t.Context(), p, r); err != nil {
				t.Error(err)
			}
			r.CpuQuota = -1
			if err := h.Limit(t.Context(), p, r); err != nil {
				t.Error(err)
			}
			program("start", p.ID)
			for i, d := range p.Dirs {
				pids, err := processes([]string{d})
				if h.trees[i].unified && h.layout == Hybrid {
					continue // not every runtime uses it
				}
				if err != nil || len(pids) == 0 {
					t.Errorf("in %s: %v, %v", d, pids, err)
				}
			}
			if text, err := os.ReadFile(p.OOMEvents); err != nil || !strings.Contains(string(text), "oom_kill ") {
				t.Errorf("%s: %q, %v", p.OOMEvents, text, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			from := time.Now()
			if err := h.Kill(ctx, p); err != nil {
				t.Error(err)
			}
			killed := time.Since(from)
			if err := h.Remove(ctx, p); err != nil {
				t.Error(err)
			}
			t.Logf("Kill %v, Remove %v", killed, time.Since(from)-killed)
			program("delete", "--force", p.ID)
			for _, d := range p.Dirs {
				if _, err := os.Stat(d); !os.IsNotExist(err) {
					t.Errorf("%s is left", d)
				}
			}
		})
	}
}

// Expect writes where this process is listed, and so moves nothing.
func TestExpect(t *testing.T) {
	testkit.Root(t)
	h, err := Probe(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	procs, err := os.ReadFile(ownProcs(h.trees[0]))
	if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(os.Getpid())) {
		t.Errorf("%s does not list this process: %v", ownProcs(h.trees[0]), err)
	}
	h.Expect()
	h.moves.Wait()
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("moved from %s to %s: %v", before, after, err)
	}
}
