// Package namespace makes a pod's net, ipc and uts namespaces without a
// process in them, pinned by bind mounts.
package namespace

// A Spec says which namespaces a pod has of its own and how they start.
type Spec struct {
	Net, IPC, UTS bool
	Hostname      string            // of the uts namespace; empty: unchanged
	Sysctls       map[string]string // in dotted form, set inside the new namespaces
}
