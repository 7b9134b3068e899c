package pod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/span"
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
	if err := p.undoUpdate(ctx, c); err != nil { // it would undo what is applied here
		return err
	}
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
	if err := p.tellStart(ctx, c); err != nil {
		return p.startFailed(ctx, c, err)
	}
	s := c.state.Load()
	// CPU quota and shares are left out of the spec, so that they slow nothing of
	// davit's down. The rest is there already, but not every OCI runtime tells
	// systemd of all that it writes.
	if err := p.opt.Cgroups.Limit(ctx, s.Place, s.Resources); err != nil {
		return p.startFailed(ctx, c, fmt.Errorf("limit: %w", err))
	}
	end := span.Command(ctx, "process: start", p.commandLine(s, "start"))
	err = p.opt.Processes.Start(ctx, c.id)
	if end(err, nil); err != nil {
		return p.startFailed(ctx, c, err)
	}
	// The exit may have been heard of already.
	err = c.note(func(s *containerState) error {
		s.StartedAt = s.Starting
		return s.enter(started)
	})
	if err == nil {
		p.tellStarted(ctx, c)
	}
	return err
}

// commandLine is the one that davit-monitor runs for s, but for its arguments.
func (p *Pods) commandLine(s *containerState, command string) string {
	r, err := p.opt.Runtimes.Runtime(s.Handler)
	if err != nil {
		return ""
	}
	return r.Path + " " + command
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
		p.tellStopped(ctx, c)
	}
	return err
}

// UpdateContainer changes the limits of a created or running container: all
// that the request has, or none. Zero leaves a limit as it is. What an update
// replaces is written down first, so that one cut short, by a crash or for want
// of space, is taken back; what a container's snapshot has is what is in force.
//
// It returns Precondition for a container that has exited, or limits that do
// not fit now, Invalid for what the kernel takes for wrong.
//
// CRI: api.proto, UpdateContainerResources, "transactionally".
func (p *Pods) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := p.findContainer(id)
	if err != nil {
		return err
	}
	return p.crew.With(ctx, &c.slot, "container "+c.id+": update", startBudget, func(ctx context.Context) error {
		if err := limitable(c); err != nil {
			return err
		}
		r, err := p.tellUpdate(ctx, c, r)
		if err != nil {
			return err
		}
		if err := p.update(ctx, c, r); err != nil {
			return err
		}
		p.tellUpdated(ctx, c)
		return nil
	})
}

// changeLimits is UpdateContainer on behalf of plugins, who are not asked again.
func (p *Pods) changeLimits(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := p.findContainer(id)
	if err != nil {
		return err
	}
	return p.crew.With(ctx, &c.slot, "container "+c.id+": update for a plugin", startBudget, func(ctx context.Context) error {
		return p.update(ctx, c, r)
	})
}

func limitable(c *container) error {
	if s := c.state.Load(); s.State != Created && s.State != Running {
		return fault.New(fault.Precondition, "", "container %s is %s", c.id, s.State)
	}
	return nil
}

// update changes limits wholly or not at all. The container's slot must be held.
func (p *Pods) update(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) error {
	if err := p.undoUpdate(ctx, c); err != nil { // an earlier one that could not be taken back
		return err
	}
	if err := limitable(c); err != nil {
		return err
	}
	s := c.state.Load()
	before, err := p.opt.Cgroups.Current(s.Place, r)
	if err != nil {
		return fmt.Errorf("linux.%w", err)
	}
	next := p.inForce(merged(s.Resources, r))
	if err := c.commit(func(s *containerState) error { s.Undo = &undo{before, next.OomScoreAdj}; return nil }); err != nil {
		return err
	}
	if err = p.opt.Cgroups.Limit(ctx, s.Place, r); err == nil {
		err = p.opt.Cgroups.Rescore(s.Place, s.Resources.GetOomScoreAdj(), next.OomScoreAdj)
	}
	if err != nil {
		err = fmt.Errorf("linux.%w", err)
	} else {
		err = c.commit(func(s *containerState) error { s.Resources, s.Undo = next, nil; return nil })
	}
	if err == nil {
		return nil
	}
	undone := p.releaseNow(ctx, func(ctx context.Context) error { return p.undoUpdate(ctx, c) })
	if undone != nil {
		p.retryUndo(c)
		return fmt.Errorf("%w; then, %w", err, undone)
	}
	return err
}

// undoUpdate takes back an update that was cut short, if there is one. The
// container's slot must be held, or nobody else know it yet.
func (p *Pods) undoUpdate(ctx context.Context, c *container) error {
	s := c.state.Load()
	if s.Undo == nil {
		return nil
	}
	err := p.opt.Cgroups.Restore(ctx, s.Place, s.Undo.Before)
	if err == nil {
		err = p.opt.Cgroups.Rescore(s.Place, s.Undo.OOMScoreAdj, s.Resources.GetOomScoreAdj())
	}
	if err != nil {
		return fmt.Errorf("take an update of limits back: %w", err)
	}
	return c.note(func(s *containerState) error { s.Undo = nil; return nil })
}

// retryUndo goes on taking an update back in the background.
func (p *Pods) retryUndo(c *container) {
	p.retry("take an update of limits back", c.id, func(ctx context.Context) error {
		err := p.crew.With(ctx, &c.slot, "container "+c.id+": update", releaseBudget, func(ctx context.Context) error {
			return p.undoUpdate(ctx, c)
		})
		return unlessGone(err)
	})
}

// inForce makes of resources asked for those that are applied.
func (p *Pods) inForce(r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	r.OomScoreAdj = ocispec.ClampOOMScoreAdj(r.OomScoreAdj, p.opt.Host.MinOOMScoreAdj)
	if r.CpuQuota > 0 && r.CpuPeriod == 0 {
		r.CpuPeriod = 100_000 // the kernel's
	}
	return r
}

// UpdatePod changes what is known of a pod's own resources and overhead; nil
// leaves them as they are. The pod's cgroup is the kubelet's, which has changed
// it already: nothing else happens here.
//
// CRI: api.proto, UpdatePodSandboxResources, "called after the Kubelet
// reconfigures the pod-level cgroups".
func (p *Pods) UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	pod, err := p.findPod(id)
	if err != nil {
		return err
	}
	note := func(s *podState) error {
		config := proto.CloneOf(s.Config)
		if config.Linux == nil {
			config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
		}
		if overhead != nil {
			config.Linux.Overhead = proto.CloneOf(overhead)
		}
		if resources != nil {
			config.Linux.Resources = proto.CloneOf(resources)
		}
		encoded, err := protojson.Marshal(config)
		if err != nil {
			return fault.New(fault.Invalid, "", "pod's resources: %w", err)
		}
		s.Config, s.config = config, encoded
		return nil
	}
	return p.crew.With(ctx, &pod.slot, "pod "+pod.id+": update", startBudget, func(ctx context.Context) error {
		return p.changeResources(ctx, pod, overhead, resources, func() error { return pod.commit(note) })
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
