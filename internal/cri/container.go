package cri

import (
	"context"
	"iter"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/pod"
)

func (s *service) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	var c validate.Check
	if c.Set("pod_sandbox_id", r.GetPodSandboxId()); c.Err != nil {
		return nil, c.Err
	}
	// The pod's own config decides, not the copy in the request.
	p, err := s.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	c.Container(r.GetConfig(), p.Config, &s.config.Node)
	c.Recursive(r.GetConfig(), func() validate.Handler { return s.handlerNamed(p.Handler) })
	s.checkTarget(&c, r.GetConfig(), p)
	if c.Err != nil {
		return nil, c.Err
	}
	id, err := s.Containers.CreateContainer(ctx, p.ID, r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// handlerNamed returns the handler of a name, which may be empty.
func (s *service) handlerNamed(name string) validate.Handler {
	for _, h := range s.config.Handlers() {
		if h.Name == name || name == "" && h.Default {
			return h
		}
	}
	return validate.Handler{Name: name}
}

// checkTarget requires that a targeted container is in the same pod.
func (s *service) checkTarget(c *validate.Check, config *runtimeapi.ContainerConfig, p *pod.Snapshot) {
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET || ns.GetTargetId() == "" {
		return
	}
	const field = "config.linux.security_context.namespace_options.target_id"
	target, err := s.Views.Container(ns.GetTargetId())
	switch {
	case err != nil:
		c.Bad(field, "%w", err)
	case target.PodID != p.ID:
		c.Bad(field, "container %s is in another pod", target.ID)
	}
}

func (s *service) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	var c validate.Check
	if c.Set("container_id", r.GetContainerId()); c.Err != nil {
		return nil, c.Err
	}
	if err := s.Containers.StartContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (s *service) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	var c validate.Check
	c.Set("container_id", r.GetContainerId())
	c.Timeout("timeout", r.GetTimeout())
	if c.Err != nil {
		return nil, c.Err
	}
	if err := s.Containers.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (s *service) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	var c validate.Check
	if c.Set("container_id", r.GetContainerId()); c.Err != nil {
		return nil, c.Err
	}
	if err := s.Containers.RemoveContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *service) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	var c validate.Check
	c.Set("container_id", r.GetContainerId())
	if r.GetLinux() == nil {
		c.Bad("linux", "is missing")
	}
	c.Resources("linux", r.GetLinux())
	if c.Err != nil {
		return nil, c.Err
	}
	if err := s.Resources.UpdateContainer(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (s *service) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	var c validate.Check
	if c.Set("container_id", r.GetContainerId()); c.Err != nil {
		return nil, c.Err
	}
	if err := s.Sessions.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

func (s *service) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	var c validate.Check
	c.Set("container_id", r.GetContainerId())
	if len(r.GetCmd()) == 0 || r.GetCmd()[0] == "" {
		c.Bad("cmd", "is empty")
	}
	c.Words("cmd", r.GetCmd())
	c.Timeout("timeout", r.GetTimeout())
	if c.Err != nil {
		return nil, c.Err
	}
	result, err := s.Sessions.Exec(ctx, r.GetContainerId(), r.GetCmd(), seconds(r.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: result.Stdout, Stderr: result.Stderr, ExitCode: int32(result.Code)}, nil
}

// seconds turns a timeout of the CRI into a duration, the longest one at most.
func seconds(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}

func (s *service) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	all, err := s.listedContainers(r.GetFilter())
	if err != nil {
		return nil, err
	}
	containers, err := inOne(all, "StreamContainers")
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainersResponse{Containers: containers}, nil
}

func (s *service) StreamContainers(r *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	all, err := s.listedContainers(r.GetFilter())
	if err != nil {
		return err
	}
	return inBatches(all, func(batch []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: batch})
	})
}

// listedContainers are the containers that pass f, the oldest first. One whose
// creation has not ended is not shown.
func (s *service) listedContainers(f *runtimeapi.ContainerFilter) (iter.Seq[*runtimeapi.Container], error) {
	var c validate.Check
	c.Enum("filter.state.state", int32(f.GetState().GetState()), runtimeapi.ContainerState_name)
	if c.Err != nil {
		return nil, c.Err
	}
	return func(yield func(*runtimeapi.Container) bool) {
		for ctr := range s.Views.EachContainer() {
			if ctr.State == pod.Preparing {
				continue
			}
			if item := listedContainer(ctr); wantContainer(f, item) && !yield(item) {
				return
			}
		}
	}, nil
}

