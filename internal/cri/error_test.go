package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/calls"
	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/span"
)

func TestEveryKindHasACode(t *testing.T) {
	for k := fault.Kind(0); !strings.HasPrefix(k.String(), "kind "); k++ {
		if c, ok := codeOf[k]; !ok || c == codes.OK {
			t.Errorf("%v has no code", k)
		}
	}
}

func TestErrors(t *testing.T) {
	_, idle := span.Begin(context.Background())
	ctx, busy := span.Begin(context.Background())
	span.Step(ctx, "network")
	for _, tt := range []struct {
		err  error
		t    *span.Trace
		want want
	}{
		{nil, idle, want{}},
		{errors.New("plain"), idle, want{codes.Internal, "plain"}},
		{fmt.Errorf("pod: %w", fault.New(fault.NotFound, "op", "no pod")), idle, want{codes.NotFound, "pod: op: no pod"}},
		{fault.New(fault.Exhausted, "", "disk full"), idle, want{codes.ResourceExhausted, "disk full"}},
		{fault.New(fault.Kind(200), "", "odd"), idle, want{codes.Internal, "odd"}},
		{context.DeadlineExceeded, idle, want{codes.DeadlineExceeded, "context deadline exceeded"}},
		{context.DeadlineExceeded, busy, want{codes.DeadlineExceeded, "context deadline exceeded (in network for "}},
		{context.Canceled, idle, want{codes.Canceled, ""}},
		{fault.New(fault.Unknown, "", "RegistryUnavailable: down"), idle, want{codes.Unknown, "RegistryUnavailable: down"}},
		{fmt.Errorf("image.Pull: %w", fault.New(fault.Unknown, "registry", "RegistryUnavailable: down")), idle, want{codes.Unknown, "RegistryUnavailable: down"}},
		{fmt.Errorf("spec: %w", fault.New(fault.Unimplemented, "", "RROUnsupported: no")), idle, want{codes.Unimplemented, "RROUnsupported: no"}},
		{status.Error(codes.Unimplemented, "method X not implemented"), idle, want{codes.Unimplemented, "method X"}},
		{errors.New("a\xffb"), idle, want{codes.Internal, "a\uFFFDb"}},
	} {
		tt.want.check(t, grpcError(tt.err, tt.t))
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	rt, _, _, log := server(t, &world{panics: true})
	_, err := rt.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "p"})
	want{codes.Internal, "davitd: panic in StopPodSandbox: the world ends"}.check(t, err)
	if s := log.String(); !strings.Contains(s, "fakes_test.go") || !strings.Contains(s, "level=ERROR") {
		t.Errorf("the log lacks the stack: %s", s)
	}
	if _, err := rt.Version(context.Background(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestLogLine(t *testing.T) {
	ctx := context.Background()
	w := fullWorld(t)
	rt, im, _, log := server(t, w)
	_, _ = rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)})
	_, _ = rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	w.fail = fault.New(fault.Precondition, "", "it is stopped")
	_, _ = rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "aa11", Config: parse(t, &runtimeapi.ContainerConfig{}, goodContainer)})
	_, _ = im.PullImage(ctx, parse(t, &runtimeapi.PullImageRequest{}, `image { image: "nginx" }`))
	for _, line := range []string{
		`level=INFO msg=rpc method=RunPodSandbox pod=default/web pod_id=newpod code=OK took=`,
		`level=DEBUG msg=rpc method=ListContainers code=OK`,
		`level=INFO msg=rpc method=CreateContainer pod_id=aa11 container=app image=sha256:0123 code=FailedPrecondition took=`,
		`error="it is stopped"`,
		`method=PullImage image=nginx code=FailedPrecondition`,
	} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("no %s in\n%s", line, log)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines for 4 calls", n)
	}
}

// A failure is remembered by the names of what it is about, also where only an
// ID was given, or nothing was made.
func TestFailuresAreRemembered(t *testing.T) {
	ctx := context.Background()
	w := fullWorld(t)
	w.calls = calls.New()
	rt, im, _, _ := server(t, w)
	config := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)
	_, _ = rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "unknown"}) // as kubelets ask
	_, _ = rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if got := w.calls.Of("", ""); len(got) != 0 {
		t.Errorf("remembered without need: %+v", got)
	}
	w.fail = fault.New(fault.Unavailable, "", "the switch is on fire")
	_, _ = rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	_, _ = rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "aa11", Config: parse(t, &runtimeapi.ContainerConfig{}, goodContainer)})
	_, _ = rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c2"})
	_, _ = im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "nginx"}, SandboxConfig: config, Auth: &runtimeapi.AuthConfig{Username: "u", Password: "secret"}})
	var got []string
	for _, c := range w.calls.Of("default/web", "") {
		got = append(got, fmt.Sprintf("%s %+v %s %s", c.Method, c.Subject, c.Code, c.Err))
	}
	want := []string{
		"PullImage {Namespace:default Pod:web PodID: Container: ContainerID: Image:nginx}",
		"StopContainer {Namespace:default Pod:web PodID:aa11 Container:app ContainerID:c2 Image:}",
		"CreateContainer {Namespace:default Pod:web PodID:aa11 Container:app ContainerID: Image:sha256:0123}",
		"RunPodSandbox {Namespace:default Pod:web PodID: Container: ContainerID: Image:}",
	}
	for i := range want {
		want[i] += " Unavailable the switch is on fire"
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("remembered:\n%s", strings.Join(got, "\n"))
	}
	w.fail = nil
	_, _ = rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c2"})
	if c := w.calls.Of("app", "")[0]; c.Method != "StopContainer" || c.Succeeded.IsZero() {
		t.Errorf("after a success: %+v", c)
	}
}

