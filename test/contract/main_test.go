// Package contract holds davitd to what the CRI promises, call by call, over
// its socket: codes and texts, idempotency, races, and what happens when parts
// fail or hang.
package contract

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A world is a davitd with an image.
type world struct {
	t     *testing.T
	d     *testkit.Daemon
	c     *testkit.Client
	ctx   context.Context
	image string
}

// newWorld starts a davitd with the given configuration; the test ends with
// nothing left behind.
func newWorld(t *testing.T, config string) *world {
	t.Helper()
	testkit.Root(t)
	testkit.Leftovers(t)
	registry := testkit.NewRegistry(t)
	image := registry.PushBusybox(t, "contract/busybox:1")
	d := testkit.NewDaemon(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	w := &world{t: t, d: d, c: d.Client(t), ctx: ctx, image: image}
	if _, err := w.c.Pull(ctx, image); err != nil {
		t.Fatal(err)
	}
	return w
}

// within is the world as a subtest sees it.
func (w *world) within(t *testing.T) *world {
	s := *w
	s.t = t
	return &s
}

// pod runs a pod, which is removed at the test's end.
func (w *world) pod(name string, change ...func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	w.t.Helper()
	config := testkit.PodConfig(name, w.d.Logs)
	for _, f := range change {
		f(config)
	}
	id, err := w.c.RunPod(w.ctx, config)
	if err != nil {
		w.t.Fatalf("RunPodSandbox: %v", err)
	}
	w.t.Cleanup(func() {
		if err := w.c.RemovePod(context.Background(), id); err != nil {
			w.t.Errorf("remove pod: %v", err)
		}
	})
	return id, config
}

// config is a container's, with the world's image.
func (w *world) config(name string, command ...string) *runtimeapi.ContainerConfig {
	return testkit.ContainerConfig(name, w.image, command...)
}

func (w *world) create(podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	r, err := w.c.CreateContainer(w.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
	return r.GetContainerId(), err
}

// run creates and starts a container.
func (w *world) run(podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) string {
	w.t.Helper()
	id, err := w.c.RunContainer(w.ctx, podID, pod, config)
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

func (w *world) remove(id string) error {
	_, err := w.c.RemoveContainer(w.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
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

func (w *world) exec(id string, seconds int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
	return w.c.ExecSync(w.ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
}

// want requires an error's code and all of the given texts in it.
func want(t *testing.T, err error, code codes.Code, texts ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%v: want code %s", err, code)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v: does not say %q", err, text)
		}
	}
}

func codeOf(err error) codes.Code { return status.Code(err) }
