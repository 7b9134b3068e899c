package criclient

import (
	"slices"
	"strings"
)

// A Version is one of the CRI's, as it stands in the names of its services.
type Version string

const (
	V1       Version = "v1"
	V1alpha2 Version = "v1alpha2" // over the wire a subset of v1
)

// Versions are all that a Client can speak, the preferred one first.
func Versions() []Version { return []Version{V1, V1alpha2} }

// A Service is one of the two services of the CRI.
type Service string

const (
	RuntimeService Service = "RuntimeService"
	ImageService   Service = "ImageService"
)

// String is what people call s.
func (s Service) String() string {
	if s == ImageService {
		return "image service"
	}
	return "runtime service"
}

// probe is the method that a version is settled by.
func (s Service) probe() string {
	if s == ImageService {
		return "ImageFsInfo"
	}
	return "Version"
}

// Methods of v1alpha2. Source: k8s.io/cri-api v0.25, the last that had it.
var (
	legacyRuntimeMethods = []string{
		"Version", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "ListPodSandbox",
		"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "ListContainers", "ContainerStatus",
		"UpdateContainerResources", "ReopenContainerLog", "ExecSync", "Exec", "Attach", "PortForward",
		"ContainerStats", "ListContainerStats", "PodSandboxStats", "ListPodSandboxStats", "UpdateRuntimeConfig", "Status",
	}
	legacyImageMethods = []string{"ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"}
)

// Has reports whether v defines the method of s, "RunPodSandbox" for example.
// Of v1 it says yes to all.
func (v Version) Has(s Service, method string) bool {
	if v != V1alpha2 {
		return true
	}
	if s == ImageService {
		return slices.Contains(legacyImageMethods, method)
	}
	return slices.Contains(legacyRuntimeMethods, method)
}

// path is the method's name in gRPC: /runtime.v1.RuntimeService/Version.
func (v Version) path(s Service, method string) string {
	return "/runtime." + string(v) + "." + string(s) + "/" + method
}

// methodOf is what follows the last slash of a method's name in gRPC.
func methodOf(path string) string { return path[strings.LastIndex(path, "/")+1:] }
