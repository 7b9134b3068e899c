package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// Stop kills a pod's containers and releases all that the pod holds; its
// record stays, not ready, until Remove. A pod that is being made is not made.
// It is idempotent, and succeeds for unknown IDs. If something cannot be
// released, the error names it; it is tried again in the background, too.
func (p *Pods) Stop(ctx context.Context, id string) error {
	pod, err := p.findPod(id)
	if err != nil {
		return unlessAbsent(err)
	}
	if err := p.quiet(ctx, pod); err != nil {
		return err
	}
	err = p.releasePod(ctx, pod)
	if err != nil && !errors.Is(err, errGone) {
		p.retryPod(pod)
		return err
	}
	return nil
}

// quiet ends a pod's making and its containers, and keeps new ones from it.
func (p *Pods) quiet(ctx context.Context, pod *pod) error {
	if pod.state.Load().State == Preparing {
		if err := pod.making.Interrupt(ctx); err != nil {
			return err
		}
	}
	if s := pod.state.Load(); s.State == Ready {
		if err := pod.note(func(s *podState) error { return s.enter(stopped) }); err != nil && !errors.Is(err, errGone) {
			return err
		}
	}
	return inParallel(p.containersOf(pod.id), func(c *container) error {
		if err := p.kill(ctx, c); err != nil {
			return err
		}
		return p.tellEnded(ctx, c)
	})
}

func (p *Pods) releasePod(ctx context.Context, pod *pod) error {
	if len(pod.held()) == 0 && pod.state.Load().State == NotReady {
		return nil
	}
	return p.crew.With(ctx, &pod.slot, "pod "+pod.id+": stop", releaseBudget, func(ctx context.Context) error {
		p.tellPodStopped(ctx, pod)
		return release(ctx, pod, p.podSteps)
	})
}

// StopContainer sends a container its stop signal, waits up to grace for it to
// exit, then kills it. A zero grace kills at once, and so does one that is
// shorter than that of a call under way. When ctx ends, the container is not
// killed on this call's behalf. It succeeds for containers that have exited
// and for unknown IDs.
//
// It returns Unavailable if the process outlives SIGKILL by killWait.
//
// CRI: api.proto, StopContainer, "This call is idempotent".
func (p *Pods) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := p.findContainer(id)
	if err != nil {
		return unlessAbsent(err)
	}
	if grace > 0 && c.state.Load().State == Created {
		// A start under way decides whether there is something to ask; one
		// that hangs uses up the patience.
		begun := time.Now()
		if err := c.slot.Await(ctx, "container "+c.id+": stop", grace); err != nil {
			return err
		}
		grace -= time.Since(begun)
	}
	if grace > 0 && c.state.Load().State == Running {
		ended, err := p.ask(ctx, c, grace)
		if err != nil {
			return err
		}
		if ended {
			p.awaitTold(ctx, c)
			return nil
		}
	}
	if err := p.kill(ctx, c); err != nil {
		return err
	}
	p.awaitTold(ctx, c)
	return nil
}

// awaitTold waits, within ctx, until plugins have been told of a container's
// end. One that takes longer makes no stop fail: the container has ended, and
// telling goes on.
func (p *Pods) awaitTold(ctx context.Context, c *container) {
	if err := p.tellEnded(ctx, c); err != nil {
		p.log.Warn("plugins are still being told of a container's end", "container", c.id, "error", err)
	}
}

var errOutlived = errors.New("the grace period is over")

// ask sends the stop signal, unless a call under way has, and waits for the
// container's end for up to grace. It reports whether that came.
func (p *Pods) ask(ctx context.Context, c *container, grace time.Duration) (ended bool, err error) {
	patience := time.NewTimer(grace)
	defer patience.Stop()
	end := span.Step(ctx, fmt.Sprintf("stop signal %s, grace %v", c.state.Load().StopSignal, grace.Round(time.Millisecond)))
	defer func() {
		if ended {
			end()
		} else {
			end(cmp.Or(err, errOutlived))
		}
	}()
	c.mu.Lock()
	c.stoppers++
	first := c.stoppers == 1
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.stoppers--
		c.mu.Unlock()
	}()
	if first {
		_, signal, err := parseSignal(c.state.Load().StopSignal)
		if err != nil {
			return false, err
		}
		sending, cancel := context.WithTimeout(ctx, grace)
		err = p.opt.Processes.Signal(sending, c.id, signal)
		cancel()
		if unlessAbsent(err) != nil && ctx.Err() == nil {
			p.log.Warn("send the stop signal", "container", c.id, "error", err) // killing is left
		}
	}
	select {
	case <-c.done:
		return true, nil
	case <-patience.C:
		return false, nil
	case <-ctx.Done():
		return false, fmt.Errorf("container %s has been asked to stop and has not yet: %w", c.id, context.Cause(ctx))
	}
}

