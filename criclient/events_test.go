package criclient_test

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// A reader takes events one by one.
type reader struct {
	*testing.T
	next func() (criclient.Event, error, bool)
}

func read(t *testing.T, ctx context.Context, c *criclient.Client) *reader {
	t.Helper()
	next, stop := iter.Pull2(c.Events(ctx))
	t.Cleanup(stop)
	return &reader{t, next}
}

func (r *reader) gap() *criclient.Gap {
	r.Helper()
	e, err, ok := r.next()
	if !ok || err != nil || e.Gap == nil || e.ContainerEventResponse != nil {
		r.Fatalf("got %v, %v, %t; want a gap", e, err, ok)
	}
	return e.Gap
}

func (r *reader) event(kind runtimeapi.ContainerEventType, id string) {
	r.Helper()
	e, err, ok := r.next()
	if !ok || err != nil || e.Gap != nil || e.ContainerEventType != kind || e.ContainerId != id {
		r.Fatalf("got %v, %v, %t; want %v of %s", e, err, ok, kind, id)
	}
}

func (r *reader) end(want error) {
	r.Helper()
	e, err, ok := r.next()
	if !ok || !errors.Is(err, want) {
		r.Fatalf("got %v, %v, %t; want %v", e, err, ok, want)
	}
	if _, _, ok := r.next(); ok {
		r.Error("it goes on after its end")
	}
}

func runPod(t *testing.T, c *criclient.Client, name string) string {
	t.Helper()
	p, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "n", Uid: name},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return p.PodSandboxId
}

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
)

func TestEvents(t *testing.T) {
	before := runtime.NumGoroutine()
	s := listen(t, isV1)
	c := dial(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	r := read(t, ctx, c)
	if g := r.gap(); !g.Since.IsZero() || g.Cause != nil {
		t.Errorf("the first gap is %v", g)
	}
	one := runPod(t, c, "one")
	r.event(created, one)
	r.event(started, one)

	// The runtime goes, things happen, it comes back.
	s.socket.Vanish()
	s.start(t, serves[isV1])
	if g := r.gap(); g.Since.IsZero() || g.Cause == nil || time.Since(g.Since) > time.Minute {
		t.Errorf("the gap is %v", g)
	}
	outcome(t, c, s, s) // until it is connected again
	two := runPod(t, c, "two")
	r.event(created, two)
	r.event(started, two)

	// It goes for longer.
	s.socket.Crash()
	go func() {
		time.Sleep(300 * time.Millisecond) // some attempts
		if err := s.socket.Return(serves[isBoth]); err != nil {
			t.Error(err)
		}
	}()
	r.gap()

	cancel()
	r.end(criclient.ErrCanceled)
	for end := time.Now().Add(10 * time.Second); s.Subscribers() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := s.Subscribers(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
	c.Close()
	s.socket.Close()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", n, before, stacks[:runtime.Stack(stacks, true)])
	}
}

// TestEventsBeforeTheRuntime: the caller may come first.
func TestEventsBeforeTheRuntime(t *testing.T) {
	s := listen(t, isDown)
	c := s.client(t, s, false)
	got := make(chan *criclient.Gap, 1)
	go func() {
		for e, err := range c.Events(t.Context()) {
			if err != nil {
				t.Error(err)
			}
			got <- e.Gap
			return // and leave
		}
	}()
	s.become(t, isV1)
	if g := <-got; g == nil || !g.Since.IsZero() {
		t.Errorf("the first is %v", g)
	}
	for end := time.Now().Add(10 * time.Second); s.Subscribers() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := s.Subscribers(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

// TestEventsUnconfirmed: of a runtime that says nothing before its first
// event the caller hears twice that it must list.
func TestEventsUnconfirmed(t *testing.T) {
	s := listen(t, isV1)
	s.SetSilent(true)
	c := dial(t, s)
	r := read(t, t.Context(), c)
	r.gap()
	id := runPod(t, c, "one")
	if g := r.gap(); g.Since.IsZero() {
		t.Errorf("the second gap is %v", g)
	}
	r.event(created, id)
	r.event(started, id)
}

func TestEventsEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		server string
		fail   error
		is     error
		says   string
	}{
		{"no events", isV1, status.Error(codes.Unimplemented, "switched off"), criclient.ErrUnimplemented, "switched off"},
		{"v1alpha2", isV1alpha2, nil, criclient.ErrUnimplemented, "has no GetContainerEvents"},
		{"denied", isV1, status.Error(codes.PermissionDenied, "no"), criclient.ErrDenied, ""},
		{"no version", isNeither, nil, nil, "no version of the CRI can be used"},
	} {
		s := listen(t, c.server)
		s.Fail("GetContainerEvents", c.fail)
		n := 0
		for e, err := range s.client(t, s, false).Events(t.Context()) {
			n++
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, %v", c.name, e, err)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d events", c.name, n)
		}
	}
}

// TestEventsOfAnother: the version is lost with the restart, or another is
// settled on that has no events.
func TestEventsOfAnother(t *testing.T) {
	for _, renegotiate := range []bool{false, true} {
		s := listen(t, isV1)
		c := s.client(t, s, renegotiate)
		r := read(t, t.Context(), c)
		r.gap()
		s.become(t, isV1alpha2)
		if renegotiate {
			r.end(criclient.ErrUnimplemented)
		} else {
			r.end(criclient.ErrVersionLost)
		}
	}
}

// TestEventsOfBusyRuntime goes on when the runtime is not ready yet.
func TestEventsOfBusyRuntime(t *testing.T) {
	s := listen(t, isV1)
	s.Fail("GetContainerEvents", status.Error(codes.Unavailable, "server is not initialized yet"))
	c := dial(t, s)
	go func() {
		for len(s.Calls("GetContainerEvents")) < 2 {
			time.Sleep(time.Millisecond)
		}
		s.Fail("GetContainerEvents", nil)
	}()
	read(t, t.Context(), c).gap()
}

func TestEventsOfClosedClient(t *testing.T) {
	s := listen(t, isV1)
	c := dial(t, s)
	r := read(t, t.Context(), c)
	r.gap()
	c.Close()
	r.end(criclient.ErrCanceled)
}
