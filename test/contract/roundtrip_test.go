package contract

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// texts are labels and annotations that must come back as they went, byte for
// byte: what Kubernetes lets through from every runtime, anything from davit.
func texts() (labels, annotations map[string]string) {
	labels = map[string]string{
		"n": "1", "empty": "", "pod.kubernetes.io/x": "A_b-c.d", strings.Repeat("d", 253) + "/" + strings.Repeat("k", 63): strings.Repeat("v", 63),
	}
	annotations = map[string]string{
		"n": "1", "empty": "", "pod.kubernetes.io/x": "1", "json": `{"a": "<&>"}`, "odd": "ü\u2028 \t \r\n", "long": strings.Repeat("v", 100_000),
	}
	if foreign {
		return labels, annotations
	}
	odd := map[string]string{"odd ü": "\u2028 \t ", "": "", "line\nbreak": "\r\n", "nul\x00": "a\x00b", strings.Repeat("k", 300): strings.Repeat("v", 100_000)}
	maps.Copy(labels, odd)
	maps.Copy(annotations, odd)
	return labels, annotations
}

// kept requires the labels that were asked for, and exactly the annotations.
func kept(t *testing.T, labels, askedLabels, annotations, askedAnnotations map[string]string) {
	t.Helper()
	if !maps.Equal(annotations, askedAnnotations) {
		t.Errorf("annotations %q, want %q", annotations, askedAnnotations)
	}
	for key, value := range askedLabels {
		if got, there := labels[key]; !there || got != value {
			t.Errorf("label %q: %q, want %q", key, got, value)
		}
	}
	if len(labels) != len(askedLabels) {
		differs(t, "labels %q, want %q", labels, askedLabels)
	}
}

// TestPodRoundTrip: what a pod was asked for with is what its status and its
// place in the list say.
func TestPodRoundTrip(t *testing.T) {
	w := shared(t)
	id, pod := w.pod("roundtrip", func(c *runtimeapi.PodSandboxConfig) {
		c.Metadata.Attempt = 7
		c.Labels, c.Annotations = texts()
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
			Pid: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_NODE,
		}
	})
	r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Status
	asked := &runtimeapi.PodSandboxStatus{
		Id: id, Metadata: pod.Metadata,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: pod.Linux.SecurityContext.NamespaceOptions}},
	}
	got := &runtimeapi.PodSandboxStatus{Id: s.Id, Metadata: s.Metadata, Linux: s.Linux}
	if !proto.Equal(asked, got) {
		t.Errorf("%v\nwant %v", got, asked)
	}
	kept(t, s.Labels, pod.Labels, s.Annotations, pod.Annotations)
	if s.CreatedAt == 0 || s.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.Network.GetIp() == "" {
		t.Errorf("%v", s)
	}
	if r.Timestamp == 0 {
		differs(t, "no timestamp in the status")
	}
	pods, err := w.pods(w.ctx)
	if err != nil || len(pods) != 1 {
		t.Fatal(pods, err)
	}
	listed := &runtimeapi.PodSandbox{
		Id: id, Metadata: pod.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations,
		RuntimeHandler: pods[0].RuntimeHandler,
	}
	if !proto.Equal(pods[0], listed) {
		t.Errorf("%v\nwant %v", pods[0], listed)
	}
	ctr := w.run(id, pod, w.config("main", "sleep", "1000"))
	w.restart()
	again, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil || !proto.Equal(again.Status, s) {
		t.Errorf("later %v\nbefore %v", again, s)
	}
	if n := len(again.ContainersStatuses); n != 1 || !proto.Equal(again.ContainersStatuses[0], w.status(ctr)) {
		differs(t, "statuses of containers in the pod's: %v", again.ContainersStatuses)
	}
}

// TestContainerRoundTrip: what a container was asked for with is what its
// status and its place in the list say.
func TestContainerRoundTrip(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("roundtrip")
	dir := t.TempDir()
	c := w.config("main", "sleep", "1000")
	c.Metadata.Attempt = 3
	c.Labels, c.Annotations = texts()
	c.Image.UserSpecifiedImage = "named.example/by-the-user:1"
	c.Mounts = []*runtimeapi.Mount{
		{HostPath: dir, ContainerPath: "/a", Readonly: true}, {HostPath: "/bin", ContainerPath: "/b", Propagation: runtimeapi.MountPropagation_PROPAGATION_PRIVATE},
	}
	c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR2
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500}
	c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 7}, &runtimeapi.Int64Value{Value: 8}
	c.Linux.SecurityContext.SupplementalGroups = []int64{9, 10}
	id, err := w.create(podID, pod, c)
	if err != nil {
		t.Fatal(err)
	}
	s := w.status(id)
	if s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 || s.FinishedAt != 0 || s.ExitCode != 0 {
		t.Errorf("created: %v", s)
	}
	if err := w.start(id); err != nil {
		t.Fatal(err)
	}
	s = w.status(id)
	if s.Id != id || !proto.Equal(s.Metadata, c.Metadata) || s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", s)
	}
	kept(t, s.Labels, c.Labels, s.Annotations, c.Annotations)
	if s.StartedAt < s.CreatedAt || s.FinishedAt != 0 || s.LogPath != pod.LogDirectory+"/"+c.LogPath {
		t.Errorf("times %d, %d, %d, log %s", s.CreatedAt, s.StartedAt, s.FinishedAt, s.LogPath)
	}
	image := w.imageStatus(w.image).GetId()
	if s.Image.GetImage() == "" || s.ImageRef == "" || s.ImageId != image {
		t.Errorf("image %v, %s, %s; want %s", s.Image, s.ImageRef, s.ImageId, image)
	}
	if s.StopSignal != c.StopSignal || s.ImageRef != image {
		differs(t, "stop signal %s, image ref %s", s.StopSignal, s.ImageRef)
	}
	told(t, s.Mounts, c.Mounts)
	user := &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 7, Gid: 8, SupplementalGroups: []int64{8, 9, 10}}}
	if slices.Sort(s.User.GetLinux().GetSupplementalGroups()); !proto.Equal(s.User, user) {
		differs(t, "user %v, want %v", s.User, user)
	}
	if res, want := s.Resources.GetLinux(), c.Linux.Resources; res.GetCpuPeriod() != want.CpuPeriod || res.GetCpuQuota() != want.CpuQuota ||
		res.GetCpuShares() != want.CpuShares || res.GetMemoryLimitInBytes() != want.MemoryLimitInBytes {
		t.Errorf("resources %v, want %v", s.Resources, want)
	}
	list, err := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
	if err != nil || len(list.Containers) != 1 {
		t.Fatal(list, err)
	}
	listed := &runtimeapi.Container{
		Id: id, PodSandboxId: podID, Metadata: c.Metadata, Image: list.Containers[0].Image, ImageRef: s.ImageRef, ImageId: s.ImageId, State: s.State,
		CreatedAt: s.CreatedAt, Labels: c.Labels, Annotations: c.Annotations,
	}
	if !proto.Equal(list.Containers[0], listed) {
		differs(t, "listed as %v\nwant %v", list.Containers[0], listed)
	}
	w.restart()
	if after := w.status(id); !proto.Equal(after, s) {
		t.Errorf("later %v\nbefore %v", after, s)
	}
}

