package calls

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	callv1 "github.com/davit-runtime/davit/api/call/v1"
	"github.com/davit-runtime/davit/internal/span"
)

// Register puts the service on a server.
func (c *Calls) Register(s grpc.ServiceRegistrar) { callv1.RegisterCallsServer(s, &service{calls: c}) }

type service struct {
	callv1.UnimplementedCallsServer
	calls *Calls
}

func (s *service) List(_ context.Context, r *callv1.ListRequest) (*callv1.ListResponse, error) {
	answer := &callv1.ListResponse{}
	for _, c := range s.calls.Of(r.Of, r.Container) {
		answer.Calls = append(answer.Calls, message(c))
	}
	return answer, nil
}

func message(c Call) *callv1.Call {
	m := &callv1.Call{
		Method: c.Method, Began: timestamppb.New(c.Began), Code: c.Code, Error: utf8(c.Err), Times: uint32(c.Times),
		Subject: &callv1.Subject{
			Namespace: utf8(c.Subject.Namespace), Pod: utf8(c.Subject.Pod), PodId: utf8(c.Subject.PodID),
			Container: utf8(c.Subject.Container), ContainerId: utf8(c.Subject.ContainerID), Image: utf8(c.Subject.Image),
		},
	}
	m.Took, m.UnderWay = length(c.Began, c.Took)
	if !c.First.IsZero() {
		m.FirstBegan = timestamppb.New(c.First)
	}
	if !c.Succeeded.IsZero() {
		m.Succeeded = timestamppb.New(c.Succeeded)
	}
	for _, s := range c.Steps {
		m.Steps = append(m.Steps, step(s))
	}
	return m
}

func step(s span.Part) *callv1.Step {
	m := &callv1.Step{Name: utf8(s.Name), Began: timestamppb.New(s.Began), Failed: s.Failed, Command: utf8(s.Command), Said: utf8(s.Said)}
	m.Took, m.UnderWay = length(s.Began, s.Took)
	return m
}

// length is how long something took that began then; none: it is under way.
func length(began time.Time, took time.Duration) (d *durationpb.Duration, underWay bool) {
	if took == 0 {
		return durationpb.New(time.Since(began)), true
	}
	return durationpb.New(took), false
}

// utf8 returns what a protobuf string can hold.
func utf8(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
