package criclient_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/davit-runtime/davit/criclient"
)

func TestProbe(t *testing.T) {
	for _, c := range []struct{ server, serves, chooses string }{
		{isV1, "[v1] [v1]", "^v1$"},
		{isV1alpha2, "[v1alpha2] [v1alpha2]", "^v1alpha2$"},
		{isBoth, "[v1 v1alpha2] [v1 v1alpha2]", "^v1$"},
		{isNeither, "[] []", `^runtime service at .*: v1 answered Unimplemented .*; v1alpha2 answered Unimplemented .*`},
		{isBad, "[v1alpha2] [v1alpha2]", `^runtime service at .*: v1 answered Internal .*; v1alpha2 was not tried`},
	} {
		s := listen(t, c.server)
		r, err := criclient.Probe(t.Context(), s.socket.Path())
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.Serves(criclient.RuntimeService), r.Serves(criclient.ImageService)); got != c.serves || r.Endpoint != s.socket.Endpoint() || len(r.Answers) != 4 {
			t.Errorf("%s: serves %s, want %s: %v", c.server, got, c.serves, r)
		}
		v, err := r.Chooses(criclient.RuntimeService)
		if err == nil {
			err = errors.New(string(v))
		}
		if !matches(c.chooses, err) {
			t.Errorf("%s: chooses %v, want %s", c.server, err, c.chooses)
		}
		for _, a := range r.Answers {
			if a.Err == nil && a.Service == criclient.RuntimeService && a.Runtime.GetRuntimeApiVersion() != string(a.Version) {
				t.Errorf("%s: %v said %v", c.server, a, a.Runtime)
			}
		}
	}
}

// TestProbeHangs: what hangs does not hide what answers.
func TestProbeHangs(t *testing.T) {
	t.Parallel()
	s := listen(t, isHung)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for len(s.Calls()) < 4 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(500 * time.Millisecond) // two answers are under way
		cancel()
	}()
	r, err := criclient.Probe(ctx, s.socket.Path())
	if err != nil || status.Code(r.Answers[0].Err) != codes.Canceled || fmt.Sprint(r.Serves(criclient.ImageService)) != "[v1alpha2]" {
		t.Errorf("Probe = %v, %v", r, err)
	}
	if _, err := r.Chooses(criclient.RuntimeService); !matches("v1 got no answer", err) {
		t.Errorf("Chooses = %v", err)
	}
}

// TestProbeOther: a program that is no gRPC server.
func TestProbeOther(t *testing.T) {
	path := socketFor(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			c.Close()
		}
	}()
	r, err := criclient.Probe(t.Context(), path)
	if err != nil || len(r.Answers) != 4 {
		t.Fatalf("Probe = %v, %v", r, err)
	}
	if _, err := r.Chooses(criclient.RuntimeService); !errors.Is(err, criclient.ErrUnavailable) || !matches("does not speak gRPC, hangs, or ended", err) {
		t.Errorf("Chooses = %v", err)
	}
}

// TestAnswerOfStopped: a program that was stopped is connected to all the same.
func TestAnswerOfStopped(t *testing.T) {
	a := criclient.Answer{Version: criclient.V1, Err: status.Error(codes.Unavailable,
		`connection error: desc = "error reading server preface: read unix @->/run/c.sock: use of closed network connection"`)}
	if got := a.String(); got != "v1 got no answer (it was connected to, and said nothing within 5s)" {
		t.Error(got)
	}
}
