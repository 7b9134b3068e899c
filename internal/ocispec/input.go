package ocispec

import (
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/idmap"
)

// An Input is all that a spec is made from.
type Input struct {
	ID           string // the container's
	Pod          *runtimeapi.PodSandboxConfig
	Container    *runtimeapi.ContainerConfig
	Image        imagespec.ImageConfig
	User         User   // from ResolveUser
	Found        Found  // from Inspect
	Rootfs       string // absolute path of the mounted root file system
	CgroupsPath  string // linux.cgroupsPath, in the driver's syntax
	CgroupV2     bool
	Namespaces   Namespaces
	Files        Files
	Devices      []Device // every device of the host, for privileged containers
	Capabilities []string // every capability of this process's bounding set, "CAP_…"; others are never given
	// MinOOMScoreAdj clamps oom_score_adj from below, where this process may not lower it.
	MinOOMScoreAdj int
	Annotations    map[string]string // the spec's; nothing else is added to them
}

// Namespaces are paths to join. Empty means: the host's for user, net, ipc and
// uts. For pid it means a new one, unless the container asks for the node's.
type Namespaces struct {
	User, Net, IPC, UTS, PID string
	Users                    idmap.Map // of User
}

// Files are host files that every container of the pod sees. Empty: none.
type Files struct {
	ResolvConf string // at /etc/resolv.conf
	Hostname   string // at /etc/hostname
	Shm        string // directory, at /dev/shm; empty: a tmpfs of the container's own
	Sys        string // directory, at /sys, read-only with all below; empty: a new sysfs
}

// A User is who a container's first process runs as.
type User struct {
	UID, GID       uint32
	AdditionalGids []uint32 // with GID, first
	Name           string   // for HOME and reports; may be empty
	Home           string   // from the image's /etc/passwd; "/" if unknown
}

// A Device is a device node of the host.
type Device struct {
	Path         string
	Type         string // "c", "b" or "p"
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
}

// Found is what Inspect read on the host for one container.
type Found struct {
	Sources        map[string]string   // host path of each mount → the same without symbolic links
	Devices        map[string][]Device // host path of each device or directory of devices → what is there
	Seccomp        []byte              // JSON of the Localhost profile
	AppArmor       string              // name of the profile, which is loaded; empty: none
	Hostname       string              // HOSTNAME in pods that have none of their own
	SwapAccounting bool                // a limit of memory and swap together can be set
	Hugetlb        bool                // the hugetlb controller is there
}

// A Host is what does not change while this process runs.
type Host struct {
	Capabilities   []string // for Input.Capabilities
	MinOOMScoreAdj int      // for Input.MinOOMScoreAdj
	CgroupV2       bool     // control groups are one unified hierarchy
}
