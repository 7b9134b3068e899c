package criclient_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

func dial(t *testing.T, s *server) *criclient.Client {
	t.Helper()
	c, err := criclient.Dial(t.Context(), s.options(s, false))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestTransport sees what a kubelet's connection looks like.
func TestTransport(t *testing.T) {
	s := listen(t, isV1)
	var authority []string
	s.On("Status", func(ctx context.Context, _ crifake.Call) error {
		md, _ := metadata.FromIncomingContext(ctx)
		authority = md.Get(":authority")
		return nil
	})
	c := dial(t, s)
	if _, err := c.RuntimeServiceClient.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if len(authority) != 1 || authority[0] != "localhost" {
		t.Errorf("authority = %q", authority)
	}
	// More than gRPC's own limit of 4 MiB, up to 16 MiB, comes and goes.
	id := s.AddImage("", strings.Repeat("x", 8<<20))
	r, err := c.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}})
	if err != nil || len(r.Image.RepoTags[0]) != 8<<20 {
		t.Errorf("8 MiB: %v", err)
	}
	if _, err := c.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: strings.Repeat("y", 8<<20)}}); err != nil {
		t.Errorf("8 MiB sent: %v", err)
	}
	s.AddImage(id, strings.Repeat("x", 9<<20))
	_, err = c.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}})
	if !errors.Is(err, criclient.ErrMessageTooLarge) || !errors.Is(err, criclient.ErrExhausted) {
		t.Errorf("17 MiB: %v", err)
	}
}

func TestCheckVersion(t *testing.T) {
	for _, c := range []struct {
		answer *runtimeapi.VersionResponse
		says   string // of the error
	}{
		{&runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "a", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, ""},
		{&runtimeapi.VersionResponse{Version: "0.2.0", RuntimeName: "a", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, `runtime a at unix://.*: it answers Version with "0.2.0"; a kubelet takes "0.1.0" only`},
		{&runtimeapi.VersionResponse{Version: "0.1.0", RuntimeApiVersion: "v1"}, "lacks runtime_name, runtime_version"},
	} {
		path := socketFor(t)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		g := grpc.NewServer()
		runtimeapi.RegisterRuntimeServiceServer(g, versioned{answer: c.answer})
		go g.Serve(l)
		t.Cleanup(g.Stop)
		client, err := criclient.New(criclient.Options{Runtime: path})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		v, err := client.CheckVersion(t.Context())
		if c.says == "" && (err != nil || v.RuntimeName != "a") || c.says != "" && !matches(c.says, err) {
			t.Errorf("%v: %v, %v", c.answer, v, err)
		}
	}
}

type versioned struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	answer *runtimeapi.VersionResponse
}

func (v versioned) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return v.answer, nil
}

func TestChoice(t *testing.T) {
	s := listen(t, isV1alpha2)
	var told []criclient.Choice
	o := s.options(s, false)
	o.Settled = func(c criclient.Choice) { told = append(told, c) }
	c, err := criclient.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.Choice(criclient.RuntimeService); got != nil {
		t.Errorf("settled before it was asked: %v", got)
	}
	for range 2 {
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) != 2 || told[0].Service == told[1].Service {
		t.Errorf("told %v", told)
	}
	want := "v1alpha2, since v1 answered Unimplemented (unknown service runtime.v1.RuntimeService) at the runtime service of " + s.socket.Endpoint()
	if got := c.Choice(criclient.RuntimeService); got.Why() != want || got.Answers[1].Runtime.GetRuntimeApiVersion() != "v1alpha2" {
		t.Errorf("Why = %q", got.Why())
	}
	if c.Endpoint() != s.socket.Endpoint() || c.ImageEndpoint() != s.socket.Endpoint() {
		t.Errorf("endpoints %q, %q", c.Endpoint(), c.ImageEndpoint())
	}
	// v1alpha2 is typed as v1 for the caller, and says what it is.
	if v, err := c.CheckVersion(t.Context()); err != nil || v.RuntimeApiVersion != "v1alpha2" {
		t.Errorf("CheckVersion = %v, %v", v, err)
	}
}

// TestConcurrentFirstCalls settle the version once.
func TestConcurrentFirstCalls(t *testing.T) {
	s := listen(t, isBoth)
	c := s.client(t, s, false)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(s.Calls("Version")); n != 1 {
		t.Errorf("the version was asked for %d times", n)
	}
}

