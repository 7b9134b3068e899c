package cri

import (
	"cmp"
	"context"
	"runtime"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version answers what the kubelet requires to the letter: 0.1.0.
//
// Kubernetes: pkg/kubelet/kuberuntime, kubeRuntimeAPIVersion.
func (s *service) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           "0.1.0",
		RuntimeName:       "davit",
		RuntimeVersion:    s.config.Version,
		RuntimeApiVersion: "v1",
	}, nil
}

func (s *service) Status(_ context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.config.RuntimeReady),
			condition(runtimeapi.NetworkReady, "NetworkNotReady", s.config.NetworkReady),
		}},
		RuntimeHandlers: s.handlers(),
		// True only for what is there: the kubelet publishes it.
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: s.config.HostNetworkUsers(),
		},
	}
	if r.GetVerbose() {
		resp.Info = map[string]string{"config": asJSON(s.config.Info), "golang": asJSON(runtime.Version())}
	}
	return resp, nil
}

func condition(kind, reason string, ready func() error) *runtimeapi.RuntimeCondition {
	if err := ready(); err != nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
}

// handlers are sorted: the kubelet writes the node's status anew whenever
// their order changes. The default one appears twice, also as "".
func (s *service) handlers() []*runtimeapi.RuntimeHandler {
	var all []*runtimeapi.RuntimeHandler
	for _, h := range s.config.Handlers() {
		f := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces}
		all = append(all, &runtimeapi.RuntimeHandler{Name: h.Name, Features: f})
		if h.Default {
			all = append(all, &runtimeapi.RuntimeHandler{Features: f})
		}
	}
	slices.SortFunc(all, func(a, b *runtimeapi.RuntimeHandler) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return all
}

func (s *service) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.config.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
