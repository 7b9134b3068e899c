package criclient

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	api string
}

func (s *server) Version(_ context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: r.Version, RuntimeName: "test", RuntimeVersion: "1", RuntimeApiVersion: s.api}, nil
}

// Status answers with more than gRPC's own default limit of 4 MiB.
func (s *server) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Info: map[string]string{"big": strings.Repeat("x", 8<<20)}}, nil
}

func serve(t *testing.T, api string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(g, &server{api: api})
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return path
}

func TestClient(t *testing.T) {
	path := serve(t, "v1")
	for _, endpoint := range []string{path, "unix://" + path} {
		c, err := New(Options{Runtime: endpoint})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.CheckVersion(t.Context()); err != nil || v.RuntimeName != "test" {
			t.Errorf("CheckVersion by %s = %v, %v", endpoint, v, err)
		}
		if r, err := c.RuntimeServiceClient.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil || len(r.Info["big"]) != 8<<20 {
			t.Errorf("an 8 MiB answer: %v", err)
		}
		if c.Endpoint() != "unix://"+path {
			t.Errorf("Endpoint = %q", c.Endpoint())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDialNobodyThere(t *testing.T) {
	c, err := New(Options{Runtime: filepath.Join(t.TempDir(), "none.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.CheckVersion(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("CheckVersion = %v, want Unavailable", err)
	}
}

func TestDialRefusesEndpoint(t *testing.T) {
	for _, endpoint := range []string{"", "run/davit.sock", "tcp://127.0.0.1:1", "unix://rel.sock"} {
		if c, err := New(Options{Runtime: endpoint}); err == nil {
			c.Close()
			t.Errorf("Dial(%q) succeeded", endpoint)
		}
	}
}
