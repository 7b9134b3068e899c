package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/ociruntime"
)

// start lets a created container run; one that was started already is left alone.
func (s *server) start(id string) error {
	c, err := s.take(id)
	if err != nil {
		return err
	}
	defer c.op.Unlock()
	rec := c.get()
	switch {
	case rec.Phase >= started || rec.Holder:
		return nil
	case rec.Phase < created:
		return fault.New(fault.Precondition, "monitor.Start", "container %s is not created", id)
	case rec.Phase == starting:
		// The monitor before was killed here; the command lived on.
		if err := awaitCommands(c.dir + "/start.log"); err != nil {
			return err
		}
		if s.hasStarted(c) {
			return c.save(func(r *record) { r.Phase = max(r.Phase, started) })
		}
	}
	if err := c.save(func(r *record) { r.Phase = max(r.Phase, starting) }); err != nil {
		return err
	}
	// A process that was killed before never opens its end of the pipe that start waits at.
	ctx, cancel := c.whileAlive(s.work.commands)
	defer cancel(nil)
	_, err = s.runtimeOutput(ctx, rec.Container.Runtime, "start", c.path("start.log"), [3]*os.File{}, func(errorLog string) []string {
		return rec.Container.Runtime.Start(errorLog, id)
	})
	if err != nil {
		return c.explainStart(err)
	}
	return c.save(func(r *record) { r.Phase = max(r.Phase, started) })
}

// explainStart gives the reason that OCI runtimes do not name: the container
// was ended before it ran. crun even dies of a broken pipe then.
func (c *container) explainStart(err error) error {
	if fault.Is(err, fault.Invalid) || fault.Is(err, fault.Precondition) {
		return err
	}
	select {
	case <-c.ended:
		return fault.New(fault.Precondition, "monitor.Start", "container %s ended before it was started: %w", c.id, err)
	case <-time.After(execIdle):
		return err
	}
}

// endGrace is how much longer than its container a `start` may take: its
// poststart hooks run beside the container.
const endGrace = time.Second

// whileAlive returns a context that ends soon after the container.
func (c *container) whileAlive(parent context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-c.ended:
		}
		select {
		case <-ctx.Done():
		case <-time.After(endGrace):
			cancel(errEnded)
		}
	}()
	return ctx, cancel
}

// hasStarted asks the OCI runtime whether a `start` that was cut short got through.
func (s *server) hasStarted(c *container) bool {
	r := c.get().Container.Runtime
	out, err := s.runtimeOutput(s.work.commands, r, "state", c.path("state.log"), [3]*os.File{}, func(errorLog string) []string {
		return r.State(errorLog, c.id)
	})
	if err != nil {
		return false
	}
	var state struct{ Status string }
	return json.NewDecoder(bytes.NewReader(out)).Decode(&state) == nil && state.Status != "created"
}

func (s *server) signal(id string, signal int) error {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil || c.get().Phase == creating {
		return fault.New(fault.NotFound, "monitor.Signal", "no container %s", id)
	}
	if signal < 0 || signal > 64 {
		return fault.New(fault.Invalid, "monitor.Signal", "bad signal %d", signal)
	}
	if unix.Signal(signal) == unix.SIGKILL && !c.hasEnded() && !c.get().Killed {
		// Before the act: what it does must not look like the OOM killer's.
		if err := c.save(func(r *record) { r.Killed = true }); err != nil {
			s.log.Error("kill not noted", "id", id, "error", err) // a full /run must not stop it
		}
	}
	err := s.keeper.kill(id, unix.Signal(signal))
	if errors.Is(err, errGone) {
		return fault.New(fault.NotFound, "monitor.Signal", "container %s has ended", id)
	}
	return err
}

func (s *server) reopen(id string) error {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil {
		return fault.New(fault.NotFound, "monitor.ReopenLog", "no container %s", id)
	}
	o := c.output()
	if o == nil || c.hasEnded() {
		return fault.New(fault.Precondition, "monitor.ReopenLog", "container %s is not running", id)
	}
	return o.Reopen()
}

