package cri

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/pod"
)

func equal(t *testing.T, got, want proto.Message) {
	t.Helper()
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestVersion(t *testing.T) {
	rt, _, _, _ := server(t, &world{})
	got := must[*runtimeapi.VersionResponse](t)(rt.Version(context.Background(), &runtimeapi.VersionRequest{}))
	equal(t, got, parse(t, &runtimeapi.VersionResponse{},
		`version: "0.1.0" runtime_name: "davit" runtime_version: "1.2.3" runtime_api_version: "v1"`))
}

func TestStatus(t *testing.T) {
	rt, _, conn, _ := server(t, &world{troubles: strings.Split("abcdefghijkl", "")})
	got := must[*runtimeapi.StatusResponse](t)(rt.Status(context.Background(), &runtimeapi.StatusRequest{Verbose: true}))
	if got.Info["config"] != `{"maxContainerLogLineSize":16384}` || !json.Valid([]byte(got.Info["golang"])) ||
		got.Info["davit"] != `{"containers":{"running":0},"events":{"lost":0,"readers":0},"images":0,"pods":{"ready":0},"version":"1.2.3"}` {
		t.Errorf("info %q", got.Info)
	}
	got.Info = nil
	equal(t, got, parse(t, &runtimeapi.StatusResponse{}, `
		status {
			conditions { type: "RuntimeReady" status: true }
			conditions { type: "NetworkReady" reason: "NetworkNotReady" message: "no CNI plugin bridge in /opt/cni/bin" }
			conditions { type: "DavitHasNoTrouble" reason: "Trouble" message: "a; b; c; d; e; f; g; h; i; j; and 2 more" }
		}
		runtime_handlers { features { recursive_read_only_mounts: true user_namespaces: true } }
		runtime_handlers { name: "crun" features { recursive_read_only_mounts: true user_namespaces: true } }
		runtime_handlers { name: "runc" features { } }
		features { supplemental_groups_policy: true mount_options: true }`))
	config := must[*runtimeapi.RuntimeConfigResponse](t)(rt.RuntimeConfig(context.Background(), &runtimeapi.RuntimeConfigRequest{}))
	equal(t, config, parse(t, &runtimeapi.RuntimeConfigResponse{}, `linux { cgroup_driver: CGROUPFS }`))
	h, err := healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{Service: "runtime.v1.ImageService"})
	if err != nil || h.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
}

func fullWorld(t *testing.T) *world {
	p := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod, `labels { key: "app" value: "web" } annotations { key: "a" value: "b" }
		linux { security_context { namespace_options { pid: CONTAINER } } resources { cpu_shares: 7 } }`)
	q := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod, `metadata { attempt: 1 }`)
	c := parse(t, &runtimeapi.ContainerConfig{}, goodContainer, `labels { key: "c" value: "1" }
		image { user_specified_image: "docker.io/nginx" annotations { key: "i" value: "j" } }
		envs { key: "K" value: "text" } mounts { container_path: "/data" host_path: "/srv" }`)
	return &world{
		pods: []*pod.Snapshot{
			{
				ID: "aa11", Config: p, Handler: "runc", State: pod.Ready, CreatedAt: time.Unix(1, 2), HolderPid: 77,
				Network: network.Result{
					Driver: "bridge", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
					Raw: json.RawMessage(`{"cniVersion":"1.0.0"}`),
				},
				Paths: map[string]string{"net": "/run/net", "ipc": "/run/ipc"},
			},
			{ID: "ab22", Config: q, State: pod.Preparing, CreatedAt: time.Unix(2, 0)},
		},
		containers: []*pod.ContainerSnapshot{
			{
				ID: "c1", PodID: "aa11", Config: c, ImageID: "sha256:0123", State: pod.Exited, Pid: 0,
				CreatedAt: time.Unix(3, 0), StartedAt: time.Unix(4, 0), FinishedAt: time.Unix(5, 0), ExitCode: 137,
				Reason: "OOMKilled", Message: "bad\xffbyte", StopSignal: "SIGRTMIN+3", LogPath: "/var/log/0.log",
				User:      ocispec.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 7}},
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: 5},
			},
			{ID: "c2", PodID: "aa11", Config: c, ImageID: "sha256:0123", State: pod.Running, Pid: 42, CreatedAt: time.Unix(6, 0), StartedAt: time.Unix(7, 0), StopSignal: "SIGTERM"},
			{ID: "c3", PodID: "ab22", Config: c, ImageID: "sha256:0123", State: pod.Preparing},
			{ID: "c4", PodID: "ab22", Config: c, ImageID: "sha256:0123", State: pod.Unknown, CreatedAt: time.Unix(8, 0)},
		},
		images: []image.Image{{
			ID: "sha256:0123", RepoTags: []string{"docker.io/library/nginx:1"}, RepoDigests: []string{"docker.io/library/nginx@sha256:45"},
			SizeBytes: 9, Pinned: true, Config: imagespec.Image{Config: imagespec.ImageConfig{User: "101:102"}},
		}, {ID: "sha256:4567", Config: imagespec.Image{Config: imagespec.ImageConfig{User: "www"}}}},
	}
}

