package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A pod from pull to removal by the calls that the kubelet makes, with davitd
// killed in the middle.
func TestPodLife(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := testkit.NewDaemon(t, "")
	c := d.Client(t)

	ref, err := c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil || st.Image.GetId() != ref {
		t.Fatalf("pulled %s, status %v, %v", ref, st, err)
	}
	config := testkit.PodConfig("web", d.Logs)
	podID, err := c.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	web := testkit.ContainerConfig("web", ref, "sh", "-c", "echo hello; mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w")
	web.Image.UserSpecifiedImage = image
	id, err := c.RunContainer(ctx, podID, config, web)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID[:12], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	awaitPage(t, "http://"+pod.Status.Network.Ip+"/index.html", "page\n")

	d.Kill()
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	awaitPage(t, "http://"+pod.Status.Network.Ip+"/index.html", "page\n")
	if err := unix.Kill(d.Pids()["davitd"][0], unix.SIGUSR1); err != nil {
		t.Error(err)
	}
	for log := ""; !strings.Contains(log, "goroutine 1 ["); log = d.Log() {
		if ctx.Err() != nil {
			t.Fatal("no answer to SIGUSR1")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	awaitPage(t, "http://"+pod.Status.Network.Ip+"/index.html", "page\n")
	ctr, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := ctr.Status; s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.Image.Image != image || s.ImageId != ref {
		t.Errorf("after a restart of davitd: %v", s)
	}
	if !strings.Contains(ctr.Info["info"], `"runtimeSpec":{"ociVersion"`) {
		t.Errorf("info %s", ctr.Info["info"])
	}
	exec, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "hostname; exit 3"}, Timeout: 10})
	if err != nil || string(exec.Stdout) != "web\n" || exec.ExitCode != 3 {
		t.Errorf("exec: %v, %v", exec, err)
	}
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	ended, err := c.AwaitExit(ctx, id)
	if err != nil || ended.ExitCode != 137 {
		t.Errorf("ended: %v, %v", ended, err)
	}
	log, err := os.ReadFile(filepath.Join(config.LogDirectory, web.LogPath))
	if err != nil || !strings.Contains(string(log), " stdout F hello\n") {
		t.Errorf("log %q, %v", log, err)
	}
	if err := c.RemovePod(ctx, podID); err != nil {
		t.Error(err)
	}
	_, err = c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if status.Code(err) != codes.NotFound {
		t.Errorf("a removed pod: %v", err)
	}
}

func awaitPage(t *testing.T, url, want string) {
	t.Helper()
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get(url)
		if last = err; err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", url, body, err)
		}
		return
	}
	t.Errorf("%s: %v", url, last)
}

// The keeper is killed: the container runs on, davit comes back, and the exit
// is known.
func TestKeeperDies(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := testkit.NewDaemon(t, "")
	c := d.Client(t)
	ref, err := c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	config := testkit.PodConfig("web", d.Logs)
	podID, err := c.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.RunContainer(ctx, podID, config, testkit.ContainerConfig("web", ref, "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(d.Pids()["keep"][0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var exec *runtimeapi.ExecSyncResponse
	for { // a call under way when davit-monitor goes is Unavailable
		exec, err = c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"hostname"}})
		if status.Code(err) != codes.Unavailable {
			break
		}
	}
	if err != nil || string(exec.Stdout) != "web\n" {
		t.Errorf("exec: %v, %v", exec, err)
	}
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if s, err := c.AwaitExit(ctx, id); err != nil || s.ExitCode != 137 {
		t.Errorf("%v, %v", s, err)
	}
	if err := c.RemovePod(ctx, podID); err != nil {
		t.Error(err)
	}
}

// The holder of a pod's PID namespace dies, and all in it with it: the pod is
// not ready at once, and is stopped and removed as ever.
func TestHolderDies(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := testkit.NewDaemon(t, "")
	c := d.Client(t)
	ref, err := c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	config := testkit.PodConfig("web", d.Logs)
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	podID, err := c.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	container := testkit.ContainerConfig("web", ref, "sleep", "1000")
	container.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	id, err := c.RunContainer(ctx, podID, config, container)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(d.Pids()["hold"][0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for state := runtimeapi.PodSandboxState_SANDBOX_READY; state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY; time.Sleep(time.Millisecond) {
		pod, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
		if err != nil {
			t.Fatal(err)
		}
		state = pod.Status.State
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("not ready only after %s", took)
	}
	if s, err := c.AwaitExit(ctx, id); err != nil || s.ExitCode != 137 {
		t.Errorf("%v, %v", s, err)
	}
	if err := c.RemovePod(ctx, podID); err != nil {
		t.Error(err)
	}
}

// Containers get the filter that was compiled ahead, and it is in force.
func TestSeccompAhead(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := testkit.NewDaemon(t, "default_runtime = \"crun\"\n")
	c := d.Client(t)
	ref, err := c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	for {
		programs, _ := filepath.Glob(filepath.Join(d.Root, "seccomp", "crun-*", "*.bpf"))
		if len(programs) == 2 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("compiled: %v\n%s", programs, d.Log())
		}
		time.Sleep(10 * time.Millisecond)
	}
	config := testkit.PodConfig("web", d.Logs)
	podID, err := c.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	for name, caps := range map[string]*runtimeapi.Capability{"usual": nil, "none": {DropCapabilities: []string{"ALL"}}} {
		ctr := testkit.ContainerConfig(name, ref, "sleep", "1000")
		ctr.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Capabilities: caps, Seccomp: &runtimeapi.SecurityProfile{}}
		id, err := c.RunContainer(ctx, podID, config, ctr)
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil || !strings.Contains(s.Info["info"], `"run.oci.seccomp_bpf_data":"`) {
			t.Errorf("%s: no filter compiled ahead: %v, %v", name, s, err)
		}
		exec, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"grep", "Seccomp:", "/proc/1/status"}})
		if err != nil || string(exec.Stdout) != "Seccomp:\t2\n" {
			t.Errorf("%s: %v, %v", name, exec, err)
		}
	}
}

// Without an OCI runtime davitd serves and says what is missing.
func TestWithoutRuntime(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	d := testkit.NewDaemon(t, "default_runtime = \"gone\"\n[runtimes.gone]\npath = \"/nowhere/crun\"\n")
	c := d.Client(t)
	s, err := c.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ready := s.Status.Conditions[0]
	if ready.Type != runtimeapi.RuntimeReady || ready.Status || !strings.Contains(ready.Message, "/nowhere/crun") {
		t.Errorf("%v", ready)
	}
	_, err = c.RunPod(ctx, testkit.PodConfig("web", ""))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("run: %v", err)
	}
	_, err = c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: testkit.PodConfig("web", ""), RuntimeHandler: "kata"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("run by an unknown handler: %v", err)
	}
	list, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

// A second davitd on the same directories is refused; the first one serves on.
func TestOneDaemonPerDirectory(t *testing.T) {
	testkit.Root(t)
	d := testkit.NewDaemon(t, "")
	err := run(soon(t), fixed(&config{Root: d.Root, State: t.TempDir()}))
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), d.Root) {
		t.Errorf("the second: %v", err)
	}
	err = run(soon(t), fixed(&config{Root: t.TempDir(), State: t.TempDir()}))
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "network.bridge") {
		t.Errorf("another on the same bridge: %v", err)
	}
	if _, err := d.Client(t).Version(soon(t), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
