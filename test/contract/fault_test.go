package contract

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// script writes an executable shell script.
func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// quick requires lists and statuses to answer, although something hangs that
// will not end before they have: at once, by the measure of slow machines.
func (w *world) quick() {
	w.t.Helper()
	calls := map[string]func() error{
		"ListPodSandbox": func() error {
			_, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ListContainers": func() error {
			_, err := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{})
			return err
		},
		"Status": func() error {
			_, err := w.c.RuntimeServiceClient.Status(w.ctx, &runtimeapi.StatusRequest{})
			return err
		},
	}
	for name, call := range calls {
		best := time.Hour
		for range 5 { // a busy machine may delay one, a lock delays all
			begun := time.Now()
			if err := call(); err != nil {
				w.t.Errorf("%s: %v", name, err)
			}
			best = min(best, time.Since(begun))
		}
		if best > 500*time.Millisecond {
			w.t.Errorf("%s took %v at best", name, best)
		}
	}
}

// stuck requires a call that hangs to say where before its deadline: some
// deadline, since a busy machine may miss a short one.
func (w *world) stuck(step string, call func(context.Context) error) {
	w.t.Helper()
	var err error
	for patience := time.Second; patience < 9*time.Second; patience *= 2 {
		ctx, cancel := context.WithTimeout(w.ctx, patience)
		err = call(ctx)
		cancel()
		if codeOf(err) != codes.DeadlineExceeded {
			break
		}
	}
	want(w.t, err, codes.Unavailable, "still under way", step)
}

const hangingPlugin = `
dir=%[1]s
echo "$CNI_COMMAND $CNI_CONTAINERID" >>$dir/calls
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit;;
ADD) while [ -e $dir/hang ]; do sleep 0.02; done
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.99.0.2/24","interface":0}]}';;
esac`

