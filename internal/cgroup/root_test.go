package cgroup

import (
	"context"
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
	if err := h.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
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
	err := h.Limit(t.Context(), p, &runtimeapi.LinuxContainerResources{CpuShares: 100, CpusetCpus: "4000"})
	if err == nil {
		t.Fatal("CPU 4000 was accepted")
	}
	t.Log(err)
	if dir, ok := h.dirOf(p, "cpu"); ok && h.layout != V2 {
		if now, _ := readFile(dir, "cpu.shares"); now != "512" {
			t.Errorf("cpu.shares is %s after a refused update", now)
		}
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
