package server_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// cgroups is the parent of the containers' cgroups, and nap the argument of a
// sleep that can be told from all others: tests of other trees may run.
var (
	cgroups = fmt.Sprintf("davit-test-%d", os.Getpid())
	nap     = fmt.Sprintf("%d.5", 1000000+os.Getpid())
)

// A node is a state directory with keeper and monitor of its own.
type node struct {
	t      testing.TB
	dir    string
	state  string
	rootfs string
	binary string
	*monitor.Client
}

func newNode(t testing.TB) *node {
	t.Helper()
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ") // end looks after these; others' tests may run
	dir := t.TempDir()
	n := &node{t: t, dir: dir, state: filepath.Join(dir, "state"), rootfs: filepath.Join(dir, "rootfs"), binary: filepath.Join(dir, "davit-monitor")}
	program, err := program()
	must(t, err)
	must(t, os.WriteFile(n.binary, program, 0o755))
	for _, d := range []string{"bin", "proc", "dev", "tmp", "sys"} {
		must(t, os.MkdirAll(filepath.Join(n.rootfs, d), 0o755))
	}
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(n.rootfs, "bin/busybox"), busybox, 0o755))
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "seq", "yes", "true", "kill", "id", "mkdir", "dd", "tail", "stty", "setsid", "usleep"} {
		must(t, os.Symlink("busybox", filepath.Join(n.rootfs, "bin", applet)))
	}
	must(t, os.Mkdir(n.state, 0o700))
	must(t, unix.Mount("tmpfs", n.state, "tmpfs", 0, ""))
	n.Client = monitor.Connect(n.state)
	t.Cleanup(n.end)
	must(t, monitor.Ensure(n.ctx(), n.binary, n.state))
	return n
}

// program builds davit-monitor, once.
var program = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "davit-monitor-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	args, cgo := []string{"build"}, "CGO_ENABLED=0"
	if os.Getenv("DAVIT_RACE") != "" {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	path := filepath.Join(dir, "davit-monitor")
	build := exec.Command("go", append(args, "-o", path, "github.com/davit-runtime/davit/cmd/davit-monitor")...)
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// end checks that nothing is left, and ends the keeper.
func (n *node) end() {
	list, err := n.List(n.ctx())
	if err != nil {
		n.t.Error(err)
	}
	for _, s := range list {
		if err := n.Remove(n.ctx(), s.ID); err != nil {
			n.t.Error(err)
		}
	}
	if left := n.left(); len(left) > 0 {
		n.t.Errorf("left behind: %q", left)
	}
	log, _ := os.ReadFile(filepath.Join(n.state, "monitor.log"))
	if strings.Contains(string(log), "DATA RACE") { // DAVIT_RACE
		n.t.Error("davit-monitor has a data race")
	}
	if n.t.Failed() {
		n.t.Logf("monitor.log:\n%s", log)
	}
	await(n.t, "keeper and monitor to go", func() bool {
		if keeper := n.process("keep"); keeper != 0 {
			_ = unix.Kill(keeper, unix.SIGTERM)
			return false
		}
		return n.process("serve") == 0
	})
	await(n.t, "unmount", func() bool { return unix.Unmount(n.state, 0) == nil }) // what is dying holds it
	made, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroups)
	for _, dir := range made { // of half-made containers they are davitd's to remove
		await(n.t, "removal of "+dir, func() bool {
			for _, sub := range subdirs(dir) {
				_ = unix.Rmdir(sub)
			}
			return unix.Rmdir(dir) == nil
		})
	}
}

func subdirs(dir string) (dirs []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(dir, e.Name()))
		}
	}
	return dirs
}

// left names files of containers, and children of the keeper, that remain
// after what is dying has had a moment.
func (n *node) left() (left []string) {
	for range 100 {
		if left = n.leftNow(); len(left) == 0 {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return left
}

func (n *node) leftNow() (left []string) {
	for _, d := range []string{"exits", "claims", "monitor", "crun", "runc"} {
		entries, _ := os.ReadDir(filepath.Join(n.state, d))
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				left = append(left, d+"/"+e.Name())
			}
		}
	}
	keeper, serve := n.process("keep"), n.process("serve")
	for _, pid := range children(keeper) {
		if pid != serve {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			left = append(left, fmt.Sprintf("process %d %q", pid, line))
		}
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", keeper)); err == nil && len(fds) > 14 {
		left = append(left, fmt.Sprintf("%d descriptors of the keeper", len(fds)))
	}
	return left
}

