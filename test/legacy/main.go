// Command legacy drives a pod's whole life over v1alpha2 of the CRI, by the
// client code that kubelets up to 1.25 were built with: cri-api 0.25 and its
// gRPC, unchanged. It is a module of its own, since one program cannot have
// two versions of cri-api.
//
//	legacy -endpoint unix:///… -image IMAGE -logs DIRECTORY [-choose VERSION]
//
// It ends with 0 if each step did what it should, else with 1 and the reason.
// The image is removed in the end. The other way round,
//
//	legacy -serve PATH -versions v1,v1alpha2
//
// answers as an old runtime does, for clients of today.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	old "k8s.io/cri-api/pkg/apis/runtime/v1alpha2"
)

func main() {
	endpoint := flag.String("endpoint", "", "CRI `socket`, unix:///…")
	image := flag.String("image", "", "`image` with busybox; it is removed in the end")
	logs := flag.String("logs", "", "`directory` for logs")
	choice := flag.String("choose", "", "the `version` that a kubelet of 1.23 to 1.25 must choose, v1 or v1alpha2")
	path := flag.String("serve", "", "be a runtime that answers at this `path`")
	versions := flag.String("versions", "v1alpha2", "`versions` that it serves, v1, v1alpha2 or both, with a comma")
	flag.Parse()
	if *path != "" {
		fmt.Fprintln(os.Stderr, "legacy:", serve(*path, strings.Split(*versions, ",")))
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, *endpoint, *image, *logs, *choice); err != nil {
		fmt.Fprintln(os.Stderr, "legacy:", err)
		os.Exit(1)
	}
}

// A client is what such a kubelet has.
type client struct {
	runtime old.RuntimeServiceClient
	images  old.ImageServiceClient
	logs    string
	image   string
}

