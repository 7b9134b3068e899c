package crifake

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type container struct {
	*runtimeapi.ContainerStatus
	pod     *pod
	command []string
}

// Containers returns the statuses of all containers, oldest first.
func (r *Runtime) Containers() []*runtimeapi.ContainerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.ContainerStatus
	for _, c := range r.cons {
		out = append(out, proto.CloneOf(c.ContainerStatus))
	}
	return out
}

// Exit ends a running container with that code, as if its process had ended.
func (r *Runtime) Exit(id string, code int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.container(id); c != nil {
		r.end(c, code)
	}
}

// container finds by ID or the beginning of one. r.mu must be held.
func (r *Runtime) container(id string) *container {
	for _, c := range r.cons {
		if id != "" && strings.HasPrefix(c.Id, id) {
			return c
		}
	}
	return nil
}

// running finds a container that runs. r.mu must be held.
func (r *Runtime) running(id string) (*container, error) {
	c := r.container(id)
	switch {
	case c == nil:
		return nil, noContainer(id)
	case c.State != runtimeapi.ContainerState_CONTAINER_RUNNING:
		return nil, status.Errorf(codes.FailedPrecondition, "container %s does not run", id)
	}
	return c, nil
}

func noContainer(id string) error { return status.Errorf(codes.NotFound, "no container %q", id) }

// end makes c an exited container unless it is one. r.mu must be held.
func (r *Runtime) end(c *container, code int32) {
	if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		return
	}
	c.State, c.ExitCode, c.FinishedAt, c.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now().UnixNano(), "Completed"
	if code != 0 {
		c.Reason = "Error"
	}
	r.tell(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, c.Id, c.pod)
}

func (r runtimeService) CreateContainer(_ context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if q.GetConfig().GetMetadata() == nil {
		return nil, status.Error(codes.InvalidArgument, "config.metadata: is required")
	}
	for _, m := range q.Config.Mounts {
		if _, err := os.Stat(m.HostPath); m.Image == nil && err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pod(q.PodSandboxId)
	if p == nil {
		return nil, noPod(q.PodSandboxId)
	}
	if p.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s is not ready", p.Id)
	}
	i := r.image(q.Config.Image.GetImage())
	if i == nil {
		return nil, status.Errorf(codes.NotFound, "no image %q", q.Config.Image.GetImage())
	}
	c := &container{pod: p, command: q.Config.Command, ContainerStatus: &runtimeapi.ContainerStatus{
		Id: r.id("cc"), Metadata: q.Config.Metadata, CreatedAt: time.Now().UnixNano(), Image: q.Config.Image, ImageRef: i.Id, ImageId: i.Id,
		Labels: q.Config.Labels, Annotations: q.Config.Annotations, Mounts: q.Config.Mounts, LogPath: p.logPath(q.Config.LogPath),
		Resources: &runtimeapi.ContainerResources{Linux: q.Config.GetLinux().GetResources()},
	}}
	r.cons = append(r.cons, c)
	r.tell(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, c.Id, p)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.Id}, nil
}

func (r runtimeService) StartContainer(_ context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.container(q.ContainerId)
	if c == nil {
		return nil, noContainer(q.ContainerId)
	}
	if c.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s was started already", c.Id)
	}
	log := "2026-01-02T03:04:05.000000006Z stdout F " + c.Metadata.Name + " runs\n"
	code, ends := exitCommand(c.command)
	if ends {
		log += "2026-01-02T03:04:06Z stderr P it \n2026-01-02T03:04:07Z stderr F ends\n"
	}
	if c.LogPath != "" {
		if err := os.WriteFile(c.LogPath, []byte(log), 0o644); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	c.State, c.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	r.tell(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, c.Id, c.pod)
	if ends {
		r.end(c, code)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// exitCommand is the code of the command ["exit", N].
func exitCommand(command []string) (code int32, ok bool) {
	if len(command) < 2 || command[0] != "exit" {
		return 0, false
	}
	n, err := strconv.ParseInt(command[1], 10, 32)
	return int32(n), err == nil
}

func (r runtimeService) StopContainer(_ context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.container(q.ContainerId); c != nil {
		code := int32(143)
		if q.Timeout == 0 {
			code = 137
		}
		r.end(c, code)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r runtimeService) RemoveContainer(_ context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.container(q.ContainerId); c != nil {
		r.end(c, 137)
		r.cons = slices.DeleteFunc(r.cons, func(o *container) bool { return o == c })
		r.tell(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, c.Id, c.pod)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r runtimeService) ContainerStatus(_ context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.container(q.ContainerId)
	if c == nil {
		return nil, noContainer(q.ContainerId)
	}
	out := &runtimeapi.ContainerStatusResponse{Status: proto.CloneOf(c.ContainerStatus)}
	if q.Verbose {
		out.Info = r.info
	}
	return out, nil
}

// containersLike returns the containers that fit f.
func (r *Runtime) containersLike(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.Container
	for _, c := range r.cons {
		if !strings.HasPrefix(c.Id, f.GetId()) || !strings.HasPrefix(c.pod.Id, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.GetState().State != c.State || !fits(c.Labels, f.GetLabelSelector()) {
			continue
		}
		out = append(out, proto.CloneOf(&runtimeapi.Container{
			Id: c.Id, PodSandboxId: c.pod.Id, Metadata: c.Metadata, State: c.State, Image: c.Image, ImageRef: c.ImageRef, ImageId: c.ImageId,
			Labels: c.Labels, Annotations: c.Annotations, CreatedAt: c.CreatedAt,
		}))
	}
	return out
}

func (r runtimeService) ListContainers(_ context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: r.containersLike(q.Filter)}, nil
}

func (r runtimeService) StreamContainers(q *runtimeapi.StreamContainersRequest, s grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return send(r.Runtime, r.containersLike(q.Filter), func(part []*runtimeapi.Container) error {
		return s.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

func (r runtimeService) UpdateContainerResources(_ context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.container(q.ContainerId)
	if c == nil {
		return nil, noContainer(q.ContainerId)
	}
	c.Resources = &runtimeapi.ContainerResources{Linux: q.Linux}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (r runtimeService) ReopenContainerLog(_ context.Context, q *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.running(q.ContainerId)
	return &runtimeapi.ReopenContainerLogResponse{}, err
}

func (r runtimeService) ExecSync(_ context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.running(q.ContainerId)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.ExecSyncResponse{Stdout: fmt.Appendf(nil, "%s: %q\n", c.Metadata.Name, q.Cmd), Stderr: []byte("err\n")}
	out.ExitCode, _ = exitCommand(q.Cmd)
	return out, nil
}

func (r runtimeService) Exec(_ context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.running(q.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: r.streamURL + "/exec/" + r.id("ee")}, nil
}

func (r runtimeService) Attach(_ context.Context, q *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.running(q.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: r.streamURL + "/attach/" + r.id("ee")}, nil
}

func (r runtimeService) PortForward(_ context.Context, q *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pod(q.PodSandboxId) == nil {
		return nil, noPod(q.PodSandboxId)
	}
	return &runtimeapi.PortForwardResponse{Url: r.streamURL + "/portforward/" + r.id("ee")}, nil
}
