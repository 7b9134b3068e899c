// Package criclient talks to a container runtime over the Container Runtime
// Interface (CRI) as the kubelet does, and works with any runtime: it needs
// nothing of davit's daemon, only cri-api and gRPC.
//
// A Client has one interface for callers, that of CRI v1, whichever version
// the runtime speaks:
//
//	c, err := criclient.Dial(ctx, criclient.Options{Runtime: "unix:///run/davit/davit.sock"})
//	if err != nil {
//		return err // a *NegotiationError says what was tried, what answered, what to do
//	}
//	defer c.Close()
//	pods, err := c.Pods(ctx, nil)
//
// # Versions
//
// v1 is asked for first. v1alpha2 is used only if v1 answers Unimplemented;
// any other answer, or neither version, ends the attempt, and nothing can be
// used. The runtime service is probed by Version, the image service by
// ImageFsInfo; each settles its own version at its own endpoint. The version
// first chosen is kept when the runtime restarts; Options.Renegotiate changes
// that. docs/negotiation.md has a table of all cases.
//
// Source: Kubernetes 1.23 to 1.25, pkg/kubelet/cri/remote, determineAPIVersion;
// k8s.io/cri-client, validateServiceConnection.
//
// # Connections
//
// Each service has a connection of its own. Calls fail fast with ErrUnavailable
// while the runtime is down, and connections heal by themselves, 100 ms to 3 s
// apart. Nothing is retried but what the runtime certainly did not carry out.
//
// Errors of calls are of type *Error, *NegotiationError or *VersionLostError;
// all work with status.FromError and with errors.Is and the sentinels of this
// package. An *EndpointError is of an endpoint's name, or of what is there.
package criclient
