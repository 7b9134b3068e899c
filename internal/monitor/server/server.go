// Package server is the monitor: it runs OCI runtimes, owns the stdio and the
// log files of all containers of one state directory, runs execs, and tells
// davitd of exits, over the protocol of package monitor.
//
// It owns <state>/monitor/<id>/ and the log files. It may be killed at any
// instant: what must not be lost is in the record (container.json), in the
// commit file (commitFile), or with the keeper. It parents no container for
// longer than an OCI runtime takes to leave it to the keeper, and parses
// nothing of what containers write but line ends. davit-monitor's main calls
// it; it ends with the keeper.
//
// Lock order: container.op, server.mu, container.mu. Those of package stdio are
// taken with none of them but container.op held, and server.mu at the very end.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// A server is the monitor of one state directory.
type server struct {
	dir     string // of the containers: <state>/monitor
	keeper  *keeperLink
	log     *slog.Logger
	baseOOM int // oom_score_adj that the keeper was started with
	// protected is whether this process has a lower one, which its children inherit.
	protected bool
	oom       *oomWatch
	work      *work

	mu         sync.Mutex
	containers map[string]*container
	execs      map[string]chan monitor.Ended // by claim ID
	exits      uint64                        // counts exits, so that watchers know what they have
	changed    chan struct{}                 // closed and replaced at each exit
	recovered  bool
	early      map[string]monitor.Ended // exits from before recovered, of those not yet known
}

// Run serves until the keeper has gone, or has asked it to end, with which
// nothing half made is left. controlFD is the keeper's socket,
// listenFD the listener of monitor.sock.
func Run(state string, controlFD, listenFD int, log *slog.Logger) error {
	link, err := monitor.NewLink(controlFD)
	if err != nil {
		return err
	}
	lock, err := awaitLock(state)
	if err != nil {
		return err
	}
	defer lock.Close()
	f := os.NewFile(uintptr(listenFD), "monitor.sock")
	listener, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	s := &server{
		dir: filepath.Join(state, "monitor"), keeper: newKeeperLink(link), log: log,
		containers: map[string]*container{}, execs: map[string]chan monitor.Ended{},
		changed: make(chan struct{}), early: map[string]monitor.Ended{}, work: newWork(),
	}
	s.oom = newOOMWatch(s)
	have, err := s.keeper.begin()
	if err != nil {
		return err
	}
	s.baseOOM = have.baseOOM
	if own, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		s.protected = strings.TrimSpace(string(own)) != strconv.Itoa(have.baseOOM)
	}
	keeperGone := make(chan error, 1)
	go func() { keeperGone <- s.keeper.run(s.exited) }()
	recovered := make(chan error, 1)
	go func() { recovered <- s.recover(have) }()
	select {
	case err = <-keeperGone: // which recover would wait for
		return err
	case err = <-recovered:
	}
	if err != nil {
		return err
	}
	go s.accept(listener)
	select {
	case err = <-keeperGone:
	case <-s.keeper.ending:
		_ = listener.Close()
		err = s.work.end()
	}
	s.quiesce()
	return err
}

// A work is what requests have under way.
type work struct {
	// calls ends, with a cause, when execs and creates are to give up; commands
	// when OCI runtimes that hang are to be killed.
	calls, commands       context.Context
	endCalls, endCommands context.CancelCauseFunc

	mu     sync.Mutex
	ending bool
	under  sync.WaitGroup
}

func newWork() *work {
	w := &work{}
	w.calls, w.endCalls = context.WithCancelCause(context.Background())
	w.commands, w.endCommands = context.WithCancelCause(context.Background())
	return w
}

// begin adds one, which done takes off, unless the end has begun.
func (w *work) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ending {
		w.under.Add(1)
	}
	return !w.ending
}

func (w *work) done() { w.under.Done() }

var errEnding = fault.New(fault.Unavailable, "monitor", "davit-monitor is ending")

// end lets nothing more begin and waits for what is under way: execs are
// killed, creates undone, and commands of OCI runtimes killed if they take
// longer than endWait.
func (w *work) end() error {
	w.mu.Lock()
	w.ending = true
	w.mu.Unlock()
	w.endCalls(errEnding)
	idle := make(chan struct{})
	go func() {
		w.under.Wait()
		close(idle)
	}()
	kill := time.AfterFunc(endWait, func() { w.endCommands(errEnding) })
	defer kill.Stop()
	select {
	case <-idle:
		return nil
	case <-time.After(endWait + endWait/5):
		return fault.New(fault.Unavailable, "monitor", "requests under way do not end")
	}
}

// awaitLock waits until no other monitor is at work: one whose keeper was
// killed may still be in its last round.
func awaitLock(state string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, "monitor.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
	}
}

// quiesceWait bounds quiesce: a log may be on a disk that hangs, or be waiting
// for the keeper that was killed, while the next monitor waits for this one.
const quiesceWait = 3 * time.Second

// quiesce takes what the pipes hold to the logs and lets no further round
// begin: nobody holds the pipes of a container that has ended any more, nor
// any staging pipe.
func (s *server) quiesce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var freezing sync.WaitGroup
	for _, c := range s.containers {
		if o := c.output(); o != nil {
			freezing.Go(o.Freeze)
		}
	}
	frozen := make(chan struct{})
	go func() { freezing.Wait(); close(frozen) }()
	select {
	case <-frozen:
	case <-time.After(quiesceWait):
		s.log.Warn("what some pipes hold does not get into the logs", "within", quiesceWait)
	}
}

