package play

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How often a running init container is asked for.
const (
	pollFirst = 10 * time.Millisecond
	pollMax   = 500 * time.Millisecond
)

// Steps that Player.Step is told of.
const (
	StepImage     = "image" // it is there, or cannot be
	StepPull      = "pull"  // of an image
	StepSandbox   = "sandbox"
	StepAddress   = "address"
	StepInit      = "init"
	StepSidecar   = "sidecar"
	StepContainer = "container"
)

// Failed ends a step's line when the error itself comes later.
const Failed = "failed"

// pullImages makes every image present and checks what depends on its user.
func (l *launch) pullImages(ctx context.Context) error {
	for c := range eachContainer(&l.pod.Spec) {
		if err := l.pullImage(ctx, c.Image, c.ImagePullPolicy); err != nil {
			return fmt.Errorf("image %s of container %s: %w", c.Image, c.Name, err)
		}
		if err := checkNonRoot(l.pod, c, l.images[c.Image].user); err != nil {
			return err
		}
	}
	for i := range l.pod.Spec.Volumes {
		v := &l.pod.Spec.Volumes[i]
		if v.Image == nil {
			continue
		}
		if err := l.pullImage(ctx, v.Image.Reference, v.Image.PullPolicy); err != nil {
			return fmt.Errorf("image %s of volume %s: %w", v.Image.Reference, v.Name, err)
		}
	}
	return nil
}

// pullImage follows imagePullPolicy. Two uses of the same image with different
// policies get the first one's.
func (l *launch) pullImage(ctx context.Context, name string, policy corev1.PullPolicy) error {
	if _, done := l.images[name]; done {
		return nil
	}
	spec := &runtimeapi.ImageSpec{Image: withTag(name), UserSpecifiedImage: name, RuntimeHandler: l.handler()}
	step, outcome := StepImage, "present"
	have, err := l.imageStatus(ctx, spec)
	if err == nil && (have == nil && policy != corev1.PullNever || policy == corev1.PullAlways) {
		step, outcome = StepPull, "pulled"
	}
	end := l.Step(step, name)
	switch {
	case err != nil:
	case step == StepPull:
		have, err = l.pull(ctx, spec)
	case have == nil:
		err = errors.New("is not present, and the policy is Never; pull it first: davit pull " + name)
	}
	if err != nil {
		end(Failed)
		return err
	}
	l.images[name] = image{ref: have.Id, user: imageUser{uid: userID(have), name: have.Username}}
	end(outcome + ", " + FormatBytes(have.Size))
	return nil
}

func (l *launch) pull(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	r, err := l.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, SandboxConfig: l.config})
	if err != nil {
		return nil, err
	}
	have, err := l.imageStatus(ctx, &runtimeapi.ImageSpec{Image: r.ImageRef, RuntimeHandler: spec.RuntimeHandler})
	if err == nil && have == nil {
		err = fmt.Errorf("was pulled as %s, but the runtime does not have it now", r.ImageRef)
	}
	return have, err
}

func (l *launch) imageStatus(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	return r.GetImage(), err
}

// runSandbox starts the pod, learns its addresses and writes /etc/hosts.
func (l *launch) runSandbox(ctx context.Context) error {
	end := l.Step(StepSandbox, "")
	id, err := l.startSandbox(ctx)
	if err != nil {
		end(Failed)
		return fmt.Errorf("sandbox of pod %s: %w", podName(l.pod), err)
	}
	l.sandbox = id
	end(fmt.Sprintf("%.12s", id))
	if l.ips, err = l.addresses(ctx); err != nil {
		return fmt.Errorf("address of pod %s: %w", podName(l.pod), err)
	}
	l.Step(StepAddress, "")(strings.Join(append([]string{strings.Join(l.ips, ", ")}, l.ports()...), "  "))
	return l.files.writeHosts(l.pod, l.ips)
}

func (l *launch) startSandbox(ctx context.Context) (string, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Pods.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: l.config, RuntimeHandler: l.handler()})
	return r.GetPodSandboxId(), err
}

func (l *launch) addresses(ctx context.Context) ([]string, error) {
	if l.pod.Spec.HostNetwork {
		return []string{l.node.IP}, nil
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Pods.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: l.sandbox})
	if err != nil {
		return nil, err
	}
	network := r.GetStatus().GetNetwork()
	if network.GetIp() == "" {
		return nil, errors.New("the runtime gave it none")
	}
	ips := []string{network.Ip}
	for _, more := range network.AdditionalIps {
		ips = append(ips, more.Ip)
	}
	return ips, nil
}

