package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
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
			condition(noTrouble, "Trouble", s.trouble),
		}},
		RuntimeHandlers: s.handlers(),
		// True only for what is there: the kubelet publishes it.
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: s.handlerNamed("").HostNetworkUsers,
		},
	}
	if r.GetVerbose() {
		resp.Info = s.statusInfo()
	}
	return resp, nil
}

// noTrouble is a condition beside those that the kubelet goes by, as other
// runtimes have theirs.
//
// CRI: api.proto, RuntimeStatus, "currently observed runtime conditions".
const noTrouble = "DavitHasNoTrouble"

// maxTroubles bounds how many of them Status tells.
const maxTroubles = 10

// trouble is what somebody should look at, as one error; nil for nothing.
func (s *service) trouble() error {
	all := s.config.Troubles()
	if len(all) == 0 {
		return nil
	}
	if more := len(all) - maxTroubles; more > 0 {
		all = append(slices.Clone(all[:maxTroubles]), fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(all, "; "))
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

// UpdateRuntimeConfig takes the pod CIDR that the kubelet has learned: one
// subnet, or one of each family with a comma between. An empty one changes nothing.
//
// CRI: api.proto, NetworkConfig, "If the CIDR is empty, runtimes should omit it".
func (s *service) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	const field = "runtime_config.network_config.pod_cidr"
	var c validate.Check
	var subnets []netip.Prefix
	text := strings.TrimSpace(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if text == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		subnet, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil || subnet.Addr().Is4In6() {
			c.Bad(field, "%q is not a subnet as 10.244.1.0/24", part)
		}
		subnets = append(subnets, subnet)
	}
	if len(subnets) > 2 || len(subnets) == 2 && subnets[0].Addr().Is4() == subnets[1].Addr().Is4() {
		c.Bad(field, "%q: at most one subnet of each family", text)
	}
	if c.Err != nil {
		return nil, c.Err
	}
	if err := s.Network.SetPodCIDR(ctx, subnets); err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

func (s *service) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.config.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
