package contract

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// TestUnknown: what is not there is NotFound where something is asked of it,
// and success where it shall be gone.
func TestUnknown(t *testing.T) {
	w := newWorld(t, "")
	const id = "0123456789abcdef"
	gone := map[string]error{}
	_, gone["StopPodSandbox"] = w.c.StopPodSandbox(w.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	_, gone["RemovePodSandbox"] = w.c.RemovePodSandbox(w.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	gone["StopContainer"], gone["RemoveContainer"] = w.stop(id, 1), w.remove(id)
	_, gone["RemoveImage"] = w.c.RemoveImage(w.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "absent:1"}})
	r, err := w.c.ImageStatus(w.ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "absent:1"}})
	gone["ImageStatus"] = err
	if r.GetImage() != nil {
		t.Errorf("ImageStatus: %v", r)
	}
	for what, err := range gone {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	absent := map[string]error{"StartContainer": w.start(id)}
	_, absent["PodSandboxStatus"] = w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	_, absent["ContainerStatus"] = w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	_, absent["ExecSync"] = w.exec(id, 1, "true")
	_, absent["CreateContainer"] = w.create(id, nil, w.config("c"))
	_, absent["ReopenContainerLog"] = w.c.ReopenContainerLog(w.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	_, absent["UpdateContainerResources"] = w.c.UpdateContainerResources(w.ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 5},
	})
	for what, err := range absent {
		t.Run(what, func(t *testing.T) { want(t, err, codes.NotFound, id) })
	}
}

// TestPodsRefused: each mistake in a pod's configuration is told by its field.
func TestPodsRefused(t *testing.T) {
	w := newWorld(t, "")
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	file := w.d.Logs + "/file"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, _ = w.pod("taker", func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18080, ContainerPort: 80}}
	})
	for name, test := range map[string]struct {
		change func(*runtimeapi.PodSandboxConfig)
		code   codes.Code
		text   string
	}{
		"metadata":      {func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, codes.InvalidArgument, "metadata"},
		"name":          {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, "metadata.name"},
		"uid":           {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }, codes.InvalidArgument, "metadata.uid"},
		"sysctl":        {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, codes.InvalidArgument, "vm.swappiness"},
		"sysctl absent": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.no.such": "1"} }, codes.InvalidArgument, "net/no/such"},
		"sysctl value":  {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "x"} }, codes.InvalidArgument, "net/ipv4/ip_forward"},
		"hostname":      {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, codes.InvalidArgument, "hostname"},
		"log directory": {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "relative" }, codes.InvalidArgument, "log_directory"},
		"host port": {func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, codes.InvalidArgument, "host_port"},
		"host port taken": {func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18080, ContainerPort: 81}}
		}, codes.FailedPrecondition, "18080"},
		"cgroup parent": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/../x" }, codes.InvalidArgument, "cgroup_parent"},
		"pid target": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		}, codes.InvalidArgument, "pid"},
		"group without user": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		}, codes.InvalidArgument, "run_as_group"},
	} {
		t.Run(name, func(t *testing.T) {
			config := testkit.PodConfig("refused", w.d.Logs)
			test.change(config)
			_, err := w.c.RunPod(w.ctx, config)
			want(t, err, test.code, test.text)
			t.Log(err)
		})
	}
	_, err = w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: testkit.PodConfig("h", ""), RuntimeHandler: "nosuch"})
	want(t, err, codes.InvalidArgument, "nosuch")
	_, err = w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{})
	want(t, err, codes.InvalidArgument, "config")
	t.Run("log directory is a file", func(t *testing.T) {
		w := w.within(t)
		podID, pod := w.pod("filelog", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = file })
		_, err := w.create(podID, pod, w.config("c", "true"))
		want(t, err, codes.FailedPrecondition, file)
		t.Log(err)
	})
	t.Run("log path is a directory", func(t *testing.T) {
		w := w.within(t)
		podID, pod := w.pod("dirlog")
		config := w.config("c", "true")
		if err := os.MkdirAll(pod.LogDirectory+"/"+config.LogPath, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := w.create(podID, pod, config)
		want(t, err, codes.FailedPrecondition, config.LogPath)
		t.Log(err)
	})
	list, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v: want the one pod", list, err)
	}
}

