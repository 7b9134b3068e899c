package cri

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Version is one of the CRI's, as it stands in its services' names.
type Version string

const (
	V1       Version = "v1"
	V1alpha2 Version = "v1alpha2" // what kubelets below 1.23 know, and those below 1.26 fall back to
)

// Versions are all that can be served.
var Versions = []Version{V1, V1alpha2}

// What cri-api 0.25, the last that had it, defines in v1alpha2. Over the wire
// that is a strict subset of v1: the same handlers serve both.
var legacyMethods = []string{
	"Version", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "ListPodSandbox",
	"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "ListContainers", "ContainerStatus",
	"UpdateContainerResources", "ReopenContainerLog", "ExecSync", "Exec", "Attach", "PortForward",
	"ContainerStats", "ListContainerStats", "PodSandboxStats", "ListPodSandboxStats", "UpdateRuntimeConfig", "Status",
	"ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo",
}

// legacy is the service under its older name.
type legacy struct{ *service }

// Version answers the version that was asked.
func (l legacy) Version(ctx context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	resp, err := l.service.Version(ctx, r)
	if resp != nil {
		resp.RuntimeApiVersion = string(V1alpha2)
	}
	return resp, err
}

func (s *Surface) runtime(g *grpc.Server, h *health.Server, v Version) {
	s.register(g, h, v, runtimeapi.RuntimeService_ServiceDesc, "RuntimeService")
}

func (s *Surface) images(g *grpc.Server, h *health.Server, v Version) {
	s.register(g, h, v, runtimeapi.ImageService_ServiceDesc, "ImageService")
}

func (s *Surface) register(g *grpc.Server, h *health.Server, v Version, d grpc.ServiceDesc, name string) {
	d.ServiceName = "runtime." + string(v) + "." + name
	if v == V1 {
		g.RegisterService(&d, s.service)
	} else {
		absent := func(method string) bool { return !slices.Contains(legacyMethods, method) }
		d.Methods = slices.DeleteFunc(slices.Clone(d.Methods), func(m grpc.MethodDesc) bool { return absent(m.MethodName) })
		d.Streams = nil
		g.RegisterService(&d, legacy{s.service})
	}
	h.SetServingStatus(d.ServiceName, healthpb.HealthCheckResponse_SERVING)
}
