package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	// firstSizeWait is how long a terminal's first size may keep a command back.
	firstSizeWait = 20 * time.Millisecond
)

// attachPipe is how far an attached client may lag behind before it loses some,
// in bytes; the second is what the kernel grants to anybody.
var attachPipe = []int{8 << 20, 1 << 20}

// ExecStream runs a command in a container, connected to s, and returns its
// exit code (128+n for signal n) once all that it wrote is written to s. Of
// e, Timeout and MaxBytes are not used. What the command leaves in the
// background may live on; if that holds the output open, it is no longer read
// once it is silent.
//
// It returns Invalid for a command that cannot be run, NotFound and
// Precondition as Exec does, Unavailable if the container ended first or
// davit-monitor died. The command and what it started is killed when ctx ends,
// or when s cannot be read or written.
func (c *Client) ExecStream(ctx context.Context, e Exec, s Stream) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := StreamRequest{ContainerID: e.ContainerID, Args: e.Args, TTY: s.TTY}
	var x *session
	if s.TTY {
		q.Size = firstSize(s.Resize)
		x, err = c.begin(ctx, MethodExecStream, q, nil, false)
	} else {
		var p *pipes
		if p, err = openPipes(s, &q); err != nil {
			return 0, err
		}
		x, err = c.begin(ctx, MethodExecStream, q, p, false)
	}
	if err != nil {
		return 0, err
	}
	defer x.close()
	resize := func(Size) error { return nil }
	if s.TTY {
		master, err := x.terminal()
		if err != nil {
			return 0, err
		}
		resize = func(size Size) error { return control(master, func(fd int) error { return SetSize(fd, size) }) }
	}
	x.run(s, cancel, resize)
	var reply CodeReply
	if err := x.result(&reply); err != nil {
		return 0, err
	}
	return reply.Code, x.drain(true)
}

// Attach connects s to a running container, from now on until the container
// has ended and all it wrote is written to s, or until ctx ends. Without Stdout
// and Stderr it returns once Stdin has been passed on.
//
// A client that is slow loses output, with a notice in its place; the container
// and its log never wait for one. The end of Stdin ends the container's
// standard input only if it is StdinOnce, and then so does the end of ctx.
//
// It returns NotFound and Precondition as Exec does, Unavailable if
// davit-monitor died: the container goes on, and can be attached to again.
func (c *Client) Attach(ctx context.Context, id string, s Stream) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := StreamRequest{ContainerID: id}
	p, err := openPipes(s, &q, attachPipe...)
	if err != nil {
		return err
	}
	x, err := c.begin(ctx, MethodAttach, q, p, true)
	if err != nil {
		return err
	}
	defer x.close()
	x.run(s, cancel, func(size Size) error { return WriteFrame(x.conn, size) })
	if err := x.result(nil); err != nil {
		return err
	}
	return x.drain(false)
}

// firstSize waits a moment for the size that a command shall find.
func firstSize(sizes <-chan Size) Size {
	if sizes == nil {
		return Size{}
	}
	t := time.NewTimer(firstSizeWait)
	defer t.Stop()
	select {
	case size := <-sizes:
		return size
	case <-t.C:
	}
	select { // a size that is there counts, however late the look at it
	case size := <-sizes:
		return size
	default:
		return Size{}
	}
}

// pipes are those of a session: the caller's ends and the container's.
type pipes struct {
	in     *os.File    // nil: no input
	outs   [2]*os.File // nil: not connected
	theirs []*os.File
}