func TestPodSandboxStatus(t *testing.T) {
	rt, _, _, _ := server(t, fullWorld(t))
	got := must[*runtimeapi.PodSandboxStatusResponse](t)(rt.PodSandboxStatus(context.Background(),
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: "aa11", Verbose: true}))
	equal(t, got.Status, parse(t, &runtimeapi.PodSandboxStatus{}, `
		id: "aa11" metadata { name: "web" namespace: "default" uid: "u-1" } state: SANDBOX_READY created_at: 1000000002
		network { ip: "10.0.0.2" additional_ips { ip: "fd00::2" } }
		linux { namespaces { options { pid: CONTAINER } } }
		labels { key: "app" value: "web" } annotations { key: "a" value: "b" } runtime_handler: "runc"`))
	if len(got.ContainersStatuses) != 2 || got.Timestamp == 0 {
		t.Errorf("%d container statuses at %d", len(got.ContainersStatuses), got.Timestamp)
	}
	var info struct {
		Pid         int
		CNIResult   struct{ CNIVersion string } `json:"cniResult"`
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
		Resources struct {
			Shares int `json:"cpu_shares"`
		}
	}
	if err := json.Unmarshal([]byte(got.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	if info.Pid != 77 || info.CNIResult.CNIVersion != "1.0.0" || info.Resources.Shares != 7 ||
		len(info.RuntimeSpec.Linux.Namespaces) != 2 || info.RuntimeSpec.Linux.Namespaces[1].Type != "network" {
		t.Errorf("info %s", got.Info["info"])
	}
}

func TestContainerStatus(t *testing.T) {
	ctx := context.Background()
	rt, _, _, _ := server(t, fullWorld(t))
	got := must[*runtimeapi.ContainerStatusResponse](t)(rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "c1"}))
	equal(t, got.Status, parse(t, &runtimeapi.ContainerStatus{}, `
		id: "c1" metadata { name: "app" } state: CONTAINER_EXITED
		created_at: 3000000000 started_at: 4000000000 finished_at: 5000000000 exit_code: 137
		image { image: "docker.io/nginx" user_specified_image: "docker.io/nginx" annotations { key: "i" value: "j" } }
		image_ref: "sha256:0123" image_id: "sha256:0123" reason: "OOMKilled" message: "bad�byte"
		labels { key: "c" value: "1" } mounts { container_path: "/data" host_path: "/srv" }
		log_path: "/var/log/0.log" resources { linux { cpu_shares: 5 } }
		user { linux { uid: 1000 gid: 1001 supplemental_groups: 1001 supplemental_groups: 7 } }
		stop_signal: SIGNAL_SIGRTMINPLUS3`))
	if len(got.Info) != 0 {
		t.Errorf("info without verbose: %v", got.Info)
	}
	verbose := must[*runtimeapi.ContainerStatusResponse](t)(rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "c2", Verbose: true}))
	for _, part := range []string{`"pid":42`, `"sandboxID":"aa11"`, `"runtimeSpec":{"ociVersion":"1.0.0"}`, `"value":"text"`} {
		if !strings.Contains(verbose.Info["info"], part) {
			t.Errorf("info lacks %s: %s", part, verbose.Info["info"])
		}
	}
	if s := verbose.Status; s.ExitCode != 0 || s.FinishedAt != 0 || s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a running container: %v", s)
	}
	_, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "c3"})
	want{codes.NotFound, ""}.check(t, err) // its creation has not ended
}

