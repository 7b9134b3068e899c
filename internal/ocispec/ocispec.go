// Package ocispec turns a pod, a container and an image's configuration into
// an OCI runtime spec. It is pure: values in, values out; only ResolveUser
// reads files, below one root.
package ocispec

import (
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An Input is all that a spec is made from.
type Input struct {
	ID           string // the container's
	Pod          *runtimeapi.PodSandboxConfig
	Container    *runtimeapi.ContainerConfig
	Image        imagespec.ImageConfig
	User         User
	Rootfs       string // absolute path of the mounted root file system
	CgroupsPath  string // linux.cgroupsPath, in the driver's syntax
	CgroupV2     bool
	Namespaces   Namespaces
	Files        Files
	Devices      []Device // every device of the host, for privileged containers
	Capabilities []string // every capability of this process's bounding set, for privileged and ALL
	// MinOOMScoreAdj clamps oom_score_adj from below, where this process may not lower it.
	MinOOMScoreAdj int
	Annotations    map[string]string // added to the spec's
}

// Namespaces are paths to join. Empty means: a new one for pid, mnt and
// cgroup, the host's for net, ipc and uts.
type Namespaces struct{ Net, IPC, UTS, PID string }

// Files are host files that every container of the pod sees. Empty: none.
type Files struct {
	ResolvConf string // at /etc/resolv.conf
	Hostname   string // at /etc/hostname
	Shm        string // directory, at /dev/shm
}

// A User is who a container's first process runs as.
type User struct {
	UID, GID       uint32
	AdditionalGids []uint32
	Name           string // for HOME and reports; may be empty
	Home           string // from the image's /etc/passwd; "/" if unknown
}

// A Device is a device node of the host.
type Device struct {
	Path         string
	Type         string // "c", "b" or "p"
	Major, Minor int64
	Mode         uint32
	UID, GID     uint32
}
