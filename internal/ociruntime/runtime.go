// Package ociruntime knows the command lines of crun and runc, their errors
// and their features.
//
// It runs nothing on its own account: davit-monitor does, through it.
package ociruntime

// A Runtime is one OCI runtime program, as a handler names it.
type Runtime struct {
	Handler       string // RuntimeClass handler: "crun", "runc", or a configured name
	Path          string // absolute path of the program
	Root          string // state directory given as --root, on a tmpfs
	SystemdCgroup bool   // cgroups by systemd instead of cgroupfs
	NoCgroup      bool   // crun only: leave cgroups alone
}