func TestStopSignals(t *testing.T) {
	for name, want := range map[string]runtimeapi.Signal{
		"SIGTERM": runtimeapi.Signal_SIGNAL_SIGTERM, "SIGRTMIN": runtimeapi.Signal_SIGNAL_SIGRTMIN,
		"SIGRTMIN+15": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15, "SIGRTMAX-14": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14,
		"": 0, "SIG99": 0,
	} {
		if got := stopSignal(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestLists(t *testing.T) {
	ctx := context.Background()
	rt, im, _, _ := server(t, fullWorld(t))
	for filter, want := range map[string]string{
		``: "aa11 ab22", `filter {}`: "aa11 ab22", `filter { id: "a" }`: "aa11 ab22", `filter { id: "aa1" }`: "aa11",
		`filter { id: "x" }`: "", `filter { id: "aa111" }`: "",
		`filter { state { state: SANDBOX_READY } }`: "aa11", `filter { state { state: SANDBOX_NOTREADY } }`: "ab22",
		`filter { label_selector { key: "app" value: "web" } }`: "aa11", `filter { label_selector { key: "app" value: "" } }`: "",
		`filter { id: "ab" label_selector { key: "app" value: "web" } }`: "",
	} {
		got := must[*runtimeapi.ListPodSandboxResponse](t)(rt.ListPodSandbox(ctx, parse(t, &runtimeapi.ListPodSandboxRequest{}, filter)))
		var ids []string
		for _, p := range got.Items {
			ids = append(ids, p.Id)
			if p.Metadata == nil || p.CreatedAt == 0 {
				t.Errorf("pod %v lacks what the kubelet needs", p)
			}
		}
		if strings.Join(ids, " ") != want {
			t.Errorf("pods by %q: %v, want %q", filter, ids, want)
		}
	}
	for filter, want := range map[string]string{
		``: "c1 c2 c4", `filter { id: "c" }`: "c1 c2 c4", `filter { id: "c3" }`: "", `filter { pod_sandbox_id: "aa" }`: "c1 c2",
		`filter { state { state: CONTAINER_RUNNING } }`: "c2", `filter { state { state: CONTAINER_UNKNOWN } }`: "c4",
		`filter { state { state: CONTAINER_CREATED } }`: "", `filter { label_selector { key: "c" value: "1" } }`: "c1 c2 c4",
		`filter { state { state: CONTAINER_EXITED } pod_sandbox_id: "ab22" }`: "",
	} {
		got := must[*runtimeapi.ListContainersResponse](t)(rt.ListContainers(ctx, parse(t, &runtimeapi.ListContainersRequest{}, filter)))
		var ids []string
		for _, c := range got.Containers {
			ids = append(ids, c.Id)
			if c.Metadata == nil || c.ImageId == "" || c.ImageRef == "" || c.Image.GetImage() == "" {
				t.Errorf("container %v lacks what the kubelet needs", c)
			}
		}
		if strings.Join(ids, " ") != want {
			t.Errorf("containers by %q: %v, want %q", filter, ids, want)
		}
	}
	for filter, want := range map[string]int{``: 2, `filter { image { image: "sha256:0123" } }`: 1, `filter { image { image: "x" } }`: 0, `filter { image {} }`: 2} {
		got := must[*runtimeapi.ListImagesResponse](t)(im.ListImages(ctx, parse(t, &runtimeapi.ListImagesRequest{}, filter)))
		if len(got.Images) != want {
			t.Errorf("images by %q: %v", filter, got.Images)
		}
	}
}

func TestImages(t *testing.T) {
	ctx := context.Background()
	w := fullWorld(t)
	_, im, _, _ := server(t, w)
	get := func(ref string) *runtimeapi.ImageStatusResponse {
		return must[*runtimeapi.ImageStatusResponse](t)(im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true}))
	}
	got := get("sha256:0123")
	equal(t, got.Image, parse(t, &runtimeapi.Image{}, `
		id: "sha256:0123" repo_tags: "docker.io/library/nginx:1" repo_digests: "docker.io/library/nginx@sha256:45"
		size: 9 uid { value: 101 } spec { image: "sha256:0123" } pinned: true`))
	equal(t, get("docker.io/library/nginx:1").Image, got.Image) // the same by whatever reference
	if !strings.Contains(got.Info["info"], `"User":"101:102"`) {
		t.Errorf("info %v", got.Info)
	}
	if named := get("sha256:4567").Image; named.Username != "www" || named.Uid != nil || named.Size == 0 {
		t.Errorf("image %v", named)
	}
	if absent := get("nothing"); absent.Image != nil {
		t.Errorf("an absent image: %v", absent)
	}
	pulled := must[*runtimeapi.PullImageResponse](t)(im.PullImage(ctx, parse(t, &runtimeapi.PullImageRequest{}, `image { image: "nginx" }`)))
	if pulled.ImageRef != "sha256:pulled" {
		t.Errorf("pulled %v", pulled)
	}
	fs := must[*runtimeapi.ImageFsInfoResponse](t)(im.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}))
	const usage = ` { timestamp: 7000000000 fs_id { mountpoint: "/images" } used_bytes { value: 5 } inodes_used { value: 6 } } `
	equal(t, fs, parse(t, &runtimeapi.ImageFsInfoResponse{}, "image_filesystems"+usage+`container_filesystems { timestamp: 6000000000 fs_id { mountpoint: "/images" } used_bytes { value: 8 } inodes_used { value: 9 } }`))
}

