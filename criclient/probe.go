package criclient

import (
	"context"
	"fmt"
	"sync"
)

// A Report is what answers at a socket.
type Report struct {
	Endpoint string
	Answers  []Answer // of each service each version: runtime first, v1 first
}

// Serves returns the versions of s that answer, the preferred one first.
func (r Report) Serves(s Service) []Version {
	var out []Version
	for _, a := range r.Answers {
		if a.Service == s && a.Err == nil {
			out = append(out, a.Version)
		}
	}
	return out
}

// Chooses returns the version that a Client, and a kubelet, would settle on
// for s; of no version, the error is a *NegotiationError.
func (r Report) Chooses(s Service) (Version, error) {
	e := &NegotiationError{Service: s, Endpoint: r.Endpoint}
	for _, a := range r.Answers {
		if a.Service != s {
			continue
		}
		e.Answers = append(e.Answers, a)
		if a.Err == nil {
			return a.Version, nil
		}
		if !a.Unimplemented() {
			break
		}
	}
	if len(e.Answers) == 0 {
		return "", fmt.Errorf("the %s at %s was not asked", s, r.Endpoint)
	}
	return "", e
}

// Probe asks the socket at endpoint for every version of both services, all
// at once, and settles nothing. It returns an *EndpointError if it cannot be
// connected to; whatever the program behind it answers is in the Report. It
// blocks until all have answered or ctx is over.
func Probe(ctx context.Context, endpoint string) (Report, error) {
	if err := Reach(ctx, endpoint); err != nil {
		return Report{}, err
	}
	path, err := socketPath(endpoint)
	if err != nil {
		return Report{}, err
	}
	report := Report{Endpoint: "unix://" + path, Answers: make([]Answer, 0, 2*len(Versions()))} // never moved
	var all sync.WaitGroup
	for _, s := range []Service{RuntimeService, ImageService} {
		l, err := newLink(s, endpoint, Options{})
		if err != nil {
			return Report{}, err
		}
		defer func() { _ = l.conn.Close() }()
		for _, v := range Versions() {
			report.Answers = append(report.Answers, Answer{})
			answer := &report.Answers[len(report.Answers)-1]
			all.Go(func() { *answer = l.ask(ctx, v) })
		}
	}
	all.Wait()
	return report, nil
}
