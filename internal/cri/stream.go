package cri

import (
	"context"
	"fmt"
	"net"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/stream"
)

// Streams hands out URLs for sessions. *stream.Server implements it.
type Streams interface {
	Exec(stream.Command) (url string, err error)
	Attach(stream.Command) (url string, err error)
	Forward(stream.Forward) (url string, err error)
}

// streamed is what requests for exec and attach have in common.
type streamed interface {
	GetContainerId() string
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

// checkStreams requires streams that can be had together.
func checkStreams(c *validate.Check, r streamed) {
	c.Set("container_id", r.GetContainerId())
	if r.GetTty() && r.GetStderr() {
		c.Bad("stderr", "is asked for together with tty: a terminal has one output")
	}
	if !r.GetStdin() && !r.GetStdout() && !r.GetStderr() {
		c.Bad("stdout", "none of stdin, stdout and stderr is asked for")
	}
}

// running returns a container, which must run.
func (s *service) running(id string) (*pod.ContainerSnapshot, error) {
	ctr, err := s.Views.Container(id)
	if err != nil {
		return nil, err
	}
	return ctr, ctr.MustRun()
}

func command(id string, r streamed) stream.Command {
	return stream.Command{Container: id, Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
}

func (s *service) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	var c validate.Check
	checkStreams(&c, r)
	if len(r.GetCmd()) == 0 || r.GetCmd()[0] == "" {
		c.Bad("cmd", "is empty")
	}
	c.Words("cmd", r.GetCmd())
	if c.Err != nil {
		return nil, c.Err
	}
	ctr, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	one := command(ctr.ID, r)
	one.Run = func(ctx context.Context, io monitor.Stream) (int, error) {
		return s.Sessions.ExecStream(ctx, ctr.ID, r.GetCmd(), io)
	}
	url, err := s.Streams.Exec(one)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

func (s *service) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	var c validate.Check
	checkStreams(&c, r)
	if c.Err != nil {
		return nil, c.Err
	}
	ctr, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	one := command(ctr.ID, r)
	one.Run = func(ctx context.Context, io monitor.Stream) (int, error) {
		// Whether there is a terminal is the container's to say. A client that
		// wrongly expects one gets all output where it looks for it.
		if r.GetTty() && !ctr.Config.GetTty() {
			io.Stderr = io.Stdout
		}
		io.TTY = ctr.Config.GetTty()
		return 0, s.Sessions.Attach(ctx, ctr.ID, io)
	}
	url, err := s.Streams.Attach(one)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

func (s *service) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	var c validate.Check
	c.Set("pod_sandbox_id", r.GetPodSandboxId())
	for i, port := range r.GetPort() {
		if port < 1 || port > 65535 {
			c.Bad(fmt.Sprintf("port[%d]", i), "%d is not from 1 to 65535", port)
		}
	}
	if c.Err != nil {
		return nil, c.Err
	}
	p, err := s.readyPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	url, err := s.Streams.Forward(stream.Forward{
		Pod: p.ID, Ports: r.GetPort(),
		Dial: func(ctx context.Context, port uint16) (net.Conn, error) {
			p, err := s.readyPod(p.ID) // it may have stopped since
			if err != nil {
				return nil, err
			}
			// None for a pod on the host's network: then it is davitd's own.
			return s.config.Dial(ctx, p.Paths["net"], port)
		},
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

// readyPod returns a pod, which must be ready.
func (s *service) readyPod(id string) (*pod.Snapshot, error) {
	p, err := s.Pods.Pod(id)
	if err != nil {
		return nil, err
	}
	if p.State != pod.Ready {
		return nil, fault.New(fault.Precondition, "", "pod %s is not ready, it is %s", p.ID, p.State)
	}
	return p, nil
}
