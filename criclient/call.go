package criclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// An absence is remembered of a method that was answered by Unimplemented,
// for as long as the connection lasts: by gRPC's definition it is the service
// that does not have the method, whatever it was asked for.
//
// gRPC: statuscodes.md, UNIMPLEMENTED.
type absence struct {
	connection uint64
	err        error
}

// Invoke makes a call of v1 in the version settled. It goes out a second time
// only if the first met a runtime that has lost the version, did nothing, and
// another version was settled.
func (l *link) Invoke(ctx context.Context, path string, args, reply any, opts ...grpc.CallOption) error {
	method := methodOf(path)
	for again := true; ; again = false {
		choice, err := l.ready(ctx, method)
		if err != nil {
			return err
		}
		var from peer.Peer
		err = l.conn.Invoke(ctx, choice.Version.path(l.service, method), args, reply, slices.Concat(opts, []grpc.CallOption{grpc.Peer(&from)})...)
		if err == nil {
			return nil
		}
		err = l.judge(ctx, choice, method, number(&from), err)
		if !again || !l.renegotiate || !errors.Is(err, ErrVersionLost) {
			return err
		}
	}
}

// NewStream opens a stream of v1 in the version settled.
func (l *link) NewStream(ctx context.Context, desc *grpc.StreamDesc, path string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	method := methodOf(path)
	choice, err := l.ready(ctx, method)
	if err != nil {
		return nil, err
	}
	s, err := l.conn.NewStream(ctx, desc, choice.Version.path(l.service, method), opts...)
	if err != nil {
		return nil, l.typed(ctx, method, err)
	}
	return &stream{s, ctx, l, choice, method}, nil
}

// A stream types the errors of its messages. Servers answer Unimplemented
// there, not when a stream is opened.
type stream struct {
	grpc.ClientStream
	ctx    context.Context
	link   *link
	choice *Choice
	method string
}

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	from, _ := peer.FromContext(s.Context())
	return s.link.judge(s.ctx, s.choice, s.method, number(from), err)
}

// ready returns the version to call method in, or why it cannot be called.
func (l *link) ready(ctx context.Context, method string) (*Choice, error) {
	choice, err := l.settled(ctx)
	if err != nil {
		return nil, err
	}
	if !choice.Version.Has(l.service, method) {
		text := fmt.Sprintf("CRI %s, which is spoken with the runtime at %s, has no %s", choice.Version, l.endpoint, method)
		return nil, newError(ctx, l.service, method, status.Error(codes.Unimplemented, text), nil)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.absent[method]; ok {
		// Without a connection the call goes out, or none would ever come.
		if l.current(a.connection) {
			return nil, a.err
		}
		delete(l.absent, method)
	}
	return choice, nil
}

// judge types the error of a call that was made in choice's version and
// answered by the connection of that number, 0 if it was not answered. Of the
// first Unimplemented on a connection it finds out what is not there: the
// method, or the version.
func (l *link) judge(ctx context.Context, choice *Choice, method string, connection uint64, err error) error {
	err = l.typed(ctx, method, err)
	if status.Code(err) != codes.Unimplemented || connection == 0 {
		return err
	}
	if connection != choice.connection {
		if lost := l.lostOn(connection); lost != nil {
			return lost
		}
		switch a := l.ask(ctx, choice.Version); {
		case a.Unimplemented():
			return l.lose(ctx, choice, a)
		case a.Err != nil:
			return err // nothing can be said; the next call will ask again
		case a.connection == connection:
			confirmed := *choice
			confirmed.connection = connection
			l.choice.CompareAndSwap(choice, &confirmed)
		}
	}
	if method != l.service.probe() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.absent[method] = absence{connection, err}
	}
	return err
}

// lostOn returns the loss that was found by that connection, if one was.
func (l *link) lostOn(connection uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost == nil || l.lost.connection != connection {
		return nil
	}
	return l.lost
}

// lose notes that choice's version is not served any more, as gone says, and
// asks what is served instead.
func (l *link) lose(ctx context.Context, choice *Choice, gone Answer) error {
	lost := &VersionLostError{
		Service: l.service, Endpoint: l.endpoint, Version: choice.Version, Answers: []Answer{gone}, connection: gone.connection,
	}
	for _, v := range Versions() {
		if v != choice.Version {
			lost.Answers = append(lost.Answers, l.ask(ctx, v))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = lost
	return lost
}

// forget drops what was remembered of another version.
func (l *link) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.absent)
	l.lost = nil
}

func (l *link) typed(ctx context.Context, method string, err error) error {
	return newError(ctx, l.service, method, err, l.dialer.failed.Load())
}

// Connection returns the connection to the endpoint of s, for services that a
// runtime has beside the CRI. Calls go out as they are, and no version is
// settled for them; their errors are an *Error. It ends with the Client.
func (c *Client) Connection(s Service) grpc.ClientConnInterface {
	if s == ImageService {
		return plain{c.image}
	}
	return plain{c.runtime}
}

// plain is a link without versions.
type plain struct{ link *link }

func (p plain) Invoke(ctx context.Context, path string, args, reply any, opts ...grpc.CallOption) error {
	return p.link.typed(ctx, methodOf(path), p.link.conn.Invoke(ctx, path, args, reply, opts...))
}

func (p plain) NewStream(ctx context.Context, desc *grpc.StreamDesc, path string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := p.link.conn.NewStream(ctx, desc, path, opts...)
	if err != nil {
		return nil, p.link.typed(ctx, methodOf(path), err)
	}
	return &plainStream{s, ctx, p.link, methodOf(path)}, nil
}

type plainStream struct {
	grpc.ClientStream
	ctx    context.Context
	link   *link
	method string
}

func (s *plainStream) RecvMsg(m any) error {
	return s.link.typed(s.ctx, s.method, s.ClientStream.RecvMsg(m))
}
