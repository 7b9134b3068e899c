package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/monitor/stdio"
	"github.com/davit-runtime/davit/internal/ociruntime"
)

const (
	execPrefix = "exec-" // of the keeper's names for commands; container IDs are hexadecimal
	// execIdle is how long the output of a command without a time limit that
	// has ended must be silent to count as complete, if a child holds it open.
	execIdle = 100 * time.Millisecond
	// execKillWait is how long a command killed at its time limit may take to go.
	execKillWait = 500 * time.Millisecond
)

// errExecTimeout is the cause of a context that ends at Exec.Timeout.
var errExecTimeout = fault.New(fault.Deadline, "monitor.Exec", "the time limit is over")

// exec runs one command in a container until it, its time or ctx ends.
func (s *server) exec(ctx context.Context, e monitor.Exec) (monitor.ExecResult, error) {
	c, err := s.running(e.ContainerID)
	if err != nil {
		return monitor.ExecResult{}, err
	}
	if e.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, e.Timeout, errExecTimeout)
		defer cancel()
	}
	x := s.newExecution(c)
	out, err := newCapture(e.MaxBytes)
	if err != nil {
		return monitor.ExecResult{}, err
	}
	defer out.close()
	x.stdio[1], x.stdio[2] = out.writers[0], out.writers[1]
	if err := x.start(ctx, e.Args); err != nil {
		return monitor.ExecResult{}, err
	}
	defer x.forget()
	out.begin()
	return x.wait(ctx, out, e.Timeout > 0)
}

// running returns a container in which a command can be run.
func (s *server) running(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	switch {
	case c == nil || c.get().Phase == creating:
		return nil, fault.New(fault.NotFound, "monitor", "no container %s", id)
	case c.hasEnded() || c.get().Phase != started || c.get().Holder:
		return nil, fault.New(fault.Precondition, "monitor", "container %s is not running", id)
	}
	return c, nil
}

// An execution is one command under way.
type execution struct {
	s  *server
	c  *container
	id string // the keeper's name for it
	tree
	ended chan monitor.Ended
	stdio [3]*os.File // the command's ends, owned; nil: /dev/null

	tty      bool // a terminal instead of stdio
	size     monitor.Size
	terminal *os.File // its master, non-blocking and owned, once it runs
}

func (s *server) newExecution(c *container) *execution {
	return &execution{s: s, c: c, id: execPrefix + rand.Text(), ended: make(chan monitor.Ended, 1)}
}

// start returns once the command runs, to be forgotten after use, or has
// failed, or ctx has ended.
func (x *execution) start(ctx context.Context, args []string) error {
	x.s.mu.Lock()
	x.s.execs[x.id] = x.ended
	x.s.mu.Unlock()
	spawned := make(chan error, 1)
	go func() { spawned <- x.spawn(args) }()
	select {
	case err := <-spawned:
		if err != nil {
			x.forget()
		}
		return err
	case <-ctx.Done():
	}
	// The OCI runtime's command goes on without the caller: killed, it would
	// leave its fork behind, which becomes the command and is nobody's.
	x.s.work.under.Add(1) // within the one of this request
	go func() {
		defer x.s.work.done()
		defer x.forget()
		if <-spawned == nil {
			x.kill()
		}
	}()
	return context.Cause(ctx)
}

// spawn leaves the command running and claimed by the keeper.
func (x *execution) spawn(args []string) error {
	defer stdio.CloseAll(x.stdio[:])
	if len(args) == 0 {
		return fault.New(fault.Invalid, "monitor.Exec", "no command")
	}
	processFile, pidFile := x.c.path(x.id+".json"), x.c.path(x.id+".pid")
	defer os.Remove(processFile)
	defer os.Remove(pidFile)
	r := x.c.get().Container
	if err := x.writeProcess(processFile, r.Bundle, args); err != nil {
		return err
	}
	if err := giveStreams(r, x.stdio); err != nil {
		return err
	}
	for _, f := range x.stdio[1:] {
		if f != nil {
			x.output = append(x.output, pipeName(f))
		}
	}
	if err := x.s.keeper.expect(x.id); err != nil {
		return err
	}
	err := x.run(r.Runtime, processFile, pidFile)
	pid, pidErr := readPid(pidFile)
	if err == nil {
		err = pidErr
	}
	if pidErr == nil { // also of a command line that was cut short
		x.pid, x.cgroup = pid, cmp.Or(cgroupOf(pid), cgroupOf(x.c.get().Pid))
		err = errors.Join(err, x.s.keeper.claim(x.id, pid, false))
	}
	if err != nil {
		x.kill()
		return x.explain(err)
	}
	return nil
}

