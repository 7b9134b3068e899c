//go:build tools
// +build tools

// Package kubelet pins the kubelet of Kubernetes 1.22, which is built from
// here as it was released: the last ones that speak v1alpha2 of the CRI only.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet"