// openPipes makes what s needs and notes it in q. Those for output have the
// first of the sizes that can be had, or the usual one.
func openPipes(s Stream, q *StreamRequest, sizes ...int) (p *pipes, err error) {
	p = &pipes{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	q.Stdin, q.Stdout, q.Stderr = s.Stdin != nil, s.Stdout != nil, s.Stderr != nil
	for i, wanted := range []bool{q.Stdin, q.Stdout, q.Stderr} {
		if !wanted {
			continue
		}
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		ours, theirs := ends[0], ends[1]
		if i == 0 {
			ours, theirs = theirs, ours
		} else {
			for _, size := range sizes {
				if _, err := unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, size); err == nil {
					break
				}
			}
		}
		p.theirs = append(p.theirs, os.NewFile(uintptr(theirs), "container's end"))
		err := unix.SetNonblock(ours, true)
		if f := os.NewFile(uintptr(ours), "session"); i == 0 {
			p.in = f
		} else {
			p.outs[i-1] = f
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		_ = f.Close()
	}
	p.theirs = nil
}

func (p *pipes) close() {
	p.closeTheirs()
	for _, f := range []*os.File{p.in, p.outs[0], p.outs[1]} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// A session is one that davit-monitor has said has begun.
type session struct {
	ctx    context.Context
	method string
	conn   *net.UnixConn
	pipes  *pipes
	tty    bool
	outs   []*outlet
	stop   func() bool
}

// begin asks for a session until it is answered, and owns p. One that is not
// idempotent is not asked for again once it may have begun.
func (c *Client) begin(ctx context.Context, method string, q StreamRequest, p *pipes, idempotent bool) (*session, error) {
	x := &session{ctx: ctx, method: method, pipes: p}
	if p == nil {
		x.pipes = &pipes{}
	}
	var last error
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		conn, err := c.send(ctx, method, q)
		if err == nil {
			x.conn, wait = conn, retryMin
			x.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
			if err = SendFiles(conn, x.pipes.theirs...); err != nil {
				err = lostError{err}
			} else if err = receive(conn, nil); err == nil {
				x.pipes.closeTheirs()
				return x, nil
			}
			x.stop()
			_ = conn.Close()
			if lost(err) && !idempotent && ctx.Err() == nil {
				x.pipes.close()
				return nil, x.restarted(err)
			}
		}
		switch {
		case ctx.Err() != nil:
			err = ended(ctx, method, last)
		case lost(err):
			last = err
			if pause(ctx, wait) == nil {
				continue
			}
			err = ended(ctx, method, last)
		}
		x.pipes.close()
		return nil, err
	}
}

func (x *session) restarted(err error) error {
	return fault.New(fault.Unavailable, "monitor."+x.method, "davit-monitor was restarted meanwhile: %w", err)
}

// terminal receives the master of a command's terminal.
func (x *session) terminal() (*os.File, error) {
	files, err := ReceiveFiles(x.conn)
	if x.ctx.Err() != nil {
		return nil, context.Cause(x.ctx)
	}
	if err != nil {
		return nil, x.restarted(err)
	}
	if len(files) != 1 {
		return nil, fault.New(fault.Internal, "monitor."+x.method, "%d terminals came", len(files))
	}
	x.tty = true
	x.pipes.in, x.pipes.outs[0] = files[0], files[0]
	return files[0], nil
}

// run starts the copying. What goes wrong with s ends the session by cancel.
// All that is started ends with close, or with what it waits for in s.
func (x *session) run(s Stream, cancel context.CancelCauseFunc, resize func(Size) error) {
	for i, to := range []io.Writer{s.Stdout, s.Stderr} {
		if from := x.pipes.outs[i]; from != nil {
			if to == nil {
				to = io.Discard // of a terminal
			}
			o := &outlet{from: from, to: to, done: make(chan struct{}), ending: make(chan struct{})}
			x.outs = append(x.outs, o)
			go o.run(cancel)
		}
	}
	if s.Stdin != nil {
		go x.feed(s.Stdin, cancel)
	}
	if s.Resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-s.Resize:
					if !ok || resize(size) != nil {
						return
					}
				case <-x.ctx.Done():
					return
				}
			}
		}()
	}
}

// feed copies the caller's input until its end, or until nobody reads it.
func (x *session) feed(from io.Reader, cancel context.CancelCauseFunc) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := x.pipes.in.Write(buf[:n]); err != nil {
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF) && x.tty:
			_ = control(x.pipes.in, func(fd int) error { TypeEnd(fd); return nil })
			return
		case errors.Is(err, io.EOF):
			_ = x.pipes.in.Close()
			return
		case err != nil:
			cancel(fault.New(fault.Canceled, "monitor", "read the input: %w", err))
			return
		}
	}
}

// control calls do with f's descriptor, unless f is closed.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
}

// result waits for the last reply.
func (x *session) result(into any) error {
	err := receive(x.conn, into)
	switch {
	case x.ctx.Err() != nil:
		return context.Cause(x.ctx)
	case lost(err):
		return x.restarted(err)
	}
	return err
}

// drain waits until all output is written to the caller. With soon, what is
// left behind may hold it open only for a while.
func (x *session) drain(soon bool) error {
	for _, o := range x.outs {
		if soon {
			o.end()
		}
	}
	for _, o := range x.outs {
		select {
		case <-o.done:
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
	}
	return context.Cause(x.ctx) // of a write that failed
}

func (x *session) close() {
	x.stop()
	_ = x.conn.Close()
	x.pipes.close()
}