// TestConnectAsksBoth at once: one service that hangs does not keep the other
// one waiting.
func TestConnectAsksBoth(t *testing.T) {
	s := listen(t, isBoth)
	for _, hangs := range []struct {
		probe          string
		service, other criclient.Service
	}{
		{v1Version, criclient.RuntimeService, criclient.ImageService},
		{v1FsInfo, criclient.ImageService, criclient.RuntimeService},
	} {
		release := s.Hold(hangs.probe)
		c := s.client(t, s, false)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Connect(ctx) }()
		for end := time.Now().Add(20 * time.Second); c.Choice(hangs.other) == nil && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if c.Choice(hangs.other) == nil || c.Choice(hangs.service) != nil {
			t.Errorf("the %s hangs: settled %v, %v", hangs.service, c.Choice(criclient.RuntimeService), c.Choice(criclient.ImageService))
		}
		cancel()
		if err := <-ended; !errors.Is(err, criclient.ErrCanceled) {
			t.Errorf("Connect = %v", err)
		}
		release()
	}
}

// TestImpatientCaller must not keep others from settling.
func TestImpatientCaller(t *testing.T) {
	s := listen(t, isBoth)
	release := s.Hold("Version")
	c := s.client(t, s, false)
	first := make(chan error, 1)
	go func() {
		_, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		first <- err
	}()
	for len(s.Calls("Version")) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); !errors.Is(err, criclient.ErrCanceled) || status.Code(err) != codes.Canceled {
		t.Errorf("a caller that gave up: %v", err)
	}
	release()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestTimeoutOfNegotiation(t *testing.T) {
	s := listen(t, isHung)
	o := s.options(s, false)
	o.Timeout = 50 * time.Millisecond
	c, err := criclient.Dial(context.Background(), o)
	var none *criclient.NegotiationError
	if c != nil || !errors.As(err, &none) || !errors.Is(err, criclient.ErrTimeout) ||
		!strings.Contains(err.Error(), "the runtime hangs: look at its log") {
		t.Errorf("Dial = %v, %v", c, err)
	}
}

// TestNegotiationErrors says what was tried, what answered and what to do.
func TestNegotiationErrors(t *testing.T) {
	for _, c := range []struct {
		server, says string
	}{
		{isNeither, `^runtime service at unix:///\S+: no version of the CRI can be used: v1 answered Unimplemented \(unknown service runtime.v1.RuntimeService\); ` +
			`v1alpha2 answered Unimplemented \(unknown service runtime.v1alpha2.RuntimeService\); name the socket of a runtime that serves the CRI, or switch the CRI on in this one's configuration\n` +
			`image service at unix:///\S+: .* name the endpoint at which images are served, or switch the image service on in the runtime's configuration$`},
		{isDown, `: v1 got no answer \(there is no such file\); v1alpha2 was not tried, since only Unimplemented leads to it; start the runtime, or name its socket\n`},
		{isCrashed, `: v1 got no answer \(nobody listens on the socket\); v1alpha2 was not tried, since only Unimplemented leads to it; start the runtime\n`},
		{isBad, `: v1 answered Internal \(server is not initialized yet\); v1alpha2 was not tried, since only Unimplemented leads to it; look at the runtime's log; it has to answer before anything can be used\n`},
		{isOldBad, `: v1 answered Unimplemented \(.*\); v1alpha2 answered Internal \(server is not initialized yet\); look at the runtime's log`},
	} {
		s := listen(t, c.server)
		client, err := criclient.Dial(t.Context(), s.options(s, false))
		if client != nil || !matches(c.says, err) {
			t.Errorf("%s: %v", c.server, err)
		}
	}
}

// TestLostError says what was lost, what is there now and what to do.
func TestLostError(t *testing.T) {
	s := listen(t, isV1alpha2)
	c := dial(t, s)
	s.become(t, isV1, awaitLoss(t, c, criclient.RuntimeService))
	_, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	var lost *criclient.VersionLostError
	if !errors.As(err, &lost) || !errors.Is(err, criclient.ErrVersionLost) || errors.Is(err, criclient.ErrUnimplemented) || status.Code(err) != codes.Unimplemented {
		t.Errorf("%T: %v", err, err)
	}
	if want := `^runtime service at unix:///\S+: the runtime no longer serves CRI v1alpha2, which this client settled on and keeps ` +
		`\(v1alpha2 answered Unimplemented \(unknown service runtime.v1alpha2.RuntimeService\)\); it serves v1 now; restart this client$`; !matches(want, err) {
		t.Error(err)
	}
	// It is found out once for a connection.
	before := len(s.Calls())
	for range 5 {
		if _, err := c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{}); !errors.Is(err, criclient.ErrVersionLost) {
			t.Error(err)
		}
		// A list must not take it for a call that is missing.
		if _, err := c.Pods(t.Context(), nil); !errors.Is(err, criclient.ErrVersionLost) {
			t.Error(err)
		}
	}
	if n := len(s.Calls()) - before; n != 0 {
		t.Errorf("%d calls arrived", n)
	}
}

