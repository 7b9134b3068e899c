package stdio

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A worker is what one round needs beside the stream: a scratch pipe and
// buffers. Few exist, however many containers do.
type worker struct {
	r, w    int
	in, out []byte
}

// batchBytes is when formatted lines are written out.
const batchBytes = 128 << 10

var workers struct {
	mu   sync.Mutex
	free []*worker
}

// idleWorkers are kept; more are made when needed and closed afterwards.
const idleWorkers = 2

func takeWorker() (*worker, error) {
	workers.mu.Lock()
	if n := len(workers.free); n > 0 {
		w := workers.free[n-1]
		workers.free = workers.free[:n-1]
		workers.mu.Unlock()
		return w, nil
	}
	workers.mu.Unlock()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, pipeBytes)
	return &worker{r: p[0], w: p[1]}, nil
}

func (w *worker) free() {
	workers.mu.Lock()
	if len(workers.free) < idleWorkers {
		workers.free = append(workers.free, w)
		w = nil
	}
	workers.mu.Unlock()
	w.close()
}

// close is for one whose scratch pipe may hold something, or that is too many.
func (w *worker) close() {
	if w != nil {
		_ = unix.Close(w.r)
		_ = unix.Close(w.w)
	}
}

// coalesce is how soon after a round the next may come: a container that
// writes line by line costs one wake-up for many of them.
const coalesce = 500 * time.Microsecond

// newAlarm makes an epoll of src alone.
//
// Go's own poller is told of each write, whether or not anybody waits: a wake-up
// for each line, where a round takes hundreds. This one is told of nothing
// between a ring and the next arming.
func newAlarm(src int) (*os.File, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, src, &unix.EpollEvent{}) // not armed
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "alarm"), nil
}

// await arms the alarm and waits until there is something to read, the
// terminal has hung up, or Finish.
func (s *stream) await() error {
	raw, err := s.alarm.SyscallConn()
	if err != nil {
		return err
	}
	armed := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.EpollCtl(int(fd), unix.EPOLL_CTL_MOD, s.src, &armed) })
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		var events [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.EpollWait(int(fd), events[:], 0)
		}
		return n > 0 || err != nil
	})
}

// pump runs rounds until Finish, or until a terminal has hung up.
func (o *Streams) pump(s *stream) {
	defer close(s.ended)
	for !s.stop.Load() {
		n, err := o.round(s)
		if errors.Is(err, unix.EIO) && s.tty {
			return // hung up: Finish follows
		}
		busy := time.Since(s.last) < 2*coalesce
		if busy {
			time.Sleep(coalesce)
		}
		s.last = time.Now()
		if err == nil && (n == 0 || !busy) {
			if err = s.await(); errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
		}
		if err != nil {
			o.report(err)
			time.Sleep(100 * time.Millisecond) // never spin, never give up
		}
	}
}

// round takes what the source has now to the log. It returns 0 if there was
// nothing. See commitFile for the order of things.
func (o *Streams) round(s *stream) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, nil
	}
	if o.log == nil {
		var page [4096]byte
		n, err := unix.Read(s.src, page[:])
		n = max(n, 0)
		o.deliver(s.index, page[:n])
		return n, ignoreAgain(err)
	}
	moved, err := fill(s.src, s.stage)
	if err != nil {
		return 0, err
	}
	total, err := unix.IoctlGetInt(s.stage, unix.TIOCINQ)
	if err != nil || total == 0 {
		return 0, err
	}
	w, err := takeWorker()
	if err != nil {
		return 0, err
	}
	carry := o.commits.carry(s.index)
	n, err := w.copyOf(s.stage, total, carry)
	if err != nil {
		w.close() // its pipe may not be empty
		return 0, err
	}
	defer w.free()
	tail := o.write(w, s)
	o.commit(s, tail, total, n)
	if err := drain(s.stage, n); err != nil {
		return 0, err
	}
	o.commits.drained()
	o.deliver(s.index, w.in[len(carry):])
	return max(moved, n), nil
}

// commit notes what is in the log, and that n of total bytes in the staging
// pipe are of no more use.
func (o *Streams) commit(s *stream, tail []byte, total, n int) {
	next := slot{stream: uint32(s.index), total: uint32(total), stale: uint32(n)}
	next.dev, next.ino, next.length = o.log.dev, o.log.ino, o.log.length
	err := o.commits.commit(next, tail)
	if err == nil {
		return
	}
	// No room to keep an unfinished line: better a piece than none.
	o.report(errors.Join(err, o.log.append(appendLine(nil, appendHeader(nil, time.Now(), s.name), tail, false))))
	next.dev, next.ino, next.length = o.log.dev, o.log.ino, o.log.length
	_ = o.commits.commit(next, nil)
}

// fill moves bytes from the source to the staging pipe.
func fill(src, stage int) (int, error) {
	for {
		n, err := unix.Splice(src, nil, stage, nil, pipeBytes, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case errors.Is(err, unix.EINVAL):
			return copyInto(src, stage) // a terminal, before Linux 5.12
		}
		return int(n), err
	}
}

// copyInto is fill where splice is not to be had. A kill between its two calls
// loses up to a page.
func copyInto(src, stage int) (int, error) {
	var page [4096]byte
	n, err := unix.Read(src, page[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || n <= 0 {
		return 0, ignoreAgain(err)
	}
	return unix.Write(stage, page[:n])
}

func ignoreAgain(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// copyOf reads up to total bytes of the staging pipe into w.in, behind carry,
// and leaves them in the pipe.
func (w *worker) copyOf(stage, total int, carry []byte) (int, error) {
	n, err := unix.Tee(stage, w.w, total, unix.SPLICE_F_NONBLOCK)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Tee(stage, w.w, total, unix.SPLICE_F_NONBLOCK)
	}
	if err != nil {
		return 0, err
	}
	size := len(carry) + int(n)
	if cap(w.in) < size {
		w.in = make([]byte, 0, size+size/2)
	}
	w.in = append(w.in[:0], carry...)
	for len(w.in) < size {
		m, err := unix.Read(w.r, w.in[len(w.in):size])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		w.in = w.in[:len(w.in)+m]
	}
	return int(n), nil
}

// write appends the whole lines of w.in to the log and returns what is left.
func (o *Streams) write(w *worker, s *stream) (tail []byte) {
	var head [64]byte
	header := appendHeader(head[:0], time.Now(), s.name)
	rest, more := w.in, true
	for more {
		w.out, rest, more = appendLines(w.out[:0], rest, header, s.tty, batchBytes)
		if len(w.out) == 0 {
			break
		}
		opened := o.log.fd >= 0
		if err := o.log.append(w.out); err != nil {
			o.report(err)
		}
		if !opened && o.log.fd >= 0 {
			if err := o.keepLog(); err != nil {
				o.report(err)
			}
		}
	}
	return rest
}

// null is where bytes go that are in the log already.
var null = sync.OnceValues(func() (int, error) { return unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0) })

// drain drops n bytes from a pipe that has them.
func drain(pipe, n int) error {
	to, err := null()
	if err != nil {
		return err
	}
	for n > 0 {
		m, err := unix.Splice(pipe, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return nil
		}
		n -= int(m)
	}
	return nil
}