func (s *server) update(q monitor.UpdateRequest) error {
	s.mu.Lock()
	c := s.containers[q.ID]
	s.mu.Unlock()
	if c == nil {
		return fault.New(fault.NotFound, "monitor.Update", "no container %s", q.ID)
	}
	if c.hasEnded() {
		return fault.New(fault.Precondition, "monitor.Update", "container %s is not running", q.ID)
	}
	f, err := os.CreateTemp(c.dir, "update-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(q.Resources)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	r := c.get().Container.Runtime
	return s.runtime(r, "update", f.Name()+".log", [3]*os.File{}, func(errorLog string) []string {
		return r.Update(errorLog, q.ID, f.Name())
	})
}

// endWait is how long a killed process may take to go.
const endWait = 10 * time.Second

func (c *container) awaitEnd() error { return c.awaitClosed(c.ended, "outlives SIGKILL") }

func (c *container) awaitClosed(done <-chan struct{}, what string) error {
	t := time.NewTimer(endWait)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return fault.New(fault.Unavailable, "monitor.Remove", "container %s %s by %s", c.id, what, endWait)
	}
}

// remove ends a container and forgets all of it.
func (s *server) remove(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	c, err := s.take(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.op.Unlock()
	rec := c.get()
	if rec.Phase == creating {
		return s.abandon(c)
	}
	if !c.hasEnded() {
		if err := s.signal(id, int(unix.SIGKILL)); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if err := c.awaitEnd(); err != nil {
			return err
		}
	}
	if err := c.awaitClosed(c.complete, "has a log that is not complete"); err != nil {
		return err
	}
	if !rec.Holder {
		if err := s.delete(c); err != nil {
			return err
		}
	}
	s.oom.remove(c)
	s.drop(c)
	return errors.Join(s.keeper.forget(id), os.RemoveAll(c.dir))
}

// delete makes the OCI runtime forget a dead container.
func (s *server) delete(c *container) error {
	r := c.get().Container.Runtime
	if c.inherited {
		if err := awaitCommands(c.dir + "/"); err != nil {
			return err
		}
	}
	var err error
	for _, force := range []bool{false, true} {
		err = s.runtime(r, "delete", c.path("delete.log"), [3]*os.File{}, func(errorLog string) []string {
			return r.Delete(errorLog, c.id, force)
		})
		if err == nil || fault.Is(err, fault.NotFound) {
			return nil
		}
	}
	return err
}

// commandLimit is after how long an OCI runtime counts as hung and is killed.
const commandLimit = 2 * time.Minute

// maxErrorText bounds what is read of an OCI runtime's error output.
const maxErrorText = 64 << 10

// runtime runs one command of an OCI runtime, which lives on if this process
// dies (cut short, create leaves mounts, and start takes the container along: a
// successor awaits the command, see awaitCommands), and makes a classified error of its failure. args gets the path of the error
// log, which is removed afterwards. Absent stdio is /dev/null, but standard
// error, which then goes into the error's text.
func (s *server) runtime(r ociruntime.Runtime, command, errorLog string, stdio [3]*os.File, args func(errorLog string) []string) error {
	_, err := s.runtimeOutput(s.work.commands, r, command, errorLog, stdio, args)
	return err
}

func (s *server) runtimeOutput(ctx context.Context, r ociruntime.Runtime, command, errorLog string, stdio [3]*os.File, args func(errorLog string) []string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, commandLimit, errHung)
	defer cancel()
	line := args(errorLog)
	var out, text limited
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.WaitDelay = time.Second
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, &out, &text
	if command == "create" || command == "exec" {
		cmd.Stdout = nil // a pipe would be the container's, too
	}
	if stdio[0] != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio[0], stdio[1], stdio[2]
	} else if cmd.Stdout == nil {
		cmd.Stderr = nil
	}
	cmd.Env = append(os.Environ(), marker+errorLog) // names container and command
	err := cmd.Run()
	logged := readSome(errorLog)
	_ = os.Remove(errorLog)
	if err == nil {
		return out.data, nil
	}
	if ctx.Err() != nil {
		err = fault.New(fault.Unavailable, "ociruntime."+command, "%s %s was killed: %w", r.Path, command, context.Cause(ctx))
	} else {
		err = r.Classify(command, err, ociruntime.Message(logged, text.data))
	}
	return nil, fault.Ran(err, line, logged, text.data)
}

// marker is a variable in the environment of OCI runtimes. What they fork has
// it, too, until it becomes the container: so strays are found.
const marker = "DAVIT_RUNTIME_LOG="

var errEnded = errors.New("the container has ended")

var errHung = fmt.Errorf("it did not end within %s", commandLimit)

func readSome(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, maxErrorText))
	return data
}

// limited keeps the first maxErrorText bytes written to it.
type limited struct{ data []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.data = append(l.data, p[:min(len(p), maxErrorText-len(l.data))]...)
	return len(p), nil
}

const sigkill = unix.SIGKILL