func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for f := range strings.FieldsSeq(string(data)) {
			n, _ := strconv.Atoi(f)
			pids = append(pids, n)
		}
	}
	return pids
}

// process finds the keeper ("keep") or monitor ("serve") of this node.
func (n *node) process(mode string) int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		data, _ := os.ReadFile(path)
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		if len(args) == 4 && args[1] == mode && args[3] == n.state {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			return pid
		}
	}
	return 0
}

// killMonitor kills it at once and reports its pid.
func (n *node) killMonitor() int {
	pid := n.process("serve")
	if pid > 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return pid
}

// killOnce kills a container as soon as a command runs.
func (n *node) killOnce(id, command string) {
	go func() {
		for end := time.Now().Add(patience); !running(command) && time.Now().Before(end); {
			time.Sleep(2 * time.Millisecond)
		}
		_ = n.Signal(n.ctx(), id, 9)
	}()
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	time.AfterFunc(31*time.Second, cancel)
	return ctx
}

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// container makes a bundle that runs args, and describes the container.
func (n *node) container(runtime string, args ...string) monitor.Container {
	n.t.Helper()
	id := newID()
	path, err := ociruntime.Find(runtime)
	must(n.t, err)
	c := monitor.Container{
		ID: id, Bundle: filepath.Join(n.dir, "bundles", id), LogPath: filepath.Join(n.dir, "logs", id, "0.log"),
		Runtime: ociruntime.Runtime{Handler: runtime, Path: path, Root: filepath.Join(n.state, runtime)},
	}
	must(n.t, os.MkdirAll(c.Bundle, 0o755))
	n.writeSpec(c, spec(n.rootfs, id, args))
	return c
}

func (n *node) writeSpec(c monitor.Container, s *specs.Spec) {
	n.t.Helper()
	data, err := json.Marshal(s)
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(c.Bundle, "config.json"), data, 0o600))
}

// spec is the least that a container needs.
func spec(rootfs, id string, args []string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.0",
		Process: &specs.Process{Cwd: "/", Args: args, Env: []string{"PATH=/bin"}},
		Root:    &specs.Root{Path: rootfs},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + cgroups + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
			Resources: &specs.LinuxResources{},
		},
	}
}

// run creates and starts.
func (n *node) run(c monitor.Container) int {
	n.t.Helper()
	pid, err := n.Create(n.ctx(), c)
	must(n.t, err)
	must(n.t, n.Start(n.ctx(), c.ID))
	return pid
}

// exit waits until the container has ended.
func (n *node) exit(id string) *monitor.Exit {
	n.t.Helper()
	var exit *monitor.Exit
	await(n.t, "exit of "+id[:8], func() bool {
		list, err := n.List(n.ctx())
		must(n.t, err)
		for _, s := range list {
			if s.ID == id {
				exit = s.Exit
			}
		}
		return exit != nil
	})
	return exit
}

func (n *node) remove(id string) {
	n.t.Helper()
	must(n.t, n.Remove(n.ctx(), id))
}

// lines reads a log, checks its format, and gives contents of whole lines with
// pieces joined, by stream.
func lines(t testing.TB, path string) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	out, piece := map[string][]string{}, map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 || len(f[0]) != 30 || (f[2] != "F" && f[2] != "P") {
			t.Fatalf("%s: bad line %.200q", path, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Fatal(err)
		}
		piece[f[1]] += f[3]
		if f[2] == "F" {
			out[f[1]] = append(out[f[1]], piece[f[1]])
			piece[f[1]] = ""
		}
	}
	for s, p := range piece {
		if p != "" {
			out[s] = append(out[s], p+"<P>")
		}
	}
	return out
}

// patience is longer than anything takes on a machine with other work to do.
const patience = 20 * time.Second

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("error %v (%v), want kind %v", err, fault.KindOf(err), kind)
	}
}

// runtimes runs a test with each OCI runtime.
func runtimes(t *testing.T, test func(t *testing.T, runtime string)) {
	for _, r := range []string{"crun", "runc"} {
		t.Run(r, func(t *testing.T) { test(t, r) })
	}
}