func TestCredentialsAreNeverLogged(t *testing.T) {
	_, im, _, log := server(t, &world{})
	for _, auth := range []*runtimeapi.AuthConfig{
		{Username: "hunter", Password: "secret-1"},
		{Auth: base64.StdEncoding.EncodeToString([]byte("hunter:secret-2"))},
		{Auth: "secret-3 is not base64"},
		{IdentityToken: "secret-4", RegistryToken: "secret-5"},
		{RegistryToken: "secret-6\n"},
	} {
		_, err := im.PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "nginx"}, Auth: auth})
		for _, text := range []string{log.String(), fmt.Sprint(err)} {
			if strings.Contains(text, "secret") || strings.Contains(text, "hunter") || auth.Auth != "" && strings.Contains(text, auth.Auth) {
				t.Errorf("credentials in: %s", text)
			}
		}
	}
}

func TestAuth(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, tt := range map[string]struct {
		in   *runtimeapi.AuthConfig
		want image.Auth
		bad  string
	}{
		"none":          {nil, image.Auth{}, ""},
		"empty":         {&runtimeapi.AuthConfig{}, image.Auth{}, ""},
		"basic":         {&runtimeapi.AuthConfig{Username: "u", Password: "p"}, image.Auth{Username: "u", Password: "p"}, ""},
		"auth":          {&runtimeapi.AuthConfig{Auth: encode("u:p:q")}, image.Auth{Username: "u", Password: "p:q"}, ""},
		"auth unpadded": {&runtimeapi.AuthConfig{Auth: strings.TrimRight(encode("u:pass"), "=")}, image.Auth{Username: "u", Password: "pass"}, ""},
		"auth zeros":    {&runtimeapi.AuthConfig{Auth: encode("u:p\x00\x00")}, image.Auth{Username: "u", Password: "p"}, ""},
		"both":          {&runtimeapi.AuthConfig{Username: "u", Password: "p", Auth: encode("x:y")}, image.Auth{Username: "u", Password: "p"}, ""},
		"no colon":      {&runtimeapi.AuthConfig{Auth: encode("up")}, image.Auth{}, "auth.auth: is not base64 of user:password"},
		"not base64":    {&runtimeapi.AuthConfig{Auth: "%"}, image.Auth{}, "auth.auth: "},
		"identity":      {&runtimeapi.AuthConfig{IdentityToken: "t"}, image.Auth{IdentityToken: "t"}, ""},
		"bearer":        {&runtimeapi.AuthConfig{RegistryToken: "t"}, image.Auth{RegistryToken: "t"}, ""},
		"split header":  {&runtimeapi.AuthConfig{RegistryToken: "t\r\nX: y"}, image.Auth{}, "auth.registry_token: "},
		"this server":   {&runtimeapi.AuthConfig{Username: "u", ServerAddress: "https://index.docker.io/v1/"}, image.Auth{Username: "u"}, ""},
		"other server":  {&runtimeapi.AuthConfig{Username: "u", ServerAddress: "quay.io"}, image.Auth{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var c validate.Check
			got := checkAuth(&c, "auth", tt.in, "nginx")
			if tt.bad != "" {
				want{codes.InvalidArgument, tt.bad}.check(t, grpcError(c.Err, span.From(context.Background())))
				return
			}
			if c.Err != nil || got != tt.want {
				t.Errorf("got %+v, %v", got, c.Err)
			}
		})
	}
}

func FuzzAuth(f *testing.F) {
	f.Add("dXNlcjpwYXNz", "https://index.docker.io/v1/", "nginx")
	f.Add("dTpwAAA", "localhost:5000", "localhost:5000/a@sha256:00")
	f.Fuzz(func(t *testing.T, auth, server, ref string) {
		var c validate.Check
		got := checkAuth(&c, "auth", &runtimeapi.AuthConfig{Auth: auth, ServerAddress: server}, ref)
		if c.Err != nil && len(auth) > 8 && strings.Contains(c.Err.Error(), auth) {
			t.Errorf("the error tells the credentials: %v", c.Err)
		}
		if c.Err != nil && got.Username != "" {
			t.Errorf("credentials beside an error")
		}
	})
}
