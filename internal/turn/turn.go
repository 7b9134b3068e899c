// Package turn says whose turn it is to compute, where more at a time than there
// are processors would only push each other out of caches, and take memory. Who
// waits for something lets another compute; a wait too short for that changes
// nothing. Nothing is computed here. Package image unpacks layers by it, those
// of all pulls together: slow registries are asked for several at a time.
package turn

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// patience is how long a turn is kept while waiting, at most. A fourth
	// of the time that it took to compute is what is earned of that: who waits
	// for more, in many pauses or in one, is waiting.
	patience = 25 * time.Millisecond
	earned   = 4

	// length is after how long one goes to the end of the queue, so that
	// nobody with little to do waits for all that others have.
	length = 2 * time.Second
)

// A Queue gives turns to those who have joined, in that order.
type Queue struct {
	mu    sync.Mutex
	free  int
	queue []*Turn
}

// NewQueue returns a queue in which n have their turn at a time.
func NewQueue(n int) *Queue { return &Queue{free: n} }

// A Turn is a place in a queue, and what comes of it. It is one goroutine's.
type Turn struct {
	queue *Queue
	state state
	given chan struct{} // has something once it is its turn
	timer *time.Timer   // while paused: gives the turn to others
	since time.Time     // of the turn
	from  time.Time     // of the pause, or of what is between two
	spare time.Duration // for which a pause may keep the turn
}

type state uint8

const (
	queued state = iota
	held
	paused // held until the timer gives it to others
	passed // to others, during a pause
	over
)

// Join takes a place in the queue. The caller ends the turn.
func (q *Queue) Join() *Turn {
	t := &Turn{queue: q, given: make(chan struct{}, 1), spare: patience}
	q.enqueue(t)
	return t
}

func (q *Queue) enqueue(t *Turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, t)
	q.next()
}

// next gives what is free. q.mu is held.
func (q *Queue) next() {
	for ; q.free > 0 && len(q.queue) > 0; q.free-- {
		q.queue[0].given <- struct{}{}
		q.queue = slices.Delete(q.queue, 0, 1)
	}
}

func (q *Queue) give() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free++
	q.next()
}

// wanted reports whether others wait.
func (q *Queue) wanted() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue) > 0
}

// Take waits until it is the turn of one that has joined, again if it was over,
// or until ctx ends: its cause is the only error.
func (t *Turn) Take(ctx context.Context) error {
	switch t.state {
	case held:
		return nil
	case passed, over:
		t.queue.enqueue(t)
	}
	select {
	case <-t.given:
	case <-ctx.Done():
		t.queue.leave(t)
		t.state = over
		return context.Cause(ctx)
	}
	t.state, t.since = held, time.Now()
	t.from = t.since
	return nil
}

// leave gives up a place in the queue, or the turn that came of it meanwhile.
func (q *Queue) leave(t *Turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.queue, t); i >= 0 {
		q.queue = slices.Delete(q.queue, i, i+1)
		return
	}
	<-t.given
	q.free++
	q.next()
}

// Pause says that something is waited for from now on, and not computed. It
// does not block. Without a turn it does nothing.
func (t *Turn) Pause() {
	if t.state != held {
		return
	}
	now := time.Now()
	t.spare = min(t.spare+now.Sub(t.from)/earned, patience)
	t.from = now
	if t.spare <= 0 || now.Sub(t.since) > length && t.queue.wanted() {
		t.state = passed
		t.queue.give()
		return
	}
	t.state = paused
	if t.timer == nil {
		t.timer = time.AfterFunc(t.spare, t.queue.give)
	} else {
		t.timer.Reset(t.spare)
	}
}

// Resume ends a pause. Who has lost the turn in it waits for another, with
// Take's error; whose turn is over goes on without.
func (t *Turn) Resume(ctx context.Context) error {
	switch t.state {
	case paused:
		if t.timer.Stop() {
			now := time.Now()
			t.spare -= now.Sub(t.from)
			t.state, t.from = held, now
			return nil
		}
		t.state = passed
	case over:
		return nil
	}
	t.spare = 0
	return t.Take(ctx)
}

// End gives a turn back, also in a pause, or a place in the queue. It may be
// called several times.
func (t *Turn) End() {
	switch t.state {
	case queued:
		t.queue.leave(t)
	case paused:
		if t.timer.Stop() {
			t.queue.give()
		}
	case held:
		t.queue.give()
	}
	t.state = over
}