func (s *server) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return // the end has begun: callers wait for the next monitor
		}
		if err != nil {
			s.log.Error("accept", "error", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		go s.serve(conn)
	}
}

// serve answers the one request of a connection.
func (s *server) serve(conn net.Conn) {
	defer conn.Close()
	var r monitor.Request
	if err := monitor.ReadFrame(conn, &r); err != nil {
		if !errors.Is(err, io.EOF) {
			s.log.Warn("bad request", "error", err)
		}
		return
	}
	if err := r.CheckProtocol(); err != nil {
		_ = monitor.WriteFrame(conn, monitor.Reply{Failure: monitor.FailureOf(err)})
		return
	}
	if !s.work.begin() {
		return // no answer: the caller tries the next monitor
	}
	release := sync.OnceFunc(s.work.done)
	defer release()
	ctx, cancel := context.WithCancel(s.work.calls)
	defer cancel()
	if r.Method == monitor.MethodExecStream || r.Method == monitor.MethodAttach {
		s.session(ctx, conn.(*net.UnixConn), r, release)
		return
	}
	go func() { // the client sends nothing more: this ends when it has gone
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	if r.Method == monitor.MethodWatch {
		release()
		s.watch(ctx, conn)
		return
	}
	var reply monitor.Reply
	body, err := s.handle(ctx, caller{conn}, r)
	if err == nil && body != nil {
		reply.Body, err = json.Marshal(body)
	}
	if err != nil {
		reply.Failure = monitor.FailureOf(err)
	}
	_ = monitor.WriteFrame(conn, reply) // a client that has gone asks again if it cares
}

// A caller is the other end of a request's connection.
type caller struct{ conn net.Conn }

// gone reports whether it has closed the connection: what it sent afterwards,
// on another one, may have been answered already.
func (c caller) gone() bool {
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	var closed bool
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(poll, 0)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(poll, 0)
		}
		closed = n > 0
	})
	return closed || err != nil
}

func (s *server) handle(ctx context.Context, by caller, r monitor.Request) (any, error) {
	switch r.Method {
	case monitor.MethodCreate:
		return with(r, func(c monitor.Container) (any, error) { return pidReply(s.create(by, c, false)) })
	case monitor.MethodStart:
		return with(r, func(q monitor.IDRequest) (any, error) { return nil, s.start(q.ID) })
	case monitor.MethodSignal:
		return with(r, func(q monitor.SignalRequest) (any, error) { return nil, s.signal(q.ID, q.Signal) })
	case monitor.MethodRemove:
		return with(r, func(q monitor.IDRequest) (any, error) { return nil, s.remove(q.ID) })
	case monitor.MethodList:
		return s.list(), nil
	case monitor.MethodReopen:
		return with(r, func(q monitor.IDRequest) (any, error) { return nil, s.reopen(q.ID) })
	case monitor.MethodExec:
		return with(r, func(e monitor.Exec) (any, error) { return s.exec(ctx, e) })
	case monitor.MethodHold:
		return with(r, func(h monitor.Holder) (any, error) { return pidReply(s.hold(by, h)) })
	case monitor.MethodUpdate:
		return with(r, func(q monitor.UpdateRequest) (any, error) { return nil, s.update(q) })
	case monitor.MethodSeccomp:
		return with(r, func(q monitor.SeccompRequest) (any, error) { return s.seccomp(by, q) })
	}
	return nil, fault.New(fault.Unimplemented, "monitor", "unknown method %q", r.Method)
}

// with decodes the body of a request.
func with[T any](r monitor.Request, do func(T) (any, error)) (any, error) {
	var body T
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return nil, fault.New(fault.Invalid, "monitor."+r.Method, "%w", err)
	}
	return do(body)
}

func pidReply(pid int, err error) (any, error) { return monitor.PidReply{Pid: pid}, err }

// exited is told of each claimed process that has ended.
func (s *server) exited(id string, ended monitor.Ended) {
	s.mu.Lock()
	c, exec := s.containers[id], s.execs[id]
	if c == nil && exec == nil && !s.recovered {
		s.early[id] = ended
	}
	s.mu.Unlock()
	switch {
	case exec != nil:
		select {
		case exec <- ended:
		default:
		}
	case c != nil:
		c.end(ended)
	}
}

// list gives all that is not being made.
func (s *server) list() []monitor.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]monitor.Status, 0, len(s.containers))
	for _, c := range s.containers {
		if status, ok := c.status(); ok {
			list = append(list, status)
		}
	}
	return list
}

// announce makes an exit known to the watchers. Its container is complete.
func (s *server) announce(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exits++
	c.mu.Lock()
	c.exitSeq = s.exits
	c.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// watch sends each exit once, the old ones first, until the client has gone.
func (s *server) watch(ctx context.Context, conn net.Conn) {
	if monitor.WriteFrame(conn, monitor.Reply{}) != nil { // it is subscribed
		return
	}
	var seen uint64
	for {
		s.mu.Lock()
		var fresh []monitor.Exit
		newest := s.exits
		for _, c := range s.containers {
			if exit := c.exitSince(seen); exit != nil {
				fresh = append(fresh, *exit)
			}
		}
		changed := s.changed
		s.mu.Unlock()
		seen = newest
		for _, exit := range fresh {
			body, err := json.Marshal(exit)
			if err != nil || monitor.WriteFrame(conn, monitor.Reply{Body: body}) != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