// ports describes the pod's host ports.
func (l *launch) ports() []string {
	var out []string
	for _, m := range l.config.PortMappings {
		out = append(out, fmt.Sprintf("%s:%d -> %d/%s", m.HostIp, m.HostPort, m.ContainerPort, m.Protocol))
	}
	return out
}

// runContainers runs init containers to their end, one after the other,
// leaving sidecars running, then starts the containers.
func (l *launch) runContainers(ctx context.Context) error {
	for i := range l.pod.Spec.InitContainers {
		c := &l.pod.Spec.InitContainers[i]
		var err error
		if isSidecar(c) {
			err = l.start(ctx, StepSidecar, c, l.started)
		} else {
			err = l.start(ctx, StepInit, c, l.awaitExit)
		}
		if err != nil {
			return l.containerError(c, true, err)
		}
	}
	for i := range l.pod.Spec.Containers {
		c := &l.pod.Spec.Containers[i]
		if err := l.start(ctx, StepContainer, c, l.started); err != nil {
			return l.containerError(c, false, err)
		}
	}
	return nil
}

// start creates and starts a container and waits for what until returns: the
// step's outcome.
func (l *launch) start(ctx context.Context, step string, c *corev1.Container,
	until func(ctx context.Context, id string) (string, error)) error {
	end := l.Step(step, c.Name)
	outcome := Failed
	defer func() { end(outcome) }()
	config, err := l.containerConfig(c)
	if err != nil {
		return fmt.Errorf("cannot be made: %w", err)
	}
	id, err := l.create(ctx, config)
	if err != nil {
		return fmt.Errorf("was not created: %w", err)
	}
	if err := l.startContainer(ctx, id); err != nil {
		return fmt.Errorf("did not start: %w", err)
	}
	said, err := until(ctx, id)
	if said != "" {
		outcome = said
	}
	return err
}

func (l *launch) create(ctx context.Context, config *runtimeapi.ContainerConfig) (string, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Pods.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: l.sandbox, Config: config, SandboxConfig: l.config,
	})
	return r.GetContainerId(), err
}

func (l *launch) startContainer(ctx context.Context, id string) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	_, err := l.Pods.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (l *launch) started(context.Context, string) (string, error) { return "started", nil }

// awaitExit waits until the container has ended; any code but 0 is an error.
func (l *launch) awaitExit(ctx context.Context, id string) (string, error) {
	for pause := pollFirst; ; pause = min(pause*2, pollMax) {
		s, err := l.containerStatus(ctx, id)
		if ctx.Err() != nil {
			return "", context.Cause(ctx) // a call that was under way says it in words of its own
		}
		if err != nil {
			return "", fmt.Errorf("has no status: %w", err)
		}
		if s.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Sprintf("exit code %d", s.ExitCode), exitError(s)
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func (l *launch) containerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Pods.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return r.GetStatus(), err
}

// checkAlive looks once at what has started: a container that is gone already,
// and not with code 0, is a failure worth hearing of now.
func (l *launch) checkAlive(ctx context.Context) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Pods.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		PodSandboxId: l.sandbox,
		State:        &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED},
	}})
	if err != nil {
		return err
	}
	for _, gone := range r.Containers {
		s, err := l.containerStatus(ctx, gone.Id)
		if err == nil {
			err = exitError(s)
		}
		if err != nil {
			return l.containerError(&corev1.Container{Name: gone.Metadata.GetName()}, false, err)
		}
	}
	return nil
}

func exitError(s *runtimeapi.ContainerStatus) error {
	if s.ExitCode == 0 {
		return nil
	}
	why := s.Reason
	if s.Message != "" {
		why += ": " + s.Message
	}
	return fmt.Errorf("exited with code %d (%s)", s.ExitCode, why)
}

func (l *launch) containerError(c *corev1.Container, isInit bool, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return &ContainerError{
		Pod: podName(l.pod), Container: c.Name, Init: isInit, Err: err,
		LogPath:     filepath.Join(l.files.Logs, c.Name, "0.log"),
		MessagePath: l.files.message(c.Name),
	}
}

func userID(i *runtimeapi.Image) *int64 {
	if i.Uid == nil {
		return nil
	}
	return new(i.Uid.Value)
}

// FormatBytes writes a size for people: three digits and a binary unit.
func FormatBytes(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/unit, 0
	for ; value >= unit && i < 4; i++ {
		value /= unit
	}
	return fmt.Sprintf("%.3g %ciB", value, "KMGTP"[i])
}
