package keeper

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A queue sends events to a monitor in order and without making the sender
// wait: a monitor that hangs must not stop the reaping.
type queue struct {
	link *monitor.Link

	mu     sync.Mutex
	more   sync.Cond
	events []queued
	closed bool
}

type queued struct {
	event monitor.KeeperEvent
	fd    int // the queue's own; -1: none
}

func newQueue(link *monitor.Link) *queue {
	q := &queue{link: link}
	q.more.L = &q.mu
	return q
}

// put adds an event, with a copy of fd unless it is negative.
func (q *queue) put(event monitor.KeeperEvent, fd int) {
	if fd >= 0 {
		var err error
		if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return // out of descriptors: the monitor does without
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events = append(q.events, queued{event, fd})
	q.more.Signal()
}

// close ends run and drops what is not sent: the monitor has gone.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, e := range q.events {
		if e.fd >= 0 {
			_ = unix.Close(e.fd)
		}
	}
	q.events = nil
	q.more.Signal()
}

// run sends until close. Errors are left to the reader of the link.
func (q *queue) run() {
	for {
		q.mu.Lock()
		for len(q.events) == 0 && !q.closed {
			q.more.Wait()
		}
		batch := q.events
		q.events = nil
		closed := q.closed
		q.mu.Unlock()
		if closed {
			return
		}
		for _, e := range batch {
			if e.fd < 0 {
				_ = q.link.Send(e.event)
				continue
			}
			_ = q.link.Send(e.event, e.fd)
			_ = unix.Close(e.fd)
		}
	}
}
