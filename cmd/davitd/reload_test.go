package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// fixed has a configuration that stays.
func fixed(c *config) *reloader { return newReloader(c, nil, nil, new(slog.LevelVar), quiet) }

// A rewritten is a davitd whose configuration is rewritten.
type rewritten struct {
	*testkit.Daemon
	t   *testing.T
	ctx context.Context
	c   *testkit.Client
}

// reload writes the file and has it read; it returns what came of it, and how
// long that took.
func (d *rewritten) reload(text string) (reloaded, time.Duration) {
	d.t.Helper()
	before := d.status().At
	if err := os.WriteFile(d.Config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	begun := time.Now()
	d.hangUp()
	for {
		if last := d.status(); last.At.After(before) {
			return last, time.Since(begun)
		}
		time.Sleep(time.Millisecond)
	}
}

func (d *rewritten) hangUp() {
	d.t.Helper()
	if err := unix.Kill(d.Pids()["davitd"][0], unix.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// status is what Status tells of the configuration.
func (d *rewritten) status() reloaded {
	d.t.Helper()
	r, err := d.c.Status(d.ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		d.t.Fatal(err)
	}
	var config struct{ Configuration reloaded }
	if err := json.Unmarshal([]byte(r.Info["config"]), &config); err != nil {
		d.t.Fatal(err)
	}
	return config.Configuration
}

// conditions returns those that are not as they should be.
func (d *rewritten) conditions() (not []string) {
	d.t.Helper()
	r, err := d.c.Status(d.ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, c := range r.Status.Conditions {
		if !c.Status {
			not = append(not, c.Type+": "+c.Message)
		}
	}
	return not
}

// SIGHUP has the configuration read again: what can change does at once, the
// rest is named; a wrong one changes nothing but what Status and the log tell.
func TestReload(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := &rewritten{testkit.NewDaemon(t, ""), t, ctx, nil}
	d.c = d.Client(t)
	ref, err := d.c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	devices := t.TempDir()
	fast := filepath.Join(devices, "fast")
	crun, err := exec.LookPath("crun")
	if err == nil { // another program, so that nothing is known of it
		err = exec.Command("cp", crun, fast).Run()
	}
	if err != nil {
		t.Fatal(err)
	}
	config := testkit.PodConfig("web", d.Logs)
	if _, err := d.c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "fast"}); err == nil {
		t.Error("a pod runs by a handler that is not configured yet")
	}
	if err := os.WriteFile(filepath.Join(devices, "a.json"), []byte(`{"cdiVersion":"0.6.0","kind":"a.example/b","devices":[{"name":"c","containerEdits":{"env":["FROM=cdi"]}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	good := fmt.Sprintf("cdi_spec_dirs = [%q]\n[log]\nlevel = \"debug\"\n[runtimes.fast]\npath = %q\n[ulimits]\nnofile = \"600:700\"\n[images]\npinned = [\"*/busybox:1\"]\n[network]\nmtu = 1400\ncni_conf_dir = %q\n",
		devices, fast, filepath.Join(d.Root, "cni"))
	got, took := d.reload(good)
	if want := []string{"log.level", "runtimes.fast", "network.cni_conf_dir", "images.pinned", "ulimits.nofile", "cdi_spec_dirs"}; !slices.Equal(got.Applied, want) ||
		!slices.Equal(got.NeedRestart, []string{"network.mtu"}) || got.Error != "" {
		t.Errorf("%+v, want %v applied", got, want)
	}
	begun := time.Now()
	r, err := d.c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "fast"})
	if err != nil {
		t.Fatal(err)
	}
	if took += time.Since(begun); took > time.Second {
		t.Errorf("a pod by the new handler took %v", took)
	}
	ctr := testkit.ContainerConfig("main", ref, "sleep", "1000")
	ctr.CDIDevices = []*runtimeapi.CDIDevice{{Name: "a.example/b=c"}}
	id, err := d.c.RunContainer(ctx, r.PodSandboxId, config, ctr)
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "ulimit -Hn; echo $FROM"}, Timeout: 20})
	if err != nil || string(out.Stdout) != "700\ncdi\n" {
		t.Errorf("%q, %v", out.GetStdout(), err)
	}
	if i, err := d.c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil || !i.Image.GetPinned() {
		t.Errorf("not pinned: %v, %v", i, err)
	}
	if log := d.Log(); !strings.Contains(log, "level=DEBUG") || !strings.Contains(log, `applied="[log.level runtimes.fast`) || !strings.Contains(log, "need_restart=[network.mtu]") {
		t.Errorf("the log has not all that it should:\n%s", log)
	}
	if not := d.conditions(); not != nil {
		t.Errorf("conditions %q", not)
	}

	got, _ = d.reload(good + "brigde = \"b\"\n")
	want := d.Config + ":13:1: network.brigde: unknown key; did you mean network.bridge?"
	if got.Error != want || got.Applied != nil || !slices.Equal(got.NeedRestart, []string{"network.mtu"}) {
		t.Errorf("%+v, want %s", got, want)
	}
	if not := d.conditions(); len(not) != 1 || !strings.HasPrefix(not[0], "DavitHasNoTrouble: ") || !strings.Contains(not[0], want) {
		t.Errorf("conditions %q", not)
	}
	if _, err := d.c.RunContainer(ctx, r.PodSandboxId, config, testkit.ContainerConfig("more", ref, "sleep", "1000")); err != nil {
		t.Error(err)
	}
	if !strings.Contains(d.Log(), want) {
		t.Errorf("the log does not say what is wrong")
	}

	// The handler goes; the pod that has it goes as well as any.
	if got, _ = d.reload(""); got.Error != "" || got.NeedRestart != nil || !slices.Contains(got.Applied, "runtimes.fast") {
		t.Errorf("%+v", got)
	}
	if not := d.conditions(); not != nil {
		t.Errorf("conditions %q", not)
	}
	if err := d.c.RemovePod(ctx, r.PodSandboxId); err != nil {
		t.Error(err)
	}
}

// However often the file is read again, and whether it is right or not, no call
// fails that would not have, and nobody ends.
func TestReloadUnderLoad(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := &rewritten{testkit.NewDaemon(t, ""), t, ctx, nil}
	d.c = d.Client(t)
	ref, err := d.c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	pids := d.Pids()
	config := testkit.PodConfig("web", d.Logs)
	pod, err := d.c.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	id, err := d.c.RunContainer(ctx, pod, config, testkit.ContainerConfig("main", ref, "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	var done atomic.Bool
	var load sync.WaitGroup
	repeat := func(call func(i int) error) {
		load.Go(func() {
			for i := 0; !done.Load(); i++ {
				if err := call(i); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	repeat(func(int) error { return second(d.c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})) })
	repeat(func(int) error { return second(d.c.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})) })
	repeat(func(int) error {
		return second(d.c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 20}))
	})
	repeat(func(i int) error {
		pod, err := d.c.RunPod(ctx, testkit.PodConfig(fmt.Sprint("pod-", i), d.Logs))
		if err != nil {
			return err
		}
		return d.c.RemovePod(ctx, pod)
	})
	last := ""
	for i := range 100 {
		last = fmt.Sprintf("[images]\npinned = [\"busybox:%d\"]\n", i)
		if i%3 == 0 {
			last = "[images\n"
		}
		if err := os.WriteFile(d.Config, []byte(last), 0o600); err != nil {
			t.Fatal(err)
		}
		d.hangUp()
		if i%10 == 0 { // davit-monitor, too, is told at times
			if err := unix.Kill(pids["serve"][0], unix.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got, _ := d.reload("[images]\npinned = [\"busybox\"]\n"); got.Error != "" {
		t.Errorf("%+v", got)
	}
	done.Store(true)
	load.Wait()
	t.Logf("%d calls", calls.Load())
	if now := d.Pids(); fmt.Sprint(now) != fmt.Sprint(pids) {
		t.Errorf("processes %v, were %v", now, pids)
	}
	if err := d.c.RemovePod(ctx, pod); err != nil {
		t.Error(err)
	}
}
