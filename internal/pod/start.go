package pod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// startError is the reason of a container that never ran.
const startError = "StartError"

// StartContainer lets a created container run. If that fails, the container
// has exited with code 128 and reason StartError, and its process is gone.
//
// It returns Precondition for a container that is not created, or whose pod is
// not ready.
func (p *Pods) StartContainer(ctx context.Context, id string) error {
	c, err := p.findContainer(id)
	if err != nil {
		return err
	}
	return p.crew.With(ctx, &c.slot, "container "+c.id+": start", startBudget, func(ctx context.Context) error {
		return p.start(ctx, c)
	})
}

func (p *Pods) start(ctx context.Context, c *container) error {
	if pod, err := p.Pod(c.podID); err != nil || pod.State != Ready {
		return fault.New(fault.Precondition, "", "pod %s of container %s is not ready", c.podID, c.id)
	}
	c.startBegins()
	defer p.startOver(c)
	err := c.commit(func(s *containerState) error {
		if s.State != Created {
			return fault.New(fault.Precondition, "", "container %s is %s", s.ID, s.State)
		}
		s.Starting = time.Now()
		return nil
	})
	if err != nil {
		return err
	}
	s := c.state.Load()
	// Left out of the spec, so that they slow nothing of davit's down.
	quota, shares := s.Resources.GetCpuQuota(), s.Resources.GetCpuShares()
	if quota != 0 || shares != 0 {
		r := &runtimeapi.LinuxContainerResources{CpuQuota: quota, CpuPeriod: s.Resources.GetCpuPeriod(), CpuShares: shares}
		if err := p.opt.Cgroups.Limit(ctx, s.Place, r); err != nil {
			return p.startFailed(ctx, c, fmt.Errorf("limit cpu: %w", err))
		}
	}
	if err := p.opt.Processes.Start(ctx, c.id); err != nil {
		return p.startFailed(ctx, c, err)
	}
	// The exit may have been heard of already.
	return c.note(func(s *containerState) error {
		s.StartedAt = s.Starting
		return s.enter(started)
	})
}

// startFailed makes an end of a container that could not be started, and
// returns why. Its process may be in any state, so the container stays created
// until the process is gone.
func (p *Pods) startFailed(ctx context.Context, c *container, cause error) error {
	err := p.releaseNow(ctx, func(ctx context.Context) error { return p.endUnstarted(ctx, c, cause) })
	if err == nil {
		return cause
	}
	p.retry("remove the process of a container that could not be started", c.id, func(ctx context.Context) error {
		err := p.crew.With(ctx, &c.slot, "container "+c.id+": start", releaseBudget, func(ctx context.Context) error {
			if c.state.Load().State != Created {
				return nil // stopped, or started after all
			}
			return p.endUnstarted(ctx, c, cause)
		})
		return unlessGone(err)
	})
	return fmt.Errorf("%w; then, remove its process: %w", cause, err)
}

// endUnstarted removes a container's process and notes why it never ran. The
// container's slot must be held.
func (p *Pods) endUnstarted(ctx context.Context, c *container, cause error) error {
	if err := p.removeProcess(ctx, c); err != nil {
		return err
	}
	if last := c.held(); len(last) > 0 && last[len(last)-1] == "process" {
		c.drop()
	}
	err := c.note(func(s *containerState) error {
		s.ExitCode, s.Reason, s.FinishedAt = 128, startError, time.Now()
		s.StartedAt = time.Time{}
		s.Message = strings.ToValidUTF8(cause.Error(), "?")
		return s.enter(startFailed)
	})
	if err == nil {
		c.end()
	}
	return err
}

// UpdateContainer changes the limits of a created or running container. Zero
// leaves a limit as it is.
//
// CRI: api.proto, UpdateContainerResources, "synchronous".
func (p *Pods) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := p.findContainer(id)
	if err != nil {
		return err
	}
	return p.crew.With(ctx, &c.slot, "container "+c.id+": update", startBudget, func(ctx context.Context) error {
		s := c.state.Load()
		if s.State != Created && s.State != Running {
			return fault.New(fault.Precondition, "", "container %s is %s", c.id, s.State)
		}
		if err := p.opt.Cgroups.Limit(ctx, s.Place, r); err != nil {
			return err
		}
		return c.commit(func(s *containerState) error {
			s.Resources = merged(s.Resources, r)
			return nil
		})
	})
}

// merged returns a new value: old with all that change sets.
func merged(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	r := proto.CloneOf(old)
	proto.Merge(r, change) // leaves zeros, adds to the map; but it appends to the list
	r.HugepageLimits = slices.Clone(old.GetHugepageLimits())
	for _, limit := range change.GetHugepageLimits() {
		i := slices.IndexFunc(r.HugepageLimits, func(l *runtimeapi.HugepageLimit) bool { return l.PageSize == limit.PageSize })
		if i < 0 {
			r.HugepageLimits = append(r.HugepageLimits, limit)
			continue
		}
		r.HugepageLimits[i] = limit
	}
	return r
}
