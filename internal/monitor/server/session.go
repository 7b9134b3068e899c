package server

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/monitor/stdio"
)

// session serves a command or an attachment that the client is connected to,
// until it or the client has gone.
func (s *server) session(ctx context.Context, conn *net.UnixConn, r monitor.Request, release func()) {
	var q monitor.StreamRequest
	var ends [3]*os.File
	files, err := monitor.ReceiveFiles(conn)
	if err != nil {
		return // the client has gone
	}
	if err = json.Unmarshal(r.Body, &q); err == nil {
		err = pick(q, files, &ends)
	}
	if err != nil {
		stdio.CloseAll(files)
		refuse(conn, fault.New(fault.Invalid, "monitor."+r.Method, "%w", err))
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := line{ctx: ctx, cancel: cancel, conn: conn}
	if r.Method == monitor.MethodExecStream {
		s.execStream(l, q, ends)
		return
	}
	release() // davit-monitor may end meanwhile
	s.attach(l, q, ends)
}

// pick tells which descriptor is for what.
func pick(q monitor.StreamRequest, files []*os.File, ends *[3]*os.File) error {
	for i, comes := range []bool{q.Stdin, q.Stdout, q.Stderr} {
		if !comes {
			continue
		}
		if len(files) == 0 {
			return errors.New("a descriptor is missing")
		}
		ends[i], files = files[0], files[1:]
	}
	if len(files) > 0 {
		return errors.New("there are too many descriptors")
	}
	return nil
}

// A line is the connection of a session.
type line struct {
	ctx    context.Context // ends when the client has gone
	cancel context.CancelFunc
	conn   *net.UnixConn
}

// begun says that the session has begun.
func (l line) begun(files ...*os.File) {
	err := monitor.WriteFrame(l.conn, monitor.Reply{})
	if err == nil && len(files) > 0 {
		err = monitor.SendFiles(l.conn, files...)
	}
	if err != nil {
		l.cancel()
	}
}

// follow hears the client, until the connection ends.
func (l line) follow(resize func(monitor.Size)) {
	go func() {
		defer l.cancel()
		for {
			var size monitor.Size
			if monitor.ReadFrame(l.conn, &size) != nil {
				return
			}
			resize(size)
		}
	}()
}

func refuse(conn net.Conn, err error) {
	_ = monitor.WriteFrame(conn, monitor.Reply{Failure: monitor.FailureOf(err)})
}

// execStream runs a command on the client's own pipes, or on a terminal whose
// master it gives to the client.
func (s *server) execStream(l line, q monitor.StreamRequest, ends [3]*os.File) {
	c, err := s.running(q.ContainerID)
	if err != nil {
		stdio.CloseAll(ends[:])
		refuse(l.conn, err)
		return
	}
	x := s.newExecution(c)
	x.stdio, x.tty, x.size = ends, q.TTY, q.Size
	l.follow(func(monitor.Size) {}) // its terminal is the client's
	if err := x.start(l.ctx, q.Args); err != nil {
		refuse(l.conn, err)
		return
	}
	defer x.forget()
	if x.terminal != nil {
		l.begun(x.terminal)
		_ = x.terminal.Close() // it hangs up when the client's closes
	} else {
		l.begun()
	}
	code, err := x.awaitEnd(l.ctx)
	if err != nil {
		refuse(l.conn, err)
		return
	}
	body, err := json.Marshal(monitor.CodeReply{Code: code})
	if err == nil {
		_ = monitor.WriteFrame(l.conn, monitor.Reply{Body: body})
	}
}

// attach connects a client to a container's streams until either has ended.
func (s *server) attach(l line, q monitor.StreamRequest, ends [3]*os.File) {
	c, err := s.running(q.ContainerID)
	var o *stdio.Streams
	if err == nil {
		if o = c.output(); o == nil {
			err = fault.New(fault.Precondition, "monitor.Attach", "container %s is not running", c.id)
		}
	}
	if err != nil {
		stdio.CloseAll(ends[:])
		refuse(l.conn, err)
		return
	}
	rec := c.get()
	if ends[0] != nil && (!rec.Container.Stdin || rec.InputOver) {
		_ = ends[0].Close() // so that the client stops
		ends[0] = nil
	}
	a, err := o.Attach(ends[0], ends[1], ends[2])
	if err != nil {
		refuse(l.conn, fault.New(fault.Precondition, "monitor.Attach", "container %s is not running: %w", c.id, err))
		return
	}
	fed := make(chan struct{})
	l.follow(func(size monitor.Size) {
		if err := o.Resize(size); err != nil {
			c.report(err)
		}
	})
	l.begun()
	go func() {
		defer close(fed)
		a.Feed()
		if ends[0] != nil && rec.Container.StdinOnce && context.Cause(s.work.calls) == nil {
			c.endInput(o)
		}
	}()
	var onlyInput <-chan struct{}
	if ends[1] == nil && ends[2] == nil {
		onlyInput = fed
	}
	select {
	case <-c.complete:
	case <-onlyInput:
	case <-l.ctx.Done():
		err = context.Cause(l.ctx) // this process ends, or the client has gone
	}
	a.Detach(l.ctx.Done())
	<-fed
	if err != nil {
		refuse(l.conn, err)
		return
	}
	_ = monitor.WriteFrame(l.conn, monitor.Reply{})
}

// endInput closes the standard input of a StdinOnce container for good.
func (c *container) endInput(o *stdio.Streams) {
	if c.hasEnded() || c.get().InputOver {
		return
	}
	err := c.save(func(r *record) { r.InputOver = true })
	if err == nil {
		err = c.s.keeper.drop(c.id + "/stdin")
	}
	if err != nil {
		c.s.log.Error("input not closed", "id", c.id, "error", err)
	}
	o.EndInput()
}
