//go:build tools
// +build tools

// Package kubelet pins the kubelet of Kubernetes 1.22, which is built from
// here as it was released: the last that speaks only v1alpha2 of the CRI.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet"