// TestNetworkHangs: a CNI plugin that hangs holds up its pod and nobody else;
// the call says so, a retry joins, and the pod can be stopped and removed.
func TestNetworkHangs(t *testing.T) {
	dir := t.TempDir()
	script(t, filepath.Join(dir, "bin", "hanging"), fmt.Sprintf(hangingPlugin, dir))
	conf := filepath.Join(dir, "net.d")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf, "10.conflist"), []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"hanging"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, fmt.Sprintf("[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\n", conf, filepath.Join(dir, "bin")))
	hang := filepath.Join(dir, "hang")
	for _, end := range []string{"join", "stop", "remove"} {
		t.Run(end, func(t *testing.T) {
			w := w.within(t)
			if err := os.WriteFile(hang, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			config := testkit.PodConfig("hang-"+end, w.d.Logs)
			for range 2 {
				w.stuck("at step cni add", func(ctx context.Context) error { _, err := w.c.RunPod(ctx, config); return err })
			}
			w.quick()
			list, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
			if err != nil || len(list.Items) != 1 || list.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Fatalf("%v, %v: want one pod that is not ready", list, err)
			}
			id := list.Items[0].Id
			_, err = w.create(id, config, w.config("early", "true"))
			want(t, err, codes.FailedPrecondition)
			onHost := testkit.PodConfig("onhost-"+end, w.d.Logs)
			onHost.Hostname = ""
			onHost.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
			other, err := w.c.RunPod(w.ctx, onHost)
			if err != nil {
				t.Fatal(err)
			}
			w.run(other, onHost, w.config("c", "true"))
			if err := w.c.RemovePod(w.ctx, other); err != nil {
				t.Error(err)
			}
			begun := time.Now()
			switch end {
			case "join":
				if err := os.Remove(hang); err != nil {
					t.Fatal(err)
				}
				joined, err := w.c.RunPod(w.ctx, config)
				if err != nil || joined != id {
					t.Errorf("%s, %v: want %s", joined, err, id)
				}
			case "stop":
				if _, err := w.c.StopPodSandbox(w.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
					t.Error(err)
				}
			}
			if err := w.c.RemovePod(w.ctx, id); err != nil {
				t.Error(err)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			_ = os.Remove(hang)
			calls, _ := os.ReadFile(filepath.Join(dir, "calls"))
			if strings.Count(string(calls), "ADD "+id) != 1 || !strings.Contains(string(calls), "DEL "+id) {
				t.Errorf("calls of the plugin for %s:\n%s", id, calls)
			}
			next, err := w.c.RunPod(w.ctx, config)
			if err != nil || next == id {
				t.Errorf("the pod once more: %s, %v", next, err)
			}
			if err := w.c.RemovePod(w.ctx, next); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPluginGone: a pod whose CNI plugin was removed cannot be stopped for a
// while, since somebody may put it back; then it can, and Status tells what is
// left until the plugin has been there again.
func TestPluginGone(t *testing.T) {
	dir := t.TempDir()
	plugin := filepath.Join(dir, "bin", "gone")
	script(t, plugin, fmt.Sprintf(hangingPlugin, dir))
	conf := filepath.Join(dir, "10.conflist")
	if err := os.WriteFile(conf, []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"gone"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, fmt.Sprintf("[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\ncni_del_patience = \"2s\"\n", dir, filepath.Join(dir, "bin")))
	config := testkit.PodConfig("gone", w.d.Logs)
	id, err := w.c.RunPod(w.ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	w.run(id, config, w.config("c", "sleep", "1000"))
	if err := errors.Join(os.Remove(conf), os.Rename(plugin, plugin+"-aside")); err != nil {
		t.Fatal(err)
	}
	stop := func() error {
		_, err := w.c.StopPodSandbox(w.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return err
	}
	want(t, stop(), codes.Unavailable, "release network", `"gone"`)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := stop()
		if err == nil {
			break
		}
		if want(t, err, codes.Unavailable, `"gone"`); time.Now().After(end) {
			t.Fatal("it cannot be stopped within 30 s")
		}
	}
	if err := w.c.RemovePod(w.ctx, id); err != nil {
		t.Error(err)
	}
	if c := w.trouble(); c.Status || !strings.Contains(c.Message, "CNI DEL of pod default/gone ("+id[:13]) {
		t.Errorf("%v", c)
	}
	if err := os.Rename(plugin+"-aside", plugin); err != nil {
		t.Fatal(err)
	}
	w.d.Kill()
	if err := w.d.Start(); err != nil { // which does not wait a minute
		t.Fatal(err)
	}
	if c := w.trouble(); !c.Status {
		t.Errorf("%v", c)
	}
	if calls, _ := os.ReadFile(filepath.Join(dir, "calls")); !strings.Contains(string(calls), "DEL "+id) {
		t.Errorf("calls of the plugin:\n%s", calls)
	}
}

// trouble is what davit says of itself beside being ready.
func (w *world) trouble() *runtimeapi.RuntimeCondition {
	w.t.Helper()
	r, err := w.c.RuntimeServiceClient.Status(w.ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range r.Status.GetConditions() {
		if c.Type == "DavitHasNoTrouble" {
			return c
		}
	}
	w.t.Fatalf("no such condition: %v", r)
	return nil
}

// TestRuntimeHangs: an OCI runtime that hangs or fails at one command holds up
// its container and nobody else, and the error says where.
func TestRuntimeHangs(t *testing.T) {
	dir := t.TempDir()
	hang := func(command string) string { return filepath.Join(dir, "hang-"+command) }
	fail := func(command string) string { return filepath.Join(dir, "fail-"+command) }
	script(t, filepath.Join(dir, "odd"), `
for a; do
	case $a in create|start|exec|delete|kill|state)
		while [ -e `+dir+`/hang-$a ]; do echo >`+dir+`/hung-$a; sleep 0.02; done
		if [ -e `+dir+`/fail-$a ]; then echo "odd: no $a today" >&2; exit 1; fi
		break;;
	esac
done
exec crun "$@"
`)
	w := newWorld(t, fmt.Sprintf("[runtimes.odd]\npath = %q\n", filepath.Join(dir, "odd")))
	touch := func(t *testing.T, path string) {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(path) })
	}
	hung := func(t *testing.T, command string) {
		t.Helper()
		mark := filepath.Join(dir, "hung-"+command)
		w.within(t).await(command+" hangs", func() bool { return os.Remove(mark) == nil })
	}
	config := testkit.PodConfig("odd", w.d.Logs)
	r, err := w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "odd"})
	if err != nil {
		t.Fatal(err)
	}
	pod := r.PodSandboxId
	others := func(t *testing.T) {
		t.Helper()
		w := w.within(t)
		w.quick()
		podID, pod := w.pod("other")
		w.exit(podID, pod, w.config("c", "true"))
	}
	t.Run("create hangs", func(t *testing.T) {
		touch(t, hang("create"))
		request := &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: w.config("c1", "sleep", "100")}
		w.within(t).stuck("at step process", func(ctx context.Context) error { _, err := w.c.CreateContainer(ctx, request); return err })
		others(t)
		_ = os.Remove(hang("create"))
		r, err := w.c.CreateContainer(w.ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.remove(r.ContainerId); err != nil {
			t.Error(err)
		}
	})
	t.Run("start hangs", func(t *testing.T) {
		id, err := w.create(pod, config, w.config("c2", "sleep", "100"))
		if err != nil {
			t.Fatal(err)
		}
		touch(t, hang("start"))
		w.within(t).stuck("start", func(ctx context.Context) error {
			_, err := w.c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		})
		others(t)
		begun := time.Now()
		if err := w.stop(id, 0); err != nil {
			t.Error(err)
		}
		t.Logf("stopped after %v", time.Since(begun))
		_ = os.Remove(hang("start"))
		if err := w.remove(id); err != nil {
			t.Error(err)
		}
	})
	t.Run("start hangs, stop is patient", func(t *testing.T) {
		id, err := w.create(pod, config, w.config("c4", "sleep", "100"))
		if err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, "hung-start"))
		touch(t, hang("start"))
		started := make(chan error, 1)
		go func() { started <- w.start(id) }()
		hung(t, "start")
		begun := time.Now()
		if err := w.stop(id, 1); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("stopped after %v", took)
		}
		_ = os.Remove(hang("start"))
		if err := <-started; err == nil {
			t.Error("the start of a container that was killed succeeds")
		}
		if s := w.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("%v", s)
		}
		if err := w.remove(id); err != nil {
			t.Error(err)
		}
	})
	t.Run("create hangs, its pod goes", func(t *testing.T) {
		w := w.within(t)
		config := testkit.PodConfig("goes", w.d.Logs)
		r, err := w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "odd"})
		if err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, "hung-create"))
		touch(t, hang("create"))
		created := make(chan error, 1)
		go func() { _, err := w.create(r.PodSandboxId, config, w.config("c", "true")); created <- err }()
		hung(t, "create")
		// The monitor does not cut an OCI runtime's command short.
		w.stuck("at step release process", func(ctx context.Context) error {
			_, err := w.c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
			return err
		})
		others(t)
		_ = os.Remove(hang("create"))
		if err := w.c.RemovePod(w.ctx, r.PodSandboxId); err != nil {
			t.Error(err)
		}
		err = <-created
		want(t, err, codes.Canceled, "stopped while it was being made")
	})
	t.Run("delete hangs", func(t *testing.T) {
		id := w.run(pod, config, w.config("c3", "sleep", "100"))
		touch(t, hang("delete"))
		w.within(t).stuck("at step release process", func(ctx context.Context) error {
			_, err := w.c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		})
		others(t)
		_ = os.Remove(hang("delete"))
		if err := w.remove(id); err != nil {
			t.Error(err)
		}
	})
	for _, command := range []string{"create", "start", "exec", "delete", "kill"} {
		t.Run(command+" fails", func(t *testing.T) {
			touch(t, fail(command))
			id, err := w.c.RunContainer(w.ctx, pod, config, w.config("f-"+command, "sleep", "100"))
			if command == "create" || command == "start" {
				want(t, err, codes.Internal, "odd", command)
			} else if err != nil {
				t.Error(err)
			}
			if command == "exec" {
				_, err := w.exec(id, 2, "true")
				want(t, err, codes.Internal, "odd", "exec")
			}
			if id != "" {
				if err := w.stop(id, 1); err != nil {
					t.Error(err)
				}
				if err := w.remove(id); command == "delete" {
					want(t, err, codes.Internal, "odd: no delete today")
				} else if err != nil {
					t.Error(err)
				}
				_ = os.Remove(fail(command))
				if err := w.remove(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("runtime goes missing", func(t *testing.T) {
		id := w.run(pod, config, w.config("m", "sleep", "100"))
		if err := os.Rename(filepath.Join(dir, "odd"), filepath.Join(dir, "away")); err != nil {
			t.Fatal(err)
		}
		_, err := w.create(pod, config, w.config("m2", "true"))
		want(t, err, codes.Unavailable, filepath.Join(dir, "odd"))
		_, err = w.exec(id, 2, "true")
		want(t, err, codes.Unavailable, filepath.Join(dir, "odd"))
		if err := w.stop(id, 1); err != nil {
			t.Error(err)
		}
		want(t, w.remove(id), codes.Unavailable, filepath.Join(dir, "odd"))
		if err := os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "odd")); err != nil {
			t.Fatal(err)
		}
		if err := w.c.RemovePod(w.ctx, pod); err != nil {
			t.Error(err)
		}
	})
}

// TestDiskFull: a full disk is told as such, nothing is left, and with room it goes on.
func TestDiskFull(t *testing.T) {
	w := newWorld(t, "")
	if err := w.d.Stop(); err != nil {
		t.Fatal(err)
	}
	w.d.Root = t.TempDir()
	if err := unix.Mount("small", w.d.Root, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(w.d.Root, unix.MNT_DETACH) })
	root := w.d.Root
	t.Cleanup(func() { _ = w.d.Close(); _ = unix.Unmount(root, unix.MNT_DETACH) })
	failed := func() int { return strings.Count(w.d.Log(), "tried_again=false") } // on a tmpfs, with Linux before 6.3
	earlier := failed()
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Pull(w.ctx, w.image); err != nil {
		t.Fatal(err)
	}
	// Trials of OCI runtimes go on after davitd began to serve, and give space back.
	w.await("both OCI runtimes were tried", func() bool {
		passed, err := filepath.Glob(filepath.Join(w.d.Root, "trials", "*.json"))
		return err == nil && len(passed)+failed()-earlier == 2
	})
	podID, pod := w.pod("roomy")
	ctr := w.run(podID, pod, w.config("c", "sleep", "1000"))
	ballast := filepath.Join(w.d.Root, "ballast")
	fill := func() {
		t.Helper()
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		block := make([]byte, 1<<20)
		for n := len(block); n >= 4096; n /= 2 {
			for err = nil; err == nil; {
				_, err = f.Write(block[:n])
			}
		}
	}
	fill()
	_, err := w.c.RunPod(w.ctx, testkit.PodConfig("full", w.d.Logs))
	want(t, err, codes.ResourceExhausted, "no space left")
	fill()
	_, err = w.create(podID, pod, w.config("d", "true"))
	want(t, err, codes.ResourceExhausted, "no space left")
	before := w.limits(ctr)
	fill()
	_, err = w.c.UpdateContainerResources(w.ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: ctr, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 300, MemoryLimitInBytes: 99 << 20},
	})
	want(t, err, codes.ResourceExhausted, "no space left")
	if now := w.limits(ctr); now != before || w.status(ctr).Resources.Linux.CpuShares != 0 {
		t.Errorf("a refused update left %s of %s", now, before)
	}
	if err := w.stop(ctr, 0); err != nil {
		t.Error(err)
	}
	if s := w.status(ctr); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("%v", s)
	}
	list, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if err := w.c.RemovePod(w.ctx, podID); err != nil {
		t.Errorf("removal on a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	podID, pod = w.pod("roomy-again")
	w.exit(podID, pod, w.config("c", "true"))
}
