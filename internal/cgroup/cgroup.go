package cgroup

// A Driver is who creates cgroups.
type Driver string

const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// A Layout is how control groups are mounted on this host.
type Layout string

const (
	V1     Layout = "v1"     // every controller in a v1 hierarchy
	V2     Layout = "v2"     // one unified hierarchy
	Hybrid Layout = "hybrid" // controllers in v1, an additional v2 tree
)

// A Place is where one container's (or holder's) cgroup is.
type Place struct {
	Parent string // in cgroupfs syntax, absolute: "/kubepods/burstable/pod…"
	ID     string
	Path   string // linux.cgroupsPath in the OCI spec, in the driver's syntax
	// Dirs are absolute directories of the cgroup, one for each hierarchy that
	// matters here: on v2 exactly one.
	Dirs []string
	// OOMEvents is the file that counts OOM kills, see monitor.Container.
	OOMEvents string
}