func TestCallsReachThePod(t *testing.T) {
	ctx := context.Background()
	w := fullWorld(t)
	rt, im, _, _ := server(t, w)
	call := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	call(rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: parse(t, &runtimeapi.PodSandboxConfig{}, goodPod), RuntimeHandler: "runc"}))
	call(rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "p"}))
	call(rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "p"}))
	call(rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "aa11", Config: parse(t, &runtimeapi.ContainerConfig{}, goodContainer)}))
	call(rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "c"}))
	call(rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c", Timeout: 1 << 62}))
	if w.grace <= 0 {
		t.Errorf("a long grace became %v", w.grace)
	}
	call(rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "c"}))
	call(rt.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "aa11", Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 2}, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 3},
	}))
	call(rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c", Linux: &runtimeapi.LinuxContainerResources{}}))
	call(rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: "c"}))
	exec := must[*runtimeapi.ExecSyncResponse](t)(rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c", Cmd: []string{"ls"}}))
	equal(t, exec, parse(t, &runtimeapi.ExecSyncResponse{}, `stdout: "out\xff" stderr: "err" exit_code: 3`))
	call(im.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "i"}}))
	if d := cmp.Diff([]string{
		"run runc", "stop p", "remove p", "create in aa11", "start c", "stop c", "remove c", "update pod aa11 2 3", "update c", "reopen c", "exec c ls", "remove i",
	}, w.done); d != "" {
		t.Error(d)
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	w := &world{}
	rt, _, _, _ := server(t, w)
	update := func(cidr string) error {
		_, err := rt.UpdateRuntimeConfig(context.Background(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	for _, cidr := range []string{"", " ", "10.244.1.0/24", "10.244.1.0/24, fd00:1::/64"} {
		if err := update(cidr); err != nil {
			t.Errorf("%q: %v", cidr, err)
		}
	}
	for _, cidr := range []string{"10.244.1.0", "x", "10.0.0.0/24,", "10.0.0.0/33", "10.0.0.0/24,10.1.0.0/24", "10.0.0.0/24,fd00::/64,fd01::/64", "::ffff:10.0.0.0/112"} {
		want{codes.InvalidArgument, "runtime_config.network_config.pod_cidr: "}.check(t, update(cidr))
	}
	if d := cmp.Diff([]string{"pod CIDR [10.244.1.0/24]", "pod CIDR [10.244.1.0/24 fd00:1::/64]"}, w.done); d != "" {
		t.Error(d)
	}
	if _, err := rt.UpdateRuntimeConfig(context.Background(), &runtimeapi.UpdateRuntimeConfigRequest{}); err != nil {
		t.Error(err)
	}
}

// What does not exist yet is named.
func TestUnimplemented(t *testing.T) {
	rt, _, _, _ := server(t, &world{})
	_, err := rt.CheckpointContainer(context.Background(), &runtimeapi.CheckpointContainerRequest{})
	want{codes.Unimplemented, "method CheckpointContainer not implemented"}.check(t, err)
}
