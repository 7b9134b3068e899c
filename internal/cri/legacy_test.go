package cri

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func methods(g *grpc.Server, service string) int { return len(g.GetServiceInfo()[service].Methods) }

func TestVersions(t *testing.T) {
	c := Config{Log: slog.New(slog.DiscardHandler)}
	both := New(Parts{}, c).Server()
	for service, n := range map[string]int{
		"runtime.v1.RuntimeService": 37, "runtime.v1.ImageService": 6,
		"runtime.v1alpha2.RuntimeService": 24, "runtime.v1alpha2.ImageService": 5,
	} {
		if got := methods(both, service); got != n {
			t.Errorf("%s has %d methods, want %d", service, got, n)
		}
	}
	for _, test := range []struct {
		server *grpc.Server
		want   string
	}{
		{New(Parts{}, c, V1).Server(), "runtime.v1.ImageService runtime.v1.RuntimeService"},
		{New(Parts{}, c, V1alpha2).Server(), "runtime.v1alpha2.ImageService runtime.v1alpha2.RuntimeService"},
		{New(Parts{}, c).ImageServer(), "runtime.v1.ImageService runtime.v1alpha2.ImageService"},
	} {
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(test.server.GetServiceInfo())), func(s string) bool { return strings.HasPrefix(s, "grpc.") })
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("serves %s, want %s", got, test.want)
		}
	}
}

func TestLegacy(t *testing.T) {
	ctx := context.Background()
	_, _, conn, _ := server(t, &world{})
	var v runtimeapi.VersionResponse
	if err := conn.Invoke(ctx, "/runtime.v1alpha2.RuntimeService/Version", &runtimeapi.VersionRequest{}, &v); err != nil {
		t.Fatal(err)
	}
	equal(t, &v, parse(t, &runtimeapi.VersionResponse{},
		`version: "0.1.0" runtime_name: "davit" runtime_version: "1.2.3" runtime_api_version: "v1alpha2"`))
	var fs runtimeapi.ImageFsInfoResponse
	if err := conn.Invoke(ctx, "/runtime.v1alpha2.ImageService/ImageFsInfo", &runtimeapi.ImageFsInfoRequest{}, &fs); err != nil || len(fs.ImageFilesystems) != 1 {
		t.Errorf("%v, %v", &fs, err)
	}
	err := conn.Invoke(ctx, "/runtime.v1alpha2.RuntimeService/RuntimeConfig", &runtimeapi.RuntimeConfigRequest{}, &runtimeapi.RuntimeConfigResponse{})
	want{codes.Unimplemented, "unknown method RuntimeConfig"}.check(t, err)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/runtime.v1alpha2.RuntimeService/GetContainerEvents")
	if err == nil {
		err = stream.RecvMsg(&runtimeapi.ContainerEventResponse{})
	}
	want{codes.Unimplemented, "unknown method GetContainerEvents"}.check(t, err)
}

// The fallback of kubelets 1.23 to 1.25 rests on Unimplemented.
func TestOneVersionOnly(t *testing.T) {
	ctx := context.Background()
	c := Config{Log: slog.New(slog.DiscardHandler)}
	w := &world{}
	conn := serve(t, New(Parts{Pods: w, Containers: w, Views: w, Sessions: w, Images: imageWorld{w}}, c, V1alpha2).Server())
	_, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	want{codes.Unimplemented, "unknown service runtime.v1.RuntimeService"}.check(t, err)
	_, err = runtimeapi.NewImageServiceClient(conn).ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	want{codes.Unimplemented, "unknown service runtime.v1.ImageService"}.check(t, err)
	health := healthpb.NewHealthClient(conn)
	if r, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: "runtime.v1alpha2.ImageService"}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	_, err = health.Check(ctx, &healthpb.HealthCheckRequest{Service: "runtime.v1.ImageService"})
	want{codes.NotFound, "unknown service"}.check(t, err)
}