// run runs the OCI runtime's `exec`, and takes the terminal that it makes.
func (x *execution) run(r ociruntime.Runtime, processFile, pidFile string) error {
	var console ociruntime.Console
	var socket *consoleSocket
	if x.tty {
		var err error
		if socket, err = listenConsole(x.c.dir, x.id+".sock"); err != nil {
			return err
		}
		defer socket.close()
		console = ociruntime.Console(socket.path)
	} else if err := x.fillStdio(); err != nil {
		return err
	}
	mark, release := brand()
	x.brand = mark
	err := x.s.runtime(r, "exec", x.c.path(x.id+".log"), x.stdio, func(errorLog string) []string {
		return r.Exec(errorLog, x.c.id, processFile, pidFile, console)
	})
	release()
	if err != nil || socket == nil {
		return err
	}
	master, err := socket.receive()
	if err != nil {
		return err
	}
	err = unix.SetNonblock(master, true)
	x.terminal = os.NewFile(uintptr(master), "terminal")
	return err
}

// fillStdio opens /dev/null for what the command has not got.
func (x *execution) fillStdio() (err error) {
	for i, f := range x.stdio {
		if f == nil {
			if x.stdio[i], err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// explain gives the reason that OCI runtimes do not name: the container ended.
func (x *execution) explain(err error) error {
	if k := fault.KindOf(err); k != fault.Internal && k != fault.Exhausted { // no memory to fork is what a dying PID namespace says
		return err
	}
	select {
	case <-x.c.ended:
		return fault.New(fault.Unavailable, "monitor.Exec", "container %s has ended: %w", x.c.id, err)
	case <-time.After(execIdle):
		return err
	}
}

// writeProcess writes the process of a container's spec with other arguments.
func (x *execution) writeProcess(path, bundle string, args []string) error {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return err
	}
	var spec struct {
		Process map[string]any `json:"process"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	p := spec.Process
	p["args"] = args
	delete(p, "terminal")
	delete(p, "consoleSize")
	if x.tty {
		p["terminal"] = true
		if x.size.Width > 0 && x.size.Height > 0 {
			p["consoleSize"] = map[string]any{"width": x.size.Width, "height": x.size.Height}
		}
		env, _ := p["env"].([]any)
		if !slices.ContainsFunc(env, func(v any) bool { s, _ := v.(string); return strings.HasPrefix(s, "TERM=") }) {
			p["env"] = append(env, "TERM=xterm")
		}
	}
	if _, ok := p["oomScoreAdj"]; !ok {
		p["oomScoreAdj"] = x.s.baseOOM // not that which protects davit
	}
	if data, err = json.Marshal(p); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// wait collects the result. What a command leaves behind with its output open
// ends with its time limit, and so does the call; without one it lives on.
//
// CRI: api.proto, ExecSync, timeout.
func (x *execution) wait(ctx context.Context, out *capture, limited bool) (monitor.ExecResult, error) {
	code, err := x.awaitEnd(ctx)
	if err != nil {
		return monitor.ExecResult{}, err
	}
	if err := out.settle(ctx, time.Now(), limited); err != nil {
		x.tree.kill()
		return monitor.ExecResult{}, fault.New(fault.KindOf(err), "monitor.Exec",
			"the command has ended with %d, but what it left behind holds its output open: %w", code, err)
	}
	result := monitor.ExecResult{Code: code}
	result.Stdout, result.Stderr = out.take()
	return result, nil
}

// awaitEnd returns the command's exit code. It kills the command when ctx ends.
func (x *execution) awaitEnd(ctx context.Context) (code int, err error) {
	var ended monitor.Ended
	select {
	case ended = <-x.ended:
	case <-ctx.Done():
		x.kill()
		return 0, context.Cause(ctx)
	}
	if ended.Signal == int(unix.SIGKILL) {
		select { // together with its container?
		case <-x.c.ended:
			return 0, fault.New(fault.Unavailable, "monitor.Exec", "container %s ended while the command ran", x.c.id)
		case <-time.After(execIdle):
		}
	}
	return ended.Code, nil
}

// kill ends the command and what it started.
func (x *execution) kill() {
	if x.pid == 0 {
		return
	}
	children := descendants(processes(), x.pid)
	if x.s.keeper.kill(x.id, sigkill) == nil {
		select {
		case <-x.ended:
		case <-time.After(execKillWait):
			x.s.log.Warn("exec outlives SIGKILL", "id", x.c.id, "pid", x.pid)
		}
	}
	for _, p := range children {
		p.kill()
	}
	x.tree.kill()
}

// forget drops all of the execution.
func (x *execution) forget() {
	x.s.mu.Lock()
	delete(x.s.execs, x.id)
	x.s.mu.Unlock()
	if x.terminal != nil {
		_ = x.terminal.Close()
	}
	if err := x.s.keeper.forget(x.id); err != nil {
		x.s.log.Error("exec not forgotten", "id", x.id, "error", err)
	}
}
