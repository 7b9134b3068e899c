// Package contract holds a runtime to what the CRI promises, call by call, over
// its socket: codes and texts, idempotency, races, and what happens when parts
// fail or hang.
//
// Tests that begin with shared run against any CRI socket (flag -endpoint,
// make conform ENDPOINT=…); without one, against a davitd that they share.
// Tests that begin with newWorld have a davitd of their own, since they need
// its processes or directories; they are left out where there is an endpoint.
package contract

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// A world is a runtime with an image.
type world struct {
	t     *testing.T
	d     *testkit.Daemon // nil if the runtime is not the suite's own
	c     *testkit.Client
	ctx   context.Context
	image string
	logs  string // a directory for logs of pods
	own   string // the namespace in the metadata of every pod that the suite makes
	group string // the cgroup of the pods, as a kubelet gives one; "" leaves it to the runtime
}

// testLimit ends a test that hangs. The longest takes 5 minutes in an emulated
// machine on a busy host.
const testLimit = 7 * time.Minute

// newWorld starts a davitd with the given configuration; the test ends with
// nothing left behind.
func newWorld(t *testing.T, config string) *world {
	t.Helper()
	if *endpoint != "" {
		alone.Add(1)
		t.Skip("starts davitd itself")
	}
	testkit.Root(t)
	if err := common.close(); err != nil {
		t.Error(err)
	}
	testkit.Leftovers(t)
	images, err := testkit.ServeImages()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	img, err := testkit.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	image := images.Host + "/contract/busybox:1"
	if err := testkit.Push(image, img); err != nil {
		t.Fatal(err)
	}
	d := testkit.NewDaemon(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	w := &world{t: t, d: d, c: d.Client(t), ctx: ctx, image: image, logs: d.Logs, own: "default"}
	if _, err := w.c.Pull(ctx, image); err != nil {
		t.Fatal(err)
	}
	return w
}

// restart kills davitd, if it is the suite's own, and starts it again.
func (w *world) restart() {
	w.t.Helper()
	if w.d == nil {
		return
	}
	w.d.Kill()
	if err := w.d.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// push stores an image in the suite's registry and returns its reference. Where
// an image is named instead, there is no registry, and the test is left out.
func (w *world) push(nameTag string, img v1.Image) string {
	w.t.Helper()
	if common.images == nil {
		w.t.Skip("needs images of its own, not the one that -image names")
	}
	ref := common.images.Host + "/" + nameTag
	if err := testkit.Push(ref, img); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := w.c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil {
			w.t.Error(err)
		}
	})
	return ref
}

// within is the world as a subtest sees it.
func (w *world) within(t *testing.T) *world {
	judged(t)
	s := *w
	s.t = t
	return &s
}

// podConfig returns the least that a pod needs.
func (w *world) podConfig(name string) *runtimeapi.PodSandboxConfig {
	config := testkit.PodConfig(name, w.logs)
	config.Metadata.Namespace = w.own
	config.Linux.CgroupParent = w.group
	return config
}

// pod runs a pod, which is removed at the test's end.
func (w *world) pod(name string, change ...func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	w.t.Helper()
	config := w.podConfig(name)
	for _, f := range change {
		f(config)
	}
	id, err := w.c.RunPod(w.ctx, config)
	if err != nil {
		w.t.Fatalf("RunPodSandbox: %v", err)
	}
	w.t.Cleanup(func() {
		if err := w.removePod(context.Background(), id); err != nil {
			w.t.Errorf("remove pod: %v", err)
		}
	})
	return id, config
}

// config is a container's, with the world's image.
func (w *world) config(name string, command ...string) *runtimeapi.ContainerConfig {
	return w.configOf(w.image, name, command...)
}

// configOf is a container's, with an image of any name, as a kubelet sends it.
func (w *world) configOf(image, name string, command ...string) *runtimeapi.ContainerConfig {
	config := testkit.ContainerConfig(name, image, command...)
	config.Image.UserSpecifiedImage = image
	return config
}

// stopPod gives a pod 20 s to stop: some runtimes wait for as long as the caller does.
func (w *world) stopPod(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := w.c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

// removePod ends a pod as a kubelet does: its containers first.
func (w *world) removePod(ctx context.Context, id string) error {
	if w.d != nil {
		return w.c.RemovePod(ctx, id)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	filter := &runtimeapi.ContainerFilter{PodSandboxId: id}
	if list, err := w.c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter}); err == nil {
		for _, c := range list.Containers { // what fails here, stopping the pod does again
			_, _ = w.c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id})
		}
	}
	if err := w.stopPod(ctx, id); err != nil {
		return err
	}
	_, err := w.c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (w *world) create(podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	w.logDir(pod, config)
	r, err := w.c.CreateContainer(w.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
	return r.GetContainerId(), err
}

// logDir makes the directory of a container's log, as a kubelet does.
func (w *world) logDir(pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) {
	if w.d == nil && pod.GetLogDirectory() != "" && config.GetLogPath() != "" {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(pod.LogDirectory, config.LogPath)), 0o755) // if not, the runtime says so
	}
}

// launch creates and starts a container. It returns the ID of one that was
// created but does not start, too.
func (w *world) launch(podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	id, err := w.create(podID, pod, config)
	if err != nil {
		return "", err
	}
	return id, w.start(id)
}

// run creates and starts a container.
func (w *world) run(podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) string {
	w.t.Helper()
	id, err := w.launch(podID, pod, config)
	if err != nil {
		w.t.Fatalf("container %s: %v", config.Metadata.Name, err)
	}
	return id
}

// exit runs a container to its end and returns its status.
func (w *world) exit(podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) *runtimeapi.ContainerStatus {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	s, err := w.c.AwaitExit(ctx, w.run(podID, pod, config))
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) start(id string) error {
	_, err := w.c.StartContainer(w.ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (w *world) stop(id string, seconds int64) error {
	_, err := w.c.StopContainer(w.ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return err
}

// remove gives a runtime 10 s: some wait for as long as the caller does before they kill.
func (w *world) remove(id string) error {
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	_, err := w.c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (w *world) status(id string) *runtimeapi.ContainerStatus {
	w.t.Helper()
	r, err := w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		w.t.Fatalf("ContainerStatus: %v", err)
	}
	return r.Status
}

// exec gives up a while after the runtime should have: not every one keeps its limit.
func (w *world) exec(id string, seconds int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
	ctx, cancel := context.WithTimeout(w.ctx, time.Duration(seconds+20)*time.Second)
	defer cancel()
	return w.c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
}

func codeOf(err error) codes.Code { return status.Code(err) }
