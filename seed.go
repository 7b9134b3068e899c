//go:build seed

// Package davit pins libraries until their first use.
package davit

import (
	_ "github.com/containerd/nri/pkg/adaptation"
	_ "github.com/containerd/nri/pkg/stub"
	_ "tags.cncf.io/container-device-interface/pkg/cdi"
)
