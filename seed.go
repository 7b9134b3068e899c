//go:build seed

// Package davit pins libraries until their first use.
package davit

import (
	_ "github.com/moby/profiles/apparmor"
	_ "github.com/opencontainers/selinux/go-selinux"
	_ "github.com/opencontainers/selinux/go-selinux/label"
)
