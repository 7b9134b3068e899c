package pod

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// exited takes in a container's exit: a fact, so it waits for no operation.
// The same exit may come any number of times.
func (p *Pods) exited(e monitor.Exit) {
	p.mu.RLock()
	c, pod := p.containers[e.ID], p.pods[e.ID]
	p.mu.RUnlock()
	switch {
	case c != nil:
		p.containerExited(c, e)
	case pod != nil:
		p.holderExited(pod)
	}
}

func (p *Pods) containerExited(c *container, e monitor.Exit) {
	c.mu.Lock()
	if c.state.Load().State == Preparing {
		c.early = &e // makeContainer comes back with it
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	if err := c.note(func(s *containerState) error { return s.exit(e) }); err != nil {
		return // known already, or removed
	}
	c.end()
	s := c.state.Load()
	p.log.Info("container exited", "container", c.id, "pod", c.podID, "name", s.Config.GetMetadata().GetName(), "code", s.ExitCode, "reason", s.Reason)
	p.sweep(c)
}

// sweep kills, in the background, what a container's first process left
// behind, and tells plugins of its end.
func (p *Pods) sweep(c *container) {
	p.crew.Start(func(ctx context.Context) {
		killing, cancel := context.WithTimeout(ctx, killWait)
		defer cancel()
		if err := p.opt.Cgroups.Kill(killing, c.state.Load().Place); err != nil && ctx.Err() != context.Canceled {
			p.log.Warn("kill what an exited container left behind", "container", c.id, "error", err)
		}
		if err := p.tellEnded(ctx, c); err != nil && ctx.Err() == nil {
			p.log.Warn("tell plugins of a container's end", "container", c.id, "error", err)
		}
	})
}

// exit makes s that of a container that has exited.
func (s *containerState) exit(e monitor.Exit) error {
	if err := s.enter(died); err != nil {
		return err
	}
	s.ExitCode, s.FinishedAt, s.Pid = e.Code, e.At, 0
	switch {
	case e.OOMKilled && e.Code == 137 && !s.Killed:
		s.Reason, s.Message = "OOMKilled", outOfMemory(s.Resources.GetMemoryLimitInBytes(), e)
	case e.Code == 0:
		s.Reason = "Completed"
	default:
		s.Reason = "Error"
	}
	if s.StartedAt.IsZero() && !s.Starting.IsZero() {
		s.StartedAt = s.Starting
	}
	return nil
}

// outOfMemory tells people whose memory was short, as far as the kernel told, how
// much there was and who was killed for it.
func outOfMemory(ownLimitBytes int64, e monitor.Exit) string {
	own := "the container has no limit of its own"
	if ownLimitBytes > 0 {
		own = fmt.Sprintf("the container's own limit is %d bytes", ownLimitBytes)
	}
	oom := e.OOM
	if oom == nil {
		oom = &monitor.OOM{}
	}
	parts, who := []string{own}, "the container"
	switch limit := bytesIn(" of %d bytes", oom.Limit); oom.Scope {
	case monitor.OOMOfContainer:
		if limit == "" {
			limit = bytesIn(" of %d bytes", ownLimitBytes)
		}
		parts = []string{"the container has hit its limit" + limit}
	case monitor.OOMOfPod:
		parts, who = []string{"the pod has hit its limit" + limit + nameIn(oom.Cgroup), own}, "the pod"
	case monitor.OOMAbove:
		parts, who = []string{"what the pod is in has hit its limit" + limit + nameIn(oom.Cgroup), own}, "that"
	case monitor.OOMOfNode:
		parts = []string{"the node had no memory left" + bytesIn(", of %d bytes", oom.Limit), own}
	}
	if oom.Peak > 0 {
		parts = append(parts, fmt.Sprintf("%s has used at most %d bytes", who, oom.Peak))
	}
	switch {
	case oom.Victim != "":
		parts = append(parts, fmt.Sprintf("the victim was %s (PID %d)", oom.Victim, oom.VictimPid))
	case e.Signal == 9:
		parts = append(parts, "the victim was the container's first process")
	}
	return "killed by the kernel for want of memory: " + strings.ToValidUTF8(strings.Join(parts, "; "), "?")
}

func bytesIn(format string, n int64) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(format, n)
}

func nameIn(cgroup string) string {
	if cgroup == "" {
		return ""
	}
	return " (control group " + cgroup + ")"
}

// lose makes s that of a container whose end nobody saw.
func (s *containerState) lose() error {
	if err := s.enter(lost); err != nil {
		return err
	}
	s.ExitCode, s.Reason, s.Pid, s.FinishedAt = 255, "Unknown", 0, time.Now()
	s.Message = "its end was not seen: the host went down, or davit's state was lost"
	return nil
}

// end wakes those who wait for the container's end. Idempotent.
func (c *container) end() {
	c.making.Store(nil) // so that it takes no memory
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
	default:
		close(c.done)
	}
}

// holderExited takes in that a pod's shared PID namespace is dead: with it the
// kernel killed all of the pod's processes, and none can be started in it.
func (p *Pods) holderExited(pod *pod) {
	was := pod.state.Load().State
	if was != Ready || pod.note(func(s *podState) error { return s.enter(lost) }) != nil {
		return
	}
	p.log.Warn("pod lost the holder of its PID namespace", "pod", pod.id)
}