// kill ends a container, and its making, and waits for it. Calls under way
// join. It returns nil for one that has exited.
func (p *Pods) kill(ctx context.Context, c *container) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if c.state.Load().State == Preparing {
		if err := c.making.Load().Interrupt(ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if s := c.state.Load(); s.State == Exited || s.State == Preparing || c.gone {
		c.mu.Unlock()
		return nil // what was not made in the end goes by itself
	}
	if c.killing == nil || c.killing.Over() {
		c.killing = p.crew.Begin(ctx, "container "+c.id+": kill", 2*killWait, func(ctx context.Context) error {
			return p.killAll(ctx, c)
		}, func() {})
	}
	o := c.killing
	c.mu.Unlock()
	return o.Wait(ctx)
}

// killAll sends SIGKILL to all processes of a container and waits until the
// first one's exit is known.
func (p *Pods) killAll(ctx context.Context, c *container) error {
	if err := c.note(func(s *containerState) error { s.Killed = true; return nil }); err != nil {
		return unlessGone(err)
	}
	killing, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	end := span.Step(ctx, "kill")
	why := p.opt.Cgroups.Kill(killing, c.state.Load().Place)
	dead := why == nil
	end(why)
	defer span.Step(ctx, "await exit")()
	for {
		select {
		case <-c.done:
			return nil
		case <-killing.Done():
			pid := c.state.Load().Pid
			err := fault.New(fault.Unavailable, "", "container %s: process %d outlives SIGKILL by %v%s", c.id, pid, killWait, whereabouts(pid))
			if dead {
				err = fault.New(fault.Unavailable, "", "container %s was killed, and how it ended is not known yet", c.id)
			}
			return errors.Join(err, why)
		case <-time.After(inquireAfter):
		}
		if err := p.inquire(killing, c); err != nil {
			why = err
		}
	}
}

// inquireAfter is how long a killed container's exit may be out before the
// monitor is asked.
const inquireAfter = time.Second

// inquire asks the monitor what became of a container whose exit was not heard of.
func (p *Pods) inquire(ctx context.Context, c *container) error {
	all, err := p.opt.Processes.List(ctx)
	if err != nil {
		return err
	}
	for _, status := range all {
		if status.ID == c.id {
			if status.Exit != nil {
				p.exited(*status.Exit)
				return nil
			}
			return errors.New("davit-monitor says that it is alive")
		}
	}
	if err := c.note(func(s *containerState) error { return s.lose() }); err != nil {
		return unlessGone(err)
	}
	c.end()
	return nil
}

// whereabouts says what a process waits for in the kernel, if that can be told.
func whereabouts(pid int) string {
	wchan, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	if pid <= 0 || err != nil || len(wchan) == 0 {
		return ""
	}
	return ", waiting in " + string(wchan)
}

// RemoveContainer removes a container, by force if it runs, with its writable
// layer and volumes; its log stays. It is idempotent and succeeds for unknown IDs.
func (p *Pods) RemoveContainer(ctx context.Context, id string) error {
	c, err := p.findContainer(id)
	if err != nil {
		return unlessAbsent(err)
	}
	return p.removeContainer(ctx, c)
}

func (p *Pods) removeContainer(ctx context.Context, c *container) error {
	if err := p.kill(ctx, c); err != nil {
		return err
	}
	err := p.dropContainer(ctx, c)
	if err != nil && c.state.Load().Doomed {
		p.retryContainer(c)
	}
	return err
}

// Remove stops a pod and removes it with its containers and all that is known
// of it. It is idempotent and succeeds for unknown IDs.
func (p *Pods) Remove(ctx context.Context, id string) error {
	pod, err := p.findPod(id)
	if err != nil {
		return unlessAbsent(err)
	}
	if err := p.quiet(ctx, pod); err != nil {
		return err
	}
	err = p.dropPod(ctx, pod)
	if err != nil && pod.state.Load().Doomed {
		p.retryPod(pod)
	}
	return err
}

// settlePod releases what a pod that is stopped or doomed still holds, and
// forgets a doomed one.
func (p *Pods) settlePod(ctx context.Context, pod *pod) error {
	if err := p.quiet(ctx, pod); err != nil {
		return err
	}
	if pod.state.Load().Doomed {
		return p.dropPod(ctx, pod)
	}
	return unlessGone(p.releasePod(ctx, pod))
}

// dropPod removes a pod that is quiet.
func (p *Pods) dropPod(ctx context.Context, pod *pod) error {
	// Once this is written, recovery ends what is begun here.
	if err := pod.note(func(s *podState) error { s.Doomed = true; return nil }); err != nil {
		return unlessGone(err)
	}
	err := inParallel(p.containersOf(pod.id), func(c *container) error { return p.removeContainer(ctx, c) })
	if err != nil {
		return err
	}
	err = p.crew.With(ctx, &pod.slot, "pod "+pod.id+": remove", releaseBudget, func(ctx context.Context) error {
		return p.losePod(ctx, pod)
	})
	return unlessGone(err)
}

// dropContainer removes a container that has exited, or was never made.
func (p *Pods) dropContainer(ctx context.Context, c *container) error {
	err := p.crew.With(ctx, &c.slot, "container "+c.id+": remove", releaseBudget, func(ctx context.Context) error {
		if err := c.note(func(s *containerState) error { s.Doomed = true; return nil }); err != nil {
			return err
		}
		return p.loseContainer(ctx, c)
	})
	return unlessGone(err)
}

// loseContainer releases what a doomed container holds and forgets it. Its
// slot must be held.
func (p *Pods) loseContainer(ctx context.Context, c *container) error {
	p.tellStopped(ctx, c)
	p.tellContainerRemoved(ctx, c) // while there is a bundle to tell of
	if err := release(ctx, c, p.containerSteps); err != nil {
		return err
	}
	if err := c.forget(p.containerRoot(c.id)); err != nil {
		return err
	}
	last := c.state.Load()
	p.mu.Lock()
	delete(p.containers, c.id)
	if left := slices.DeleteFunc(p.ofPods[c.podID], func(o *container) bool { return o == c }); len(left) > 0 {
		p.ofPods[c.podID] = left
	} else {
		delete(p.ofPods, c.podID)
	}
	if key := keyOfContainer(c.podID, last.Config); p.containerKeys[key] == c {
		delete(p.containerKeys, key)
	}
	p.mu.Unlock()
	p.containerGone(last)
	return nil
}

// losePod releases what a doomed pod holds and forgets it. Its slot must be held.
func (p *Pods) losePod(ctx context.Context, pod *pod) error {
	p.tellPodStopped(ctx, pod)
	if err := release(ctx, pod, p.podSteps); err != nil {
		return err
	}
	p.tellPodRemoved(ctx, pod)
	if err := pod.forget(p.podRoot(pod.id)); err != nil {
		return err
	}
	last := pod.state.Load()
	p.mu.Lock()
	delete(p.pods, pod.id)
	if key := keyOfPod(last.Config); p.podKeys[key] == pod {
		delete(p.podKeys, key)
	}
	p.mu.Unlock()
	p.podGone(last)
	return nil
}

func unlessAbsent(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func unlessGone(err error) error {
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// inParallel calls f for each of all and joins the errors.
func inParallel[E any](all []E, f func(E) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, e := range all {
		wg.Go(func() { errs[i] = f(e) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// rtMin and rtMax are the first and last signal of glibc's SIGRTMIN … SIGRTMAX.
const rtMin, rtMax = 34, 64

// signalAliases are names that the CRI has and package unix has not.
var signalAliases = map[string]string{"SIGPOLL": "SIGIO", "SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT"}

// parseSignal reads a signal as images and the CRI write it: "SIGTERM",
// "term", "15", "SIGRTMIN+3", "SIGRTMINPLUS3", "SIGRTMAXMINUS2". Invalid for
// anything else.
func parseSignal(text string) (name string, number int, err error) {
	name = strings.ToUpper(text)
	name = strings.NewReplacer("RTMINPLUS", "RTMIN+", "RTMAXMINUS", "RTMAX-").Replace(name)
	unknown := fault.New(fault.Invalid, "", "unknown signal %q", text)
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > rtMax {
			return "", 0, unknown
		}
		if known := unix.SignalName(unix.Signal(n)); known != "" {
			return known, n, nil
		}
		if n < rtMin {
			return "", 0, unknown
		}
		return strings.TrimSuffix(fmt.Sprintf("SIGRTMIN+%d", n-rtMin), "+0"), n, nil
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if known, ok := signalAliases[name]; ok {
		name = known
	}
	if n := unix.SignalNum(name); n != 0 {
		return name, int(n), nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			offset, err := strconv.Atoi(rest)
			if rest == "" {
				offset, err = 0, nil
			}
			if n := base + offset; err == nil && n >= rtMin && n <= rtMax {
				return name, n, nil
			}
		}
	}
	return "", 0, unknown
}
