package criclient_test

import (
	"errors"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

// TestConnection: a runtime's own service is reached without a version of the
// CRI being settled, and its errors are typed.
func TestConnection(t *testing.T) {
	runtime := crifake.New()
	path := filepath.Join(t.TempDir(), "cri.sock")
	socket, err := runtime.Listen(path, crifake.Serves{Own: func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health.NewServer()) }})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	c, err := criclient.New(criclient.Options{Runtime: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	own := healthpb.NewHealthClient(c.Connection(criclient.ImageService))
	if r, err := own.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := own.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "none"}); !errors.Is(err, criclient.ErrNotFound) {
		t.Errorf("an unknown service: %v", err)
	}
	watch, err := own.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.Choice(criclient.ImageService) != nil {
		t.Error("a version was settled")
	}
	socket.Vanish()
	for err == nil {
		_, err = watch.Recv()
	}
	if !errors.Is(err, criclient.ErrUnavailable) {
		t.Errorf("a stream of a runtime that ended: %v", err)
	}
	var at *criclient.EndpointError
	if _, err := healthpb.NewHealthClient(c.Connection(criclient.RuntimeService)).Check(t.Context(), &healthpb.HealthCheckRequest{}); !errors.As(err, &at) {
		t.Errorf("no runtime: %v", err)
	}
}
