package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// life takes a pod through its life, going on after what a restart of davitd
// cut short, as a kubelet does.
func (w *world) life(name string) error {
	config := testkit.PodConfig(name, w.d.Logs)
	again := func(what string, f func() error) error {
		for {
			err := f()
			switch codeOf(err) {
			case codes.OK:
				return nil
			case codes.Unavailable, codes.Canceled:
				time.Sleep(2 * time.Millisecond)
				if w.ctx.Err() == nil {
					continue
				}
			}
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	var pod, ctr string
	steps := []struct {
		what string
		f    func() error
	}{
		{"run", func() (err error) { pod, err = w.c.RunPod(w.ctx, config); return err }},
		{"create", func() (err error) { ctr, err = w.create(pod, config, w.config("c", "sh", "-c", "exit 7")); return err }},
		{"start", func() error {
			err := w.start(ctr)
			if codeOf(err) == codes.FailedPrecondition {
				return nil // the start that was cut short
			}
			return err
		}},
		{"exit", func() error {
			s, err := w.c.AwaitExit(w.ctx, ctr)
			if err == nil && (s.ExitCode != 7 || s.Reason != "Error") {
				return fmt.Errorf("%s: %d %s %s", name, s.ExitCode, s.Reason, s.Message)
			}
			return err
		}},
		{"remove container", func() error { return w.remove(ctr) }},
		{"remove pod", func() error { return w.c.RemovePod(w.ctx, pod) }},
	}
	for _, s := range steps {
		if err := again(s.what, s.f); err != nil {
			return err
		}
	}
	return nil
}

// TestInstants: davitd is ended, hard or softly, at many instants of pods'
// lives; the lives go on, exit codes are right, and nothing is left.
func TestInstants(t *testing.T) {
	w := newWorld(t, "")
	ctx, cancel := context.WithTimeout(w.ctx, 3*time.Minute)
	defer cancel()
	w.ctx = ctx
	rounds := 16
	if testing.Short() {
		rounds = 6
	}
	begun := time.Now()
	for n := range rounds {
		if n >= 6 && time.Since(begun) > time.Minute { // a slow machine
			break
		}
		i := n * 7 % rounds // early and late instants by turns
		ended := make(chan error, 2)
		for n := range 2 {
			go func() { ended <- w.life(fmt.Sprintf("i%d-%d", i, n)) }()
		}
		time.Sleep(time.Duration(i) * 120 / time.Duration(rounds) * time.Millisecond)
		if i%2 == 0 {
			w.d.Kill()
		} else if err := w.d.Stop(); err != nil {
			t.Error(err)
		}
		if err := w.d.Start(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("round %d: %v", i, err)
			}
		}
	}
	if err := w.c.RemoveAll(w.ctx); err != nil {
		t.Error(err)
	}
}

// TestReboot: what a boot takes away is gone; records and images stay, pods
// are not ready, containers have exited, and the next attempts run.
func TestReboot(t *testing.T) {
	w := newWorld(t, "")
	config := testkit.PodConfig("reboots", w.d.Logs)
	podID, err := w.c.RunPod(w.ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	running := w.run(podID, config, w.config("running", "sleep", "1000"))
	exited := w.exit(podID, config, w.config("exited", "sh", "-c", "exit 5"))
	created, err := w.create(podID, config, w.config("created", "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	reboot(t, w.d, []int{w.pid(running), w.pid(created)})
	list, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 || list.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("%v, %v: want the pod, not ready", list, err)
	}
	for _, id := range []string{running, created} {
		if s := w.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.FinishedAt == 0 || s.Reason == "" {
			t.Errorf("%v", s)
		}
	}
	if s := w.status(exited.Id); !proto.Equal(s, exited) {
		t.Errorf("%v, want %v", s, exited)
	}
	next := proto.CloneOf(config)
	next.Metadata.Attempt = 1
	nextID, err := w.c.RunPod(w.ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	w.exit(nextID, next, w.config("c", "true"))
	for _, id := range []string{podID, nextID} {
		if err := w.c.RemovePod(w.ctx, id); err != nil {
			t.Error(err)
		}
	}
}

func (w *world) address(podID string) string {
	w.t.Helper()
	r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Status.GetNetwork().GetIp()
}

// reboot does to a daemon what a power cut and a boot do, except to the
// kernel's boot ID: processes, mounts and the state directory go.
func reboot(t *testing.T, d *testkit.Daemon, pids []int) {
	t.Helper()
	d.Kill()
	for _, mode := range []string{"keep", "serve", "hold"} {
		for _, pid := range d.Pids()[mode] {
			pids = append(append(pids, pid), below(pid)...)
		}
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.State))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Backward(all) {
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
	if err := unix.Mount("davit-state", d.State, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
}

// pid returns that of a container's first process.
func (w *world) pid(id string) int {
	w.t.Helper()
	r, err := w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid == 0 {
		w.t.Fatalf("no pid in %s: %v", r.Info["info"], err)
	}
	return info.Pid
}

// below returns all processes that have pid for an ancestor.
func below(pid int) (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // ended meanwhile
		}
		// kernel: proc.rst, stat. The name may contain anything, ")" too.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if err == nil && fields[1] == strconv.Itoa(pid) {
			all = append(append(all, child), below(child)...)
		}
	}
	return all
}