func (s *service) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	var c validate.Check
	if c.Set("container_id", r.GetContainerId()); c.Err != nil {
		return nil, c.Err
	}
	ctr, err := s.Views.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if ctr.State == pod.Preparing {
		return nil, fault.New(fault.NotFound, "", "container %s: its creation has not ended", ctr.ID)
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: containerStatus(ctr)}
	if r.GetVerbose() {
		resp.Info = s.containerInfo(ctr)
	}
	return resp, nil
}

var containerStates = map[pod.State]runtimeapi.ContainerState{
	pod.Created: runtimeapi.ContainerState_CONTAINER_CREATED,
	pod.Running: runtimeapi.ContainerState_CONTAINER_RUNNING,
	pod.Exited:  runtimeapi.ContainerState_CONTAINER_EXITED,
}

func containerState(s pod.State) runtimeapi.ContainerState {
	if state, ok := containerStates[s]; ok {
		return state
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func listedContainer(c *pod.ContainerSnapshot) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id:           c.ID,
		PodSandboxId: c.PodID,
		Metadata:     c.Config.GetMetadata(),
		Image:        c.Config.GetImage(),
		ImageRef:     c.ImageID,
		ImageId:      c.ImageID,
		State:        containerState(c.State),
		CreatedAt:    c.CreatedAt.UnixNano(),
		Labels:       c.Config.GetLabels(),
		Annotations:  c.Config.GetAnnotations(),
	}
}

func containerStatus(c *pod.ContainerSnapshot) *runtimeapi.ContainerStatus {
	status := &runtimeapi.ContainerStatus{
		Id:          c.ID,
		Metadata:    c.Config.GetMetadata(),
		State:       containerState(c.State),
		CreatedAt:   c.CreatedAt.UnixNano(),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		Image:       askedFor(c.Config.GetImage()),
		ImageRef:    c.ImageID,
		ImageId:     c.ImageID,
		Reason:      c.Reason,
		Message:     strings.ToValidUTF8(c.Message, "\uFFFD"), // else the whole answer fails
		Labels:      c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations(),
		Mounts:      c.Config.GetMounts(),
		LogPath:     c.LogPath,
		Resources:   &runtimeapi.ContainerResources{Linux: c.Resources},
		User:        containerUser(c),
		StopSignal:  stopSignal(c.StopSignal),
	}
	if c.State == pod.Exited {
		status.ExitCode = int32(c.ExitCode)
	}
	return status
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// askedFor is the image as the user named it.
func askedFor(i *runtimeapi.ImageSpec) *runtimeapi.ImageSpec {
	name := i.GetUserSpecifiedImage()
	if name == "" {
		name = i.GetImage()
	}
	return &runtimeapi.ImageSpec{
		Image: name, UserSpecifiedImage: i.GetUserSpecifiedImage(),
		Annotations: i.GetAnnotations(), RuntimeHandler: i.GetRuntimeHandler(),
	}
}

func containerUser(c *pod.ContainerSnapshot) *runtimeapi.ContainerUser {
	user := &runtimeapi.LinuxContainerUser{Uid: int64(c.User.UID), Gid: int64(c.User.GID)}
	for _, g := range c.User.AdditionalGids {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(g))
	}
	return &runtimeapi.ContainerUser{Linux: user}
}

// stopSignal turns "SIGRTMIN+3" into SIGNAL_SIGRTMINPLUS3. A signal that the
// CRI cannot name is SIGNAL_RUNTIME_DEFAULT.
func stopSignal(name string) runtimeapi.Signal {
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}

// wantContainer reports whether a container passes every part of a filter.
// IDs may be abbreviated.
func wantContainer(f *runtimeapi.ContainerFilter, c *runtimeapi.Container) bool {
	return strings.HasPrefix(c.GetId(), f.GetId()) &&
		strings.HasPrefix(c.GetPodSandboxId(), f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == c.GetState()) &&
		hasLabels(c.GetLabels(), f.GetLabelSelector())
}
