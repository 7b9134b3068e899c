//go:build seed

// Package davit pins libraries until their first use.
package davit

import (
	_ "tags.cncf.io/container-device-interface/pkg/cdi"
)