// TestVerbose: what crictl shows of pods, containers and the runtime is JSON,
// and is there when asked for, and only then.
func TestVerbose(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("verbose", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 77}
	})
	config := w.config("main", "sleep", "1000")
	config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
	ctr := w.run(podID, pod, config)
	parse := func(what string, info map[string]string, keys ...string) map[string]any {
		t.Helper()
		var parsed map[string]any
		if err := json.Unmarshal([]byte(info["info"]), &parsed); err != nil {
			differs(t, "%s: info is not JSON: %v\n%s", what, err, info["info"])
		}
		for _, key := range keys {
			if _, there := parsed[key]; !there {
				differs(t, "%s: info has no %s", what, key)
			}
		}
		return parsed
	}
	p, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	parse("pod", p.Info, "pid", "runtimeSpec", "config")
	c, err := w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	info := parse("container", c.Info, "pid", "runtimeSpec", "config", "sandboxID")
	if pid, _ := info["pid"].(float64); pid < 2 || info["sandboxID"] != podID {
		differs(t, "container: pid %v, sandboxID %v, want %s", info["pid"], info["sandboxID"], podID)
	}
	s, err := w.c.RuntimeServiceClient.Status(w.ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || len(s.Info) == 0 {
		t.Errorf("%v, %v", s, err)
	}
	for key, text := range s.Info {
		if !json.Valid([]byte(text)) && strings.HasPrefix(text, "{") {
			t.Errorf("Status: info %s is not JSON: %s", key, text)
		}
	}
	i, err := w.c.ImageStatus(w.ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: w.image}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	parse("image", i.Info, "imageSpec")
	plain, err := w.c.ContainerStatus(w.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr})
	if err != nil || len(plain.Info) > 0 {
		t.Errorf("info that nobody asked for: %v, %v", plain.GetInfo(), err)
	}
	plainPod, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil || len(plainPod.Info) > 0 {
		t.Errorf("info that nobody asked for: %v, %v", plainPod.GetInfo(), err)
	}
}

// TestStatus: the kubelet's conditions and handlers are there, davit's in the
// same order each time, and features are told.
func TestStatus(t *testing.T) {
	w := shared(t)
	var first *runtimeapi.StatusResponse
	for range 5 {
		r, err := w.c.RuntimeServiceClient.Status(w.ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = r
		}
		if proto.Equal(first, r) {
			continue
		}
		differs(t, "%v\nthen %v", first, r)
		if len(first.RuntimeHandlers) != len(r.RuntimeHandlers) || !proto.Equal(first.Status, r.Status) || !proto.Equal(first.Features, r.Features) {
			t.Errorf("%v\nthen %v", first, r)
		}
	}
	ready := map[string]bool{}
	for _, c := range first.Status.GetConditions() {
		ready[c.Type] = c.Status
	}
	if !ready["RuntimeReady"] || !ready["NetworkReady"] || len(first.Info) > 0 {
		t.Errorf("%v", first)
	}
	var names []string
	for _, h := range first.RuntimeHandlers {
		if names = append(names, h.Name); h.Features == nil {
			differs(t, "handler %q tells no features", h.Name)
		}
	}
	if !slices.IsSorted(names) || !slices.Contains(names, "") || len(slices.Compact(slices.Clone(names))) != len(names) {
		differs(t, "handlers %q", names)
	}
	if f := first.Features; f == nil || !f.SupplementalGroupsPolicy {
		differs(t, "features %v", first.Features)
	}
	v, err := w.c.Version(w.ctx, &runtimeapi.VersionRequest{Version: "0.1.0"})
	if err != nil || v.Version != "0.1.0" || v.RuntimeName == "" || v.RuntimeVersion == "" || v.RuntimeApiVersion != "v1" {
		t.Errorf("%v, %v", v, err)
	}
	c, err := w.c.RuntimeConfig(w.ctx, &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.Linux == nil {
		t.Errorf("%v, %v", c, err)
	}
	_, err = os.Stat("/run/systemd/system")
	if systemd := err == nil; w.d != nil && systemd != (c.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD) {
		t.Errorf("cgroup driver %s, systemd runs here: %t", c.GetLinux().GetCgroupDriver(), systemd)
	}
}
