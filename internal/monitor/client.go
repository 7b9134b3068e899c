package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ociruntime"
)

// A Client speaks to the davit-monitor of one state directory. Each call has a
// connection of its own and waits, within its context, for davit-monitor to
// come back. Safe for concurrent use.
type Client struct {
	path string
}

// Connect returns a Client. It does not dial yet.
func Connect(state string) *Client { return &Client{path: SocketPath(state)} }

// Close is for symmetry: a Client keeps nothing open between calls.
func (c *Client) Close() error { return nil }

// Create makes a container that waits for Start and returns the pid of its
// first process. For an ID that is created already it returns its pid. A
// command that cannot be run is Invalid, a missing OCI runtime Unavailable.
func (c *Client) Create(ctx context.Context, container Container) (pid int, err error) {
	var reply PidReply
	err = c.call(ctx, MethodCreate, container, &reply, true)
	return reply.Pid, err
}

// Start lets a created container run. Starting one that runs succeeds.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, MethodStart, IDRequest{id}, nil, true)
}

// Signal sends a signal to the container's first process. NotFound once it has ended.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	return c.call(ctx, MethodSignal, SignalRequest{id, signal}, nil, true)
}

// Remove kills what lives of a container or holder, deletes it from its OCI
// runtime, and forgets stdio and exit record. An unknown ID succeeds.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.call(ctx, MethodRemove, IDRequest{id}, nil, true)
}

// List returns all containers and holders that are not removed.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	var list []Status
	err := c.call(ctx, MethodList, nil, &list, true)
	return list, err
}

// ReopenLog opens the container's log file anew by its path, without losing or
// tearing a line. Precondition once the container has ended; nothing is made then.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, MethodReopen, IDRequest{id}, nil, true)
}

// Exec runs one command and waits for it. Deadline once e.Timeout is over and
// the command killed; Unavailable if davit-monitor died meanwhile (the command
// is killed then, too). The command is killed when ctx ends.
func (c *Client) Exec(ctx context.Context, e Exec) (ExecResult, error) {
	var result ExecResult
	err := c.call(ctx, MethodExec, e, &result, false)
	return result, err
}

// Hold starts a holder and returns its pid, or that of the one there is.
func (c *Client) Hold(ctx context.Context, h Holder) (pid int, err error) {
	var reply PidReply
	err = c.call(ctx, MethodHold, h, &reply, true)
	return reply.Pid, err
}

// Update changes a container's limits by its OCI runtime.
func (c *Client) Update(ctx context.Context, id string, r Resources) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return c.call(ctx, MethodUpdate, UpdateRequest{id, data}, nil, true)
}

// Seccomp returns the BPF program that the runtime makes of profile, as the
// kernel has it: 8 bytes an instruction, in host order. It runs a throwaway
// container. Only crun takes such a program (annotation
// run.oci.seccomp_bpf_data, base64); Unimplemented where it cannot be had.
func (c *Client) Seccomp(ctx context.Context, r ociruntime.Runtime, profile *specs.LinuxSeccomp) ([]byte, error) {
	data, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	var reply SeccompReply
	err = c.call(ctx, MethodSeccomp, SeccompRequest{r, data}, &reply, true)
	return reply.Program, err
}

// Watch calls f for each exit, at least once each, those from before the call
// too, until ctx ends. f is called from one goroutine and should not block long.
func (c *Client) Watch(ctx context.Context, f func(Exit)) error {
	for {
		err := c.watch(ctx, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !lost(err) {
			return err
		}
		if err := pause(ctx, retryMin); err != nil {
			return err
		}
	}
}

func (c *Client) watch(ctx context.Context, f func(Exit)) error {
	conn, err := c.send(ctx, MethodWatch, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for {
		var exit Exit
		if err := receive(conn, &exit); err != nil {
			return err
		}
		if exit.ID != "" {
			f(exit)
		}
	}
}

const (
	retryMin = 5 * time.Millisecond
	retryMax = 250 * time.Millisecond
)

// call sends one request until it is answered. Calls that are not idempotent
// are not sent again once they may have reached davit-monitor.
func (c *Client) call(ctx context.Context, method string, body, into any, idempotent bool) error {
	var last error
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		conn, err := c.send(ctx, method, body)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			err = receive(conn, into)
			stop()
			_ = conn.Close()
			wait = retryMin // it listens: the next dial waits for the next monitor
			if lost(err) && !idempotent && ctx.Err() == nil {
				return fault.New(fault.Unavailable, "monitor."+method, "davit-monitor was restarted meanwhile: %w", err)
			}
		}
		if ctx.Err() != nil {
			return ended(ctx, method, last)
		}
		if !lost(err) {
			return err
		}
		last = err
		if pause(ctx, wait) != nil {
			return ended(ctx, method, last)
		}
	}
}

// ended explains a call whose context ended while davit-monitor was away.
func ended(ctx context.Context, method string, last error) error {
	if last == nil {
		return context.Cause(ctx)
	}
	return fault.New(fault.KindOf(context.Cause(ctx)), "monitor."+method, "%w; davit-monitor did not answer: %w", context.Cause(ctx), last)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lostError is a broken connection, as opposed to an answer that is an error.
type lostError struct{ err error }

func (e lostError) Error() string { return e.err.Error() }
func (e lostError) Unwrap() error { return e.err }

func lost(err error) bool {
	var l lostError
	return errors.As(err, &l)
}

func (c *Client) send(ctx context.Context, method string, body any) (*net.UnixConn, error) {
	var raw json.RawMessage
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	var dialer net.Dialer
	dialled, err := dialer.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, lostError{err}
	}
	conn := dialled.(*net.UnixConn)
	if err := WriteFrame(conn, Request{Protocol: Protocol, Method: method, Body: raw}); err != nil {
		_ = conn.Close()
		if fault.Is(err, fault.Exhausted) {
			return nil, err
		}
		return nil, lostError{err}
	}
	return conn, nil
}

func receive(conn io.Reader, into any) error {
	var reply Reply
	if err := ReadFrame(conn, &reply); err != nil {
		if errors.Is(err, errFrame) {
			return fault.New(fault.Internal, "monitor", "davit-monitor's answer: %w", err)
		}
		return lostError{err}
	}
	if reply.Failure != nil {
		return reply.Failure.Err()
	}
	if into == nil || len(reply.Body) == 0 {
		return nil
	}
	return json.Unmarshal(reply.Body, into)
}
