package criclient

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// confirmWithin is how long a runtime may take to confirm a subscription; some
// say nothing before their first event.
const confirmWithin = 500 * time.Millisecond

// An Event is what became of a pod or container, or a gap: one of the two is
// set.
type Event struct {
	*runtimeapi.ContainerEventResponse
	Gap *Gap
}

// A Gap says that until now anything may have happened unseen: list pods and
// containers. What happens from here on is told, as far as the runtime does.
type Gap struct {
	Since time.Time // when the subscription before ended; zero before the first
	Cause error     // why it ended; nil before the first
}

// Events subscribes to what becomes of pods and containers. When the runtime
// goes, it subscribes again, from 100 ms to 3 s apart, until it is back. Each
// subscription begins with a Gap, once it is in force; with a runtime that
// does not say when that is, after half a second, and again before the first
// event.
//
// Ranging over it blocks, and ends with an error: ErrCanceled or ErrTimeout
// when ctx is over or the Client is closed, ErrUnimplemented if the runtime
// has no events, ErrVersionLost, ErrInvalid, ErrDenied, and a
// *NegotiationError if no version is served. Events are hints: runtimes drop
// some for readers that are slow.
//
// CRI: api.proto, GetContainerEvents.
func (c *Client) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		var gap Gap
		wait := backoffBase
		over := func() error {
			return c.runtime.typed(ctx, "GetContainerEvents", status.FromContextError(ctx.Err()).Err())
		}
		for {
			began := time.Now()
			s := subscription{gap: gap, yield: yield}
			err := s.run(ctx, c.RuntimeServiceClient)
			switch {
			case s.left:
				return
			case ctx.Err() != nil: // whatever else ended it
				yield(Event{}, over())
				return
			case c.runtime.closed() || c.final(err):
				yield(Event{}, err)
				return
			case s.open:
				gap = Gap{Since: time.Now(), Cause: err}
			}
			if time.Since(began) > backoffMax {
				wait = backoffBase
			}
			select {
			case <-time.After(wait*4/5 + rand.N(wait*2/5)):
			case <-ctx.Done():
				yield(Event{}, over())
				return
			}
			wait = min(wait*8/5, backoffMax)
		}
	}
}

func (l *link) closed() bool { return l.conn.GetState() == connectivity.Shutdown }

// final reports whether a subscription that ended by err is not to be tried
// again.
func (c *Client) final(err error) bool {
	for _, kind := range []error{ErrUnimplemented, ErrInvalid, ErrDenied} {
		if errors.Is(err, kind) {
			return true
		}
	}
	var none *NegotiationError
	return errors.As(err, &none) && none.last().Unimplemented() || errors.Is(err, ErrVersionLost) && !c.runtime.renegotiate
}

// A subscription is one stream of events.
type subscription struct {
	gap   Gap
	yield func(Event, error) bool

	open bool // a gap was told
	left bool // the caller wants no more
}

// received is what a stream delivers; neither set means that it is in force.
type received struct {
	event *runtimeapi.ContainerEventResponse
	err   error
}

// run delivers events until the stream ends, by the error returned, or the
// caller leaves.
func (s *subscription) run(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		cancel()
		return err
	}
	got, over, done := make(chan received), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		receive(stream, got, over)
	}()
	defer func() {
		close(over)
		cancel()
		<-done
	}()
	unconfirmed := time.NewTimer(confirmWithin)
	defer unconfirmed.Stop()
	for {
		select {
		case <-unconfirmed.C:
			gap := s.gap
			s.tell(Event{Gap: &gap})
			s.gap = Gap{Since: time.Now()}
		case r := <-got:
			switch {
			case r.err != nil:
				return r.err
			case r.event == nil:
				unconfirmed.Stop()
				gap := s.gap
				s.tell(Event{Gap: &gap})
			default:
				s.tell(Event{ContainerEventResponse: r.event})
			}
		}
		if s.left {
			return nil
		}
	}
}

func (s *subscription) tell(e Event) {
	s.open = true
	s.left = !s.yield(e, nil)
}

// receive reads stream to its end, or until over is closed.
func receive(stream grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse], got chan<- received, over <-chan struct{}) {
	put := func(r received) bool {
		select {
		case got <- r:
			return true
		case <-over:
			return false
		}
	}
	// Without a header the stream has failed, and Recv says how.
	if header, _ := stream.Header(); header != nil && !put(received{}) {
		return
	}
	for {
		e, err := stream.Recv()
		if !put(received{event: e, err: err}) || err != nil {
			return
		}
	}
}
