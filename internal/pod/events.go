package pod

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// An EventKind is what became of a pod or a container.
type EventKind string

const (
	EventCreated EventKind = "created"
	EventStarted EventKind = "started"
	EventStopped EventKind = "stopped"
	EventDeleted EventKind = "deleted"
)

// An Event tells that a pod or a container has changed: the lists show it
// already. Those of one pod or container come in order. A pod that is ready has
// been created and started; one that is not ready any more has stopped.
type Event struct {
	Kind      EventKind
	At        time.Time
	Pod       *Snapshot          // of then
	Container *ContainerSnapshot // of then; nil if it is the pod's event
}

// eventQueue is how many events wait for one reader: some seconds of a node at
// its busiest.
const eventQueue = 1024

// A Subscription is one reader's queue of events. Whoever reads too slowly
// loses the oldest ones; nobody ever waits for a reader.
type Subscription struct {
	Events <-chan Event // closed when the subscription's context has ended
	lost   atomic.Uint64
}

// Lost returns how many events the reader has missed.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// A board has the subscriptions.
type board struct {
	mu      sync.Mutex // held for a moment only; after record.mu and Pods.mu
	readers map[*Subscription]chan Event
	busy    atomic.Bool // there are readers
}

// Subscribe returns the events from now on, until ctx ends. There is no replay:
// a reader that wants to miss nothing subscribes, then lists.
func (p *Pods) Subscribe(ctx context.Context) *Subscription {
	return p.board.subscribe(ctx, eventQueue)
}

func (b *board) subscribe(ctx context.Context, length int) *Subscription {
	queue := make(chan Event, length)
	s := &Subscription{Events: queue}
	b.mu.Lock()
	if b.readers == nil {
		b.readers = map[*Subscription]chan Event{}
	}
	b.readers[s] = queue
	b.busy.Store(true)
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.readers, s)
		b.busy.Store(len(b.readers) > 0)
		close(queue)
	})
	return s
}

// post gives e, with the time, to all readers. It never waits.
func (b *board) post(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.At = time.Now()
	for s, queue := range b.readers {
		if len(queue) == cap(queue) {
			select { // the reader may have taken one meanwhile
			case <-queue:
				s.lost.Add(1)
			default:
			}
		}
		queue <- e // this is the only writer, so there is room
	}
}

// podChanged posts what a change of a pod's state means to readers. The pod's
// mutex is held.
func (p *Pods) podChanged(was, is *podState) {
	if was.State == is.State || !p.board.busy.Load() {
		return
	}
	switch is.State {
	case Ready:
		p.postPod(EventCreated, is)
		p.postPod(EventStarted, is)
	case NotReady:
		if was.State == Ready {
			p.postPod(EventStopped, is)
		}
	}
}

// containerChanged posts what a change of a container's state means to
// readers. The container's mutex is held.
func (p *Pods) containerChanged(c *container, was, is *containerState) {
	if was.State == is.State || !p.board.busy.Load() {
		return
	}
	switch is.State {
	case Created:
		p.postContainer(EventCreated, is)
	case Running:
		p.postContainer(EventStarted, is)
	case Exited:
		if c.starting && !is.Killed {
			c.outran = true // startOver knows what came of the start
			return
		}
		p.postContainer(EventStopped, is)
	}
}

// startBegins and startOver are around a start, whose success may be learned
// of after the container's end: the events are in order all the same.
func (c *container) startBegins() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = true
}

func (p *Pods) startOver(c *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	if !c.outran {
		return
	}
	c.outran = false
	s := c.state.Load()
	if s.Reason != startError {
		p.postContainer(EventStarted, s)
	}
	p.postContainer(EventStopped, s)
}

// podGone and containerGone post the end of what readers could have seen.
func (p *Pods) podGone(s *podState) {
	if s.State != Preparing && p.board.busy.Load() {
		p.postPod(EventDeleted, s)
	}
}

func (p *Pods) containerGone(s *containerState) {
	if s.State != Preparing && p.board.busy.Load() {
		p.postContainer(EventDeleted, s)
	}
}

func (p *Pods) postPod(kind EventKind, s *podState) {
	p.board.post(Event{Kind: kind, Pod: &s.Snapshot})
}

// postContainer posts nothing for a container whose pod is gone, as recovery
// may find one: readers could not tell whose it is.
func (p *Pods) postContainer(kind EventKind, s *containerState) {
	p.mu.RLock()
	pod := p.pods[s.PodID]
	p.mu.RUnlock()
	if pod != nil {
		p.board.post(Event{Kind: kind, Pod: &pod.state.Load().Snapshot, Container: &s.ContainerSnapshot})
	}
}
