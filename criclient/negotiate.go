package criclient

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An Answer is what a runtime said when it was asked for a version.
type Answer struct {
	Service Service
	Version Version
	// Err is nil if the version is served.
	Err error
	// Runtime is what the runtime service answered; nil of the image service.
	Runtime *runtimeapi.VersionResponse
	// Took is how long the answer took.
	Took time.Duration

	connection uint64 // by which it came; 0 if none did
}

// came reports whether the runtime answered, if only by an error.
func (a Answer) came() bool { return a.connection != 0 }

// Unimplemented reports whether the answer was that there is no such version.
func (a Answer) Unimplemented() bool { return status.Code(a.Err) == codes.Unimplemented }

// String is "v1 answered Version" or "v1 answered Unimplemented (words)".
func (a Answer) String() string {
	if a.Err == nil {
		return fmt.Sprintf("%s answered %s", a.Version, a.Service.probe())
	}
	s := status.Convert(a.Err)
	if !a.came() {
		return fmt.Sprintf("%s got no answer (%s)", a.Version, a.words())
	}
	return fmt.Sprintf("%s answered %s (%s)", a.Version, s.Code(), a.words())
}

// words are why there was no good answer, the endpoint's own trouble first.
func (a Answer) words() string {
	if e := endpointError(a.Err); e != nil {
		return e.Problem
	}
	text := status.Convert(a.Err).Message()
	if strings.Contains(text, "error reading server preface") && strings.Contains(text, "use of closed network connection") {
		// gRPC closed it: the kernel accepts for programs that are stopped, too.
		return fmt.Sprintf("it was connected to, and said nothing within %v", minConnectTimeout)
	}
	return text
}

// A Choice is a version settled for one service.
type Choice struct {
	Service  Service
	Endpoint string
	Version  Version
	// Answers are what led to it, in the order they came.
	Answers []Answer

	connection uint64 // by which it was last confirmed
}

// Why is one line for people: "v1alpha2, since v1 answered Unimplemented (…)".
func (c *Choice) Why() string {
	if len(c.Answers) == 1 {
		return fmt.Sprintf("%s, which the %s at %s answers", c.Version, c.Service, c.Endpoint)
	}
	return fmt.Sprintf("%s, since %s at the %s of %s", c.Version, c.Answers[0], c.Service, c.Endpoint)
}

// A link is one service at its endpoint. It is a grpc.ClientConnInterface on
// which calls of v1 go out in the version settled.
type link struct {
	service     Service
	endpoint    string
	dialer      *dialer
	conn        *grpc.ClientConn
	renegotiate bool
	timeout     time.Duration
	told        func(Choice)

	turn   chan struct{} // one negotiation at a time
	choice atomic.Pointer[Choice]

	mu     sync.Mutex // held for moments
	absent map[string]absence
	lost   *VersionLostError
}

func newLink(s Service, endpoint string, o Options) (*link, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	d := &dialer{path: path}
	conn, err := connect(d, o.GRPC)
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", s, endpoint, err)
	}
	l := &link{
		service: s, endpoint: "unix://" + path, dialer: d, conn: conn, renegotiate: o.Renegotiate,
		timeout: o.Timeout, told: o.Settled, turn: make(chan struct{}, 1), absent: map[string]absence{},
	}
	if l.timeout <= 0 {
		l.timeout = defaultTimeout
	}
	return l, nil
}