func TestUnimplementedIsRemembered(t *testing.T) {
	s := listen(t, isV1)
	c := dial(t, s)
	checkpoint := func() error {
		_, err := c.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
		return err
	}
	s.Fail("CheckpointContainer", status.Error(codes.Unimplemented, "not in this build"))
	for range 3 {
		if err := checkpoint(); !errors.Is(err, criclient.ErrUnimplemented) || status.Convert(err).Message() != "not in this build" {
			t.Errorf("CheckpointContainer = %v", err)
		}
	}
	if n := len(s.Calls("CheckpointContainer")); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
	if _, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil {
		t.Errorf("another method: %v", err)
	}
	// The probes are never remembered, nor is anything else but Unimplemented.
	for _, fails := range []error{status.Error(codes.Unimplemented, ""), status.Error(codes.Internal, "")} {
		s.Fail("Version", fails)
		if _, err := c.CheckVersion(t.Context()); status.Code(err) != status.Code(fails) {
			t.Errorf("Version = %v, want %v", err, fails)
		}
		s.Fail("Version", nil)
		if _, err := c.CheckVersion(t.Context()); err != nil {
			t.Errorf("Version = %v", err)
		}
	}
	// A runtime that was restarted is asked again, even if nothing else is.
	s.Fail("CheckpointContainer", status.Error(codes.Internal, "in this one it is"))
	s.become(t, isV1, awaitLoss(t, c, criclient.RuntimeService))
	if err := checkpoint(); status.Code(err) != codes.Internal {
		t.Errorf("CheckpointContainer after a restart = %v", err)
	}
	s.Fail("CheckpointContainer", status.Error(codes.Unimplemented, "not in this one"))
	s.become(t, isV1, awaitLoss(t, c, criclient.RuntimeService))
	before := len(s.Calls("Version"))
	for range 3 {
		if err := checkpoint(); status.Convert(err).Message() != "not in this one" {
			t.Errorf("CheckpointContainer after a restart = %v", err)
		}
	}
	if n := len(s.Calls("Version")) - before; n != 1 {
		t.Errorf("the version was asked for %d times", n)
	}
}

// TestVersionsDiffer: what v1alpha2 lacks is not sent.
func TestVersionsDiffer(t *testing.T) {
	s := listen(t, isV1alpha2)
	c := dial(t, s)
	before := len(s.Calls())
	_, err := c.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
	if !errors.Is(err, criclient.ErrUnimplemented) || !matches(`CRI v1alpha2, which is spoken with the runtime at unix://\S+, has no CheckpointContainer`, err) {
		t.Errorf("CheckpointContainer = %v", err)
	}
	if _, err := c.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{}); !errors.Is(err, criclient.ErrUnimplemented) {
		t.Errorf("GetContainerEvents = %v", err)
	}
	if len(s.Calls()) != before {
		t.Errorf("calls arrived: %v", s.Calls()[before:])
	}
}

// TestMethods: each method of the CRI has its place in each version.
func TestMethods(t *testing.T) {
	count := map[string]int{}
	for _, s := range []struct {
		service criclient.Service
		desc    grpc.ServiceDesc
	}{{criclient.RuntimeService, runtimeapi.RuntimeService_ServiceDesc}, {criclient.ImageService, runtimeapi.ImageService_ServiceDesc}} {
		var names []string
		for _, m := range s.desc.Methods {
			names = append(names, m.MethodName)
		}
		for _, m := range s.desc.Streams {
			names = append(names, m.StreamName)
		}
		for _, name := range names {
			for _, v := range criclient.Versions() {
				if v.Has(s.service, name) {
					count[fmt.Sprint(v, " ", s.service)]++
				}
			}
		}
	}
	// Source: cri-api v0.25.16, api.pb.go, of v1alpha2.
	want := map[string]int{"v1 runtime service": 37, "v1 image service": 6, "v1alpha2 runtime service": 24, "v1alpha2 image service": 5}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", count, want)
	}
}

// TestFailFast: without a runtime calls fail at once, and are heard again
// soon after it is there.
func TestFailFast(t *testing.T) {
	s := listen(t, isV1)
	c := dial(t, s)
	s.become(t, isDown, awaitLoss(t, c, criclient.RuntimeService))
	start := time.Now()
	for range 100 {
		if _, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); !errors.Is(err, criclient.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("100 calls took %v", d)
	}
	var at *criclient.EndpointError
	if _, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); !errors.As(err, &at) || at.Problem != "there is no such file" {
		t.Errorf("%v: %v", err, at)
	}
	s.become(t, isV1)
	if got := outcome(t, c, s, s); got != [2]string{useV1, useV1} {
		t.Errorf("after it was back: %q", got)
	}
}

func TestClosed(t *testing.T) {
	s := listen(t, isV1)
	c := dial(t, s)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); !errors.Is(err, criclient.ErrCanceled) {
		t.Errorf("a call of a closed client: %v", err)
	}
}
