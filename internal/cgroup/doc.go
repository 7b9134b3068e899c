// Package cgroup finds out how this host's control groups are laid out and
// names, limits, reads, kills and removes those of containers.
//
// The OCI runtime makes a container's cgroup; this package makes only davit's
// own parent, and the cgroup of a process that no OCI runtime starts. It keeps
// nothing on disk: a Place is a value, and whoever holds it may end it after a
// restart. It never touches a cgroup whose Place it was not given. Package pod
// calls it, through its interface Cgroups, and stats for what cgroups tell.
package cgroup