// settled returns the version to speak, and settles it if need be.
func (l *link) settled(ctx context.Context) (*Choice, error) {
	if c := l.choice.Load(); c != nil && l.holds(c) {
		return c, nil
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, newError(ctx, l.service, l.service.probe(), status.FromContextError(ctx.Err()).Err(), nil)
	}
	if c := l.choice.Load(); c != nil && l.holds(c) {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	c, err := l.negotiate(ctx)
	if err != nil {
		return nil, err
	}
	l.choice.Store(c)
	l.forget()
	if l.told != nil {
		l.told(*c)
	}
	return c, nil
}

// holds reports whether c may be used without asking again.
func (l *link) holds(c *Choice) bool {
	return !l.renegotiate || l.current(c.connection)
}

// current reports whether the connection of that number is still in use.
func (l *link) current(connection uint64) bool {
	return connection == l.dialer.dialed.Load() && l.conn.GetState() == connectivity.Ready
}

// negotiate asks for the versions in order; only Unimplemented leads on.
func (l *link) negotiate(ctx context.Context) (*Choice, error) {
	var answers []Answer
	for _, v := range Versions() {
		a := l.ask(ctx, v)
		answers = append(answers, a)
		if a.Err == nil {
			return &Choice{Service: l.service, Endpoint: l.endpoint, Version: v, Answers: answers, connection: a.connection}, nil
		}
		if !a.Unimplemented() {
			break
		}
	}
	return nil, &NegotiationError{Service: l.service, Endpoint: l.endpoint, Answers: answers}
}

// ask probes one version.
func (l *link) ask(ctx context.Context, v Version) Answer {
	a := Answer{Service: l.service, Version: v}
	var request, response any = &runtimeapi.ImageFsInfoRequest{}, &runtimeapi.ImageFsInfoResponse{}
	var runtime *runtimeapi.VersionResponse
	if l.service == RuntimeService {
		runtime = &runtimeapi.VersionResponse{}
		request, response = &runtimeapi.VersionRequest{}, runtime
	}
	var from peer.Peer
	start := time.Now()
	err := l.conn.Invoke(ctx, v.path(l.service, l.service.probe()), request, response, grpc.Peer(&from))
	a.Took, a.connection = time.Since(start), number(&from)
	if err != nil {
		a.Err = l.typed(ctx, l.service.probe(), err)
		if over(ctx) || brokeOff(err) {
			a.connection = 0
		}
		return a
	}
	a.Runtime = runtime
	return a
}

// brokeOff reports whether err is gRPC's own, of a connection that ended
// before the answer.
func brokeOff(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.Unavailable && strings.HasPrefix(s.Message(), "error reading from server")
}

// number is the connection's that p was met by, or 0.
func number(p *peer.Peer) uint64 {
	if p == nil {
		return 0
	}
	a, _ := p.Addr.(address)
	return a.number
}

// A NegotiationError says that no version could be settled for a service.
// Nothing of the service can be used. For errors.Is it is what the last answer
// is, but for ErrUnimplemented: that is of single methods.
type NegotiationError struct {
	Service  Service
	Endpoint string
	Answers  []Answer // at least one; the last is why it ended
}

func (e *NegotiationError) Error() string {
	var tried []string
	for _, a := range e.Answers {
		tried = append(tried, a.String())
	}
	text := fmt.Sprintf("%s at %s: no version of the CRI can be used: %s", e.Service, e.Endpoint, strings.Join(tried, "; "))
	if len(e.Answers) < len(Versions()) {
		text += fmt.Sprintf("; %s was not tried, since only Unimplemented leads to it", Versions()[len(e.Answers)])
	}
	return text + "; " + e.Advice()
}

// Is serves package errors.
func (e *NegotiationError) Is(target error) bool {
	return target != ErrUnimplemented && errors.Is(e.last().Err, target)
}

// Unwrap returns an *EndpointError if the runtime was not reached.
func (e *NegotiationError) Unwrap() error {
	if at := endpointError(e.last().Err); at != nil {
		return at
	}
	return nil
}

// GRPCStatus has the last answer's code and the whole text.
func (e *NegotiationError) GRPCStatus() *status.Status {
	return status.New(status.Code(e.last().Err), e.Error())
}

func (e *NegotiationError) last() Answer { return e.Answers[len(e.Answers)-1] }

// Advice says what to do.
func (e *NegotiationError) Advice() string {
	last := e.last()
	if at := endpointError(last.Err); at != nil && at.Advice != "" {
		return at.Advice
	}
	switch code := status.Code(last.Err); {
	case last.Unimplemented() && e.Service == ImageService:
		return "name the endpoint at which images are served, or switch the image service on in the runtime's configuration"
	case last.Unimplemented():
		return "name the socket of a runtime that serves the CRI, or switch the CRI on in this one's configuration"
	case code == codes.DeadlineExceeded:
		return "the runtime hangs: look at its log, and restart it"
	case code == codes.Canceled:
		return "the caller gave up"
	case !last.came():
		return "the program at this socket does not speak gRPC, hangs, or ended: name the runtime's socket, or look at its log and restart it"
	}
	return "look at the runtime's log; it has to answer before anything can be used"
}

// A VersionLostError says that the runtime, since it was connected again, no
// longer serves the version that this client settled on and keeps. The client
// has to be restarted: made anew. It is ErrVersionLost for errors.Is, and not
// ErrUnimplemented, since nothing is known of the method called.
type VersionLostError struct {
	Service  Service
	Endpoint string
	Version  Version  // that was settled
	Answers  []Answer // what the runtime says now, of each version

	connection uint64
}

func (e *VersionLostError) Error() string {
	now := "it serves no other that this client knows"
	var last []string
	for _, a := range e.Answers {
		if a.Err == nil {
			now = fmt.Sprintf("it serves %s now", a.Version)
		} else {
			last = append(last, a.String())
		}
	}
	return fmt.Sprintf("%s at %s: the runtime no longer serves CRI %s, which this client settled on and keeps (%s); %s; restart this client",
		e.Service, e.Endpoint, e.Version, strings.Join(last, "; "), now)
}

// Is serves package errors.
func (e *VersionLostError) Is(target error) bool { return target == ErrVersionLost }

// GRPCStatus is Unimplemented, as the runtime answered, with the whole text.
func (e *VersionLostError) GRPCStatus() *status.Status {
	return status.New(codes.Unimplemented, e.Error())
}
