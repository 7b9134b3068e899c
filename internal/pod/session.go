package pod

import (
	"context"
	"fmt"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// execMaxBytes keeps ExecSync's answer below the 16 MiB that clients receive.
const execMaxBytes = 15 << 20

// ReopenLog makes the log of a running container go on in a new file, if the
// old one has been moved away. Precondition if it does not run.
func (p *Pods) ReopenLog(ctx context.Context, id string) error {
	c, err := p.running(id)
	if err != nil {
		return err
	}
	return p.opt.Sessions.ReopenLog(ctx, c.id)
}

// Exec runs a command in a running container and returns what it wrote, up to
// 15 MiB. A zero timeout is none. It returns Precondition if the container
// does not run, Deadline if the command, or a child that keeps its output
// open, runs for longer than timeout.
func (p *Pods) Exec(ctx context.Context, id string, args []string, timeout time.Duration) (monitor.ExecResult, error) {
	c, err := p.running(id)
	if err != nil {
		return monitor.ExecResult{}, err
	}
	p.opt.Cgroups.Expect()
	result, err := p.opt.Sessions.Exec(ctx, monitor.Exec{ContainerID: c.id, Args: args, Timeout: timeout, MaxBytes: execMaxBytes})
	if err != nil {
		return result, fmt.Errorf("run %q: %w", args[0], err)
	}
	return result, nil
}

// ExecStream runs a command in a running container, connected to s, and returns
// its exit code once all it wrote has been passed on. The command, and what it
// has started, is killed when ctx ends. It returns Precondition if the container
// does not run, Invalid for a command that is not there, Unavailable if the
// container ends before the command.
func (p *Pods) ExecStream(ctx context.Context, id string, args []string, s monitor.Stream) (code int, err error) {
	c, err := p.running(id)
	if err != nil {
		return 0, err
	}
	p.opt.Cgroups.Expect()
	code, err = p.opt.Sessions.ExecStream(ctx, monitor.Exec{ContainerID: c.id, Args: args}, s)
	if err != nil {
		return 0, fmt.Errorf("run %q: %w", args[0], err)
	}
	return code, nil
}

// Attach connects s to a running container, from now on until the container
// has ended or ctx ends. It returns Precondition if the container does not run.
func (p *Pods) Attach(ctx context.Context, id string, s monitor.Stream) error {
	c, err := p.running(id)
	if err != nil {
		return err
	}
	if err := p.opt.Sessions.Attach(ctx, c.id, s); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

func (p *Pods) running(id string) (*container, error) {
	c, err := p.findContainer(id)
	if err != nil {
		return nil, err
	}
	return c, c.state.Load().MustRun()
}