func run(ctx context.Context, endpoint, image, logs, choice string) error {
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", address)
	}
	conn, err := grpc.DialContext(ctx, strings.TrimPrefix(endpoint, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if choice != "" {
		if err := choose(ctx, conn, choice); err != nil {
			return err
		}
	}
	c := &client{old.NewRuntimeServiceClient(conn), old.NewImageServiceClient(conn), logs, image}
	return c.life(ctx)
}

// choose asks as a kubelet of 1.23 to 1.25 does: v1alpha2 is for runtimes that
// answer v1 by Unimplemented, and for no others.
func choose(ctx context.Context, conn *grpc.ClientConn, want string) error {
	_, runtimeErr := v1.NewRuntimeServiceClient(conn).Version(ctx, &v1.VersionRequest{})
	_, imageErr := v1.NewImageServiceClient(conn).ImageFsInfo(ctx, &v1.ImageFsInfoRequest{})
	for _, err := range []error{runtimeErr, imageErr} {
		got := "v1"
		if err != nil {
			got = "v1alpha2"
			if status.Code(err) != codes.Unimplemented {
				return fmt.Errorf("a kubelet would give up: %w", err)
			}
		}
		if got != want {
			return fmt.Errorf("a kubelet would choose %s (%v), not %s", got, err, want)
		}
	}
	return nil
}

func (c *client) life(ctx context.Context) error {
	v, err := c.runtime.Version(ctx, &old.VersionRequest{Version: "0.1.0"})
	if err != nil || v.Version != "0.1.0" || v.RuntimeApiVersion != "v1alpha2" || v.RuntimeName == "" || v.RuntimeVersion == "" {
		return fmt.Errorf("Version: %v, %v", v, err)
	}
	s, err := c.runtime.Status(ctx, &old.StatusRequest{})
	if err != nil || len(s.Status.GetConditions()) < 2 {
		return fmt.Errorf("Status: %v, %v", s, err)
	}
	if _, err := c.runtime.UpdateRuntimeConfig(ctx, &old.UpdateRuntimeConfigRequest{RuntimeConfig: &old.RuntimeConfig{NetworkConfig: &old.NetworkConfig{}}}); err != nil {
		return fmt.Errorf("UpdateRuntimeConfig: %w", err)
	}
	ref, err := c.pull(ctx)
	if err != nil {
		return err
	}
	config := &old.PodSandboxConfig{
		Metadata: &old.PodSandboxMetadata{Name: "legacy", Namespace: "legacy", Uid: fmt.Sprint("legacy-", os.Getpid())}, Hostname: "legacy",
		LogDirectory: c.logs, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
		Linux: &old.LinuxPodSandboxConfig{SecurityContext: &old.LinuxSandboxSecurityContext{
			NamespaceOptions: &old.NamespaceOption{Pid: old.NamespaceMode_CONTAINER}, SeccompProfilePath: "runtime/default",
		}},
	}
	pod, err := c.runtime.RunPodSandbox(ctx, &old.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("RunPodSandbox: %w", err)
	}
	err = c.inPod(ctx, pod.PodSandboxId, config, ref)
	return errors.Join(err, c.end(ctx, pod.PodSandboxId, ref))
}

func (c *client) pull(ctx context.Context) (ref string, err error) {
	spec := &old.ImageSpec{Image: c.image}
	r, err := c.images.PullImage(ctx, &old.PullImageRequest{Image: spec})
	if err != nil {
		return "", fmt.Errorf("PullImage: %w", err)
	}
	i, err := c.images.ImageStatus(ctx, &old.ImageStatusRequest{Image: spec})
	if err != nil || i.Image.GetId() != r.ImageRef || i.Image.Size_ == 0 {
		return "", fmt.Errorf("ImageStatus: %v, %v; pulled %s", i, err, r.ImageRef)
	}
	list, err := c.images.ListImages(ctx, &old.ListImagesRequest{Filter: &old.ImageFilter{Image: spec}})
	if err != nil || len(list.Images) != 1 {
		return "", fmt.Errorf("ListImages: %v, %v", list, err)
	}
	fs, err := c.images.ImageFsInfo(ctx, &old.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) == 0 || fs.ImageFilesystems[0].UsedBytes.GetValue() == 0 {
		return "", fmt.Errorf("ImageFsInfo: %v, %v", fs, err)
	}
	return r.ImageRef, nil
}

func (c *client) inPod(ctx context.Context, podID string, pod *old.PodSandboxConfig, ref string) error {
	s, err := c.runtime.PodSandboxStatus(ctx, &old.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil || s.Status.State != old.PodSandboxState_SANDBOX_READY || s.Status.Metadata.Name != "legacy" || s.Status.Labels["a"] != "b" || s.Status.CreatedAt == 0 {
		return fmt.Errorf("PodSandboxStatus: %v, %v", s, err)
	}
	list, err := c.runtime.ListPodSandbox(ctx, &old.ListPodSandboxRequest{Filter: &old.PodSandboxFilter{Id: podID}})
	if err != nil || len(list.Items) != 1 || list.Items[0].Annotations["c"] != "d" {
		return fmt.Errorf("ListPodSandbox: %v, %v", list, err)
	}
	created, err := c.runtime.CreateContainer(ctx, &old.CreateContainerRequest{PodSandboxId: podID, SandboxConfig: pod, Config: &old.ContainerConfig{
		Metadata: &old.ContainerMetadata{Name: "main"}, Image: &old.ImageSpec{Image: ref}, LogPath: "main.log",
		Command: []string{"sh", "-c", "echo $GREETING; trap 'exit 5' TERM; while :; do sleep 0.1; done"},
		Envs:    []*old.KeyValue{{Key: "GREETING", Value: "hello"}},
		Linux: &old.LinuxContainerConfig{
			Resources: &old.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &old.LinuxContainerSecurityContext{
				NamespaceOptions: &old.NamespaceOption{Pid: old.NamespaceMode_CONTAINER}, SeccompProfilePath: "runtime/default",
				RunAsUser: &old.Int64Value{Value: 1000}, NoNewPrivs: true,
			},
		},
	}})
	if err != nil {
		return fmt.Errorf("CreateContainer: %w", err)
	}
	id := created.ContainerId
	if _, err := c.runtime.StartContainer(ctx, &old.StartContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("StartContainer: %w", err)
	}
	if err := errors.Join(c.inspect(ctx, podID, id), c.exec(ctx, id)); err != nil {
		return err
	}
	return c.stop(ctx, id)
}

// inspect reads all that can be read of a running container.
func (c *client) inspect(ctx context.Context, podID, id string) error {
	s, err := c.runtime.ContainerStatus(ctx, &old.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil || s.Status.State != old.ContainerState_CONTAINER_RUNNING || s.Status.StartedAt == 0 || s.Status.ImageRef == "" || s.Info["info"] == "" {
		return fmt.Errorf("ContainerStatus: %v, %v", s, err)
	}
	list, err := c.runtime.ListContainers(ctx, &old.ListContainersRequest{Filter: &old.ContainerFilter{PodSandboxId: podID}})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != id {
		return fmt.Errorf("ListContainers: %v, %v", list, err)
	}
	stats, err := c.runtime.ContainerStats(ctx, &old.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || stats.Stats.GetMemory().GetWorkingSetBytes() == nil {
		return fmt.Errorf("ContainerStats: %v, %v", stats, err)
	}
	all, err := c.runtime.ListContainerStats(ctx, &old.ListContainerStatsRequest{Filter: &old.ContainerStatsFilter{PodSandboxId: podID}})
	if err != nil || len(all.Stats) != 1 {
		return fmt.Errorf("ListContainerStats: %v, %v", all, err)
	}
	pod, err := c.runtime.PodSandboxStats(ctx, &old.PodSandboxStatsRequest{PodSandboxId: podID})
	if err != nil || pod.Stats.GetLinux().GetNetwork().GetDefaultInterface() == nil {
		return fmt.Errorf("PodSandboxStats: %v, %v", pod, err)
	}
	pods, err := c.runtime.ListPodSandboxStats(ctx, &old.ListPodSandboxStatsRequest{Filter: &old.PodSandboxStatsFilter{Id: podID}})
	if err != nil || len(pods.Stats) != 1 {
		return fmt.Errorf("ListPodSandboxStats: %v, %v", pods, err)
	}
	return nil
}

func (c *client) exec(ctx context.Context, id string) error {
	r, err := c.runtime.ExecSync(ctx, &old.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "id -u; exit 3"}, Timeout: 10})
	if err != nil || r.ExitCode != 3 || string(r.Stdout) != "1000\n" {
		return fmt.Errorf("ExecSync: %v, %v", r, err)
	}
	_, err = c.runtime.ExecSync(ctx, &old.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "100"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("ExecSync beyond its limit: %w", err)
	}
	stream, err := c.runtime.Exec(ctx, &old.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	if err != nil || !strings.HasPrefix(stream.Url, "http") {
		return fmt.Errorf("Exec: %v, %v", stream, err)
	}
	attach, err := c.runtime.Attach(ctx, &old.AttachRequest{ContainerId: id, Stdout: true})
	if err != nil || !strings.HasPrefix(attach.Url, "http") {
		return fmt.Errorf("Attach: %v, %v", attach, err)
	}
	_, err = c.runtime.UpdateContainerResources(ctx, &old.UpdateContainerResourcesRequest{ContainerId: id, Linux: &old.LinuxContainerResources{CpuShares: 200}})
	if err != nil {
		return fmt.Errorf("UpdateContainerResources: %w", err)
	}
	if _, err := c.runtime.ReopenContainerLog(ctx, &old.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("ReopenContainerLog: %w", err)
	}
	return nil
}

// stop ends a container by its signal and removes it.
func (c *client) stop(ctx context.Context, id string) error {
	if _, err := c.runtime.StopContainer(ctx, &old.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		return fmt.Errorf("StopContainer: %w", err)
	}
	s, err := c.runtime.ContainerStatus(ctx, &old.ContainerStatusRequest{ContainerId: id})
	if err != nil || s.Status.State != old.ContainerState_CONTAINER_EXITED || s.Status.ExitCode != 5 || s.Status.FinishedAt == 0 || s.Status.Reason != "Error" {
		return fmt.Errorf("ContainerStatus after the end: %v, %v", s, err)
	}
	log, err := os.ReadFile(filepath.Join(c.logs, "main.log"))
	if err != nil || !strings.HasSuffix(string(log), " stdout F hello\n") {
		return fmt.Errorf("log: %q, %v", log, err)
	}
	for range 2 {
		if _, err := c.runtime.RemoveContainer(ctx, &old.RemoveContainerRequest{ContainerId: id}); err != nil {
			return fmt.Errorf("RemoveContainer: %w", err)
		}
	}
	if _, err := c.runtime.ContainerStatus(ctx, &old.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.NotFound {
		return fmt.Errorf("ContainerStatus after the removal: %w", err)
	}
	return nil
}

// end stops and removes the pod, and removes the image.
func (c *client) end(ctx context.Context, podID, ref string) error {
	for range 2 {
		if _, err := c.runtime.StopPodSandbox(ctx, &old.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
			return fmt.Errorf("StopPodSandbox: %w", err)
		}
	}
	s, err := c.runtime.PodSandboxStatus(ctx, &old.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil || s.Status.State != old.PodSandboxState_SANDBOX_NOTREADY {
		return fmt.Errorf("PodSandboxStatus after the stop: %v, %v", s, err)
	}
	for range 2 {
		if _, err := c.runtime.RemovePodSandbox(ctx, &old.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
			return fmt.Errorf("RemovePodSandbox: %w", err)
		}
	}
	if _, err := c.images.RemoveImage(ctx, &old.RemoveImageRequest{Image: &old.ImageSpec{Image: ref}}); err != nil {
		return fmt.Errorf("RemoveImage: %w", err)
	}
	i, err := c.images.ImageStatus(ctx, &old.ImageStatusRequest{Image: &old.ImageSpec{Image: c.image}})
	if err != nil || i.Image != nil {
		return fmt.Errorf("ImageStatus after the removal: %v, %v", i, err)
	}
	return nil
}