// TestLists: filters by ID, prefix, state and labels, all at once; what was
// given comes back unchanged.
func TestLists(t *testing.T) {
	w := newWorld(t, "")
	var ids []string
	for i := range 3 {
		id, pod := w.pod(fmt.Sprintf("p%d", i), func(c *runtimeapi.PodSandboxConfig) {
			c.Labels = map[string]string{"n": fmt.Sprint(i), "all": "y", "odd ü": "\u2028 \x00 ", "": ""}
			c.Annotations = map[string]string{"big": strings.Repeat("x", 200_000)}
		})
		ids = append(ids, id)
		if _, err := w.create(id, pod, w.config("c", "true")); err != nil {
			t.Fatal(err)
		}
		r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id[:20], Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		s := r.Status
		asked := &runtimeapi.PodSandboxStatus{Metadata: pod.Metadata, Labels: pod.Labels, Annotations: pod.Annotations}
		got := &runtimeapi.PodSandboxStatus{Metadata: s.Metadata, Labels: s.Labels, Annotations: s.Annotations}
		if s.Id != id || !proto.Equal(asked, got) || s.CreatedAt == 0 || s.Network.GetIp() == "" || r.Timestamp == 0 || r.Info["info"] == "" {
			t.Errorf("%v", s)
		}
	}
	if _, err := w.c.StopPodSandbox(w.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: ids[0][:30]}); err != nil {
		t.Fatal(err)
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for name, test := range map[string]struct {
		filter *runtimeapi.PodSandboxFilter
		n      int
	}{
		"nil": {nil, 3}, "empty": {&runtimeapi.PodSandboxFilter{}, 3},
		"id":    {&runtimeapi.PodSandboxFilter{Id: ids[1]}, 1},
		"ready": {&runtimeapi.PodSandboxFilter{State: ready}, 2},
		"label": {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"all": "y", "n": "0"}}, 1},
		"and":   {&runtimeapi.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"n": "0"}}, 0},
		"none":  {&runtimeapi.PodSandboxFilter{Id: "zz"}, 0},
	} {
		r, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{Filter: test.filter})
		if err != nil || len(r.Items) != test.n {
			t.Errorf("%s: %d, %v; want %d", name, len(r.GetItems()), err, test.n)
		}
	}
	exited := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}
	r, err := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: ids[0], State: exited}})
	if err != nil || len(r.Containers) != 1 || r.Containers[0].ImageRef == "" || r.Containers[0].ImageId == "" {
		t.Errorf("containers of the stopped pod: %v, %v", r, err)
	}
}

// TestBigMessages: what fits into a message fits into a pod; a list that does
// not is refused without harm.
func TestBigMessages(t *testing.T) {
	w := newWorld(t, "")
	for i := range 2 {
		w.pod(fmt.Sprintf("big%d", i), func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"big": strings.Repeat("x", 9<<20)}
		})
	}
	_, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
	want(t, err, codes.ResourceExhausted)
	config := testkit.PodConfig("toobig", "")
	config.Annotations = map[string]string{"big": strings.Repeat("x", 17<<20)}
	_, err = w.c.RunPod(w.ctx, config)
	want(t, err, codes.ResourceExhausted)
	r, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}})
	if err != nil || len(r.Items) != 0 {
		t.Errorf("%v, %v", r, err)
	}
}

// TestPullsRefused: what a pull fails of is told as the kubelet reads it.
func TestPullsRefused(t *testing.T) {
	w := newWorld(t, "")
	host, _, _ := strings.Cut(w.image, "/")
	for ref, test := range map[string]struct {
		code codes.Code
		text string
	}{
		host + "/contract/busybox:absent": {codes.NotFound, "absent"},
		host + "/no/such/repository:1":    {codes.NotFound, "no/such/repository"},
		"127.0.0.1:1/contract/busybox:1":  {codes.Unknown, "desc = RegistryUnavailable: "},
		"NOT//an image":                   {codes.InvalidArgument, "NOT//an image"},
		"":                                {codes.InvalidArgument, "image"},
		host + "/contract/busybox@sha256:" + strings.Repeat("0", 64): {codes.NotFound, "sha256:000"},
	} {
		_, err := w.c.Pull(w.ctx, ref)
		want(t, err, test.code, test.text)
		t.Log(err)
	}
}
