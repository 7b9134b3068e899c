package contract

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	versions "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/task"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An observer asks what the cAdvisor in a kubelet asks.
type observer struct {
	*world
	containers containers.ContainersClient
	tasks      tasks.TasksClient
	versions   versions.VersionClient
}

func (w *world) observer(socket string) *observer {
	conn := connect(w.t, socket)
	return &observer{w, containers.NewContainersClient(conn), tasks.NewTasksClient(conn), versions.NewVersionClient(conn)}
}

// kind is "sandbox" for what stands for a pod's network. Everything that
// cAdvisor reads of a container is looked at on the way.
func (o *observer) kind(id string, want map[string]string, image string) string {
	o.t.Helper()
	r, err := o.containers.Get(o.ctx, &containers.GetContainerRequest{ID: id}, grpc.WaitForReady(true))
	if err != nil {
		o.t.Fatal(err)
	}
	c := r.Container
	for key, value := range want {
		if c.Labels[key] != value {
			o.t.Errorf("label %s of %s is %q, not %q", key, id, c.Labels[key], value)
		}
	}
	var spec specs.Spec
	if err := json.Unmarshal(c.Spec.GetValue(), &spec); err != nil || spec.Process == nil {
		o.t.Errorf("spec %s: %v", c.Spec.GetValue(), err)
	}
	if c.ID != id || c.Image != image || c.CreatedAt.AsTime().Unix() == 0 {
		o.t.Errorf("container %v", c)
	}
	p, err := o.tasks.Get(o.ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		o.t.Fatal(err)
	}
	if p.Process.Status != task.Status_RUNNING {
		o.t.Errorf("process %v", p.Process)
	}
	// cAdvisor has the ID from the name of the control group.
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Process.Pid))
	if err != nil || !strings.Contains(string(groups), id) {
		o.t.Errorf("process %d of %s is in %s, %v", p.Process.Pid, id, groups, err)
	}
	return c.Labels["io.cri-containerd.kind"]
}

// TestContainersHaveNames: a kubelet's /metrics/cadvisor has the names of pods
// and containers, and each pod's network once, though cAdvisor knows no CRI.
func TestContainersHaveNames(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "containerd.sock")
	w := newWorld(t, fmt.Sprintf("cadvisor_socket = %q\n", socket))
	o := w.observer(socket)
	if v, err := o.versions.Version(w.ctx, &emptypb.Empty{}); err != nil || v.Version == "" {
		t.Fatalf("Version: %v, %v", v, err)
	}
	if v, err := w.observer(w.d.Socket).versions.Version(w.ctx, &emptypb.Empty{}); err != nil || v.Version == "" {
		t.Fatalf("Version at the CRI's socket: %v, %v", v, err)
	}
	// Nobody is to take the socket for containerd's CRI.
	_, err := runtimeapi.NewRuntimeServiceClient(connect(t, socket)).Version(w.ctx, &runtimeapi.VersionRequest{})
	want(t, err, codes.Unimplemented, "unknown service")
	id64 := strings.Repeat("a", 64)
	if _, err := o.containers.Get(w.ctx, &containers.GetContainerRequest{ID: id64}); codeOf(err) != codes.NotFound {
		t.Errorf("a container that is not there: %v", err)
	}
	if _, err := o.tasks.Get(w.ctx, &tasks.GetRequest{ContainerID: id64}); codeOf(err) != codes.NotFound {
		t.Errorf("a process that is not there: %v", err)
	}

	podID, pod := w.pod("named")
	start := func(name string) (string, map[string]string) {
		labels := map[string]string{"io.kubernetes.pod.name": "named", "io.kubernetes.container.name": name}
		config := w.config(name, "sleep", "1000")
		config.Labels = labels
		return w.run(podID, pod, config), labels
	}
	check := func(want, id string, labels map[string]string) {
		t.Helper()
		if got := o.kind(id, labels, w.image); got != want {
			t.Errorf("%s is a %s, not a %s", labels["io.kubernetes.container.name"], got, want)
		}
	}
	web, ofWeb := start("web")
	side, ofSide := start("side")
	check("sandbox", web, ofWeb)
	check("container", side, ofSide)
	w.restart()
	check("container", side, ofSide)
	check("sandbox", web, ofWeb)
	if err := w.stop(web, 0); err != nil {
		t.Fatal(err)
	}
	p, err := o.tasks.Get(w.ctx, &tasks.GetRequest{ContainerID: web})
	if err != nil || p.Process.Status != task.Status_STOPPED || p.Process.ExitStatus != 137 {
		t.Errorf("of a container that was killed: %v, %v", p, err)
	}
	next, ofNext := start("next")
	check("sandbox", next, ofNext)

	// A pod with a process of its own needs no container for that.
	sharedID, shared := w.pod("shared", func(c *runtimeapi.PodSandboxConfig) {
		c.Labels = map[string]string{"io.kubernetes.pod.name": "shared"}
		c.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}}
	})
	in := w.config("in", "sleep", "1000")
	in.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: shared.Linux.SecurityContext.NamespaceOptions}}
	check("container", w.run(sharedID, shared, in), nil)
	if got := o.kind(sharedID, shared.Labels, ""); got != "sandbox" {
		t.Errorf("a pod with a process of its own is a %s", got)
	}
}

// TestSocketOfAnother: a socket that another program serves stays its own, and
// the node's status says so.
func TestSocketOfAnother(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWorld(t, fmt.Sprintf("cadvisor_socket = %q\n", socket))
	if c := w.trouble(); c.GetStatus() || !strings.Contains(c.GetMessage(), "another program serves "+socket) {
		t.Errorf("the condition says %v", c)
	}
	if err := w.d.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Error(err)
	}
	if err := w.d.Start(); err != nil { // for the cleanup
		t.Error(err)
	}
}
