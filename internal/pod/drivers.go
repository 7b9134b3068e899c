package pod

import (
	"context"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/label"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
)

// Namespaces pins a pod's namespaces below dir as files "user", "net", "ipc", "uts".
// Package namespace implements it.
type Namespaces interface {
	Create(ctx context.Context, dir string, spec namespace.Spec) error
	Release(ctx context.Context, dir string) error // idempotent; also after a Create cut short, also after a reboot
}

// Network connects pods. Package network implements it.
type Network interface {
	Attach(ctx context.Context, p network.Pod) (network.Result, error)
	Detach(ctx context.Context, p network.Pod) error // idempotent; also after an Attach cut short
	Check(ctx context.Context, p network.Pod) error
	// Collect releases what is held for pods not in live, and makes sure of
	// what is held for those that are, at start.
	Collect(ctx context.Context, live []network.Attached) error
}

// Rootfs gives containers their root file systems. Package image implements it.
type Rootfs interface {
	// Config returns the image's ID and configuration. NotFound if absent.
	Config(ref string) (id string, config imagespec.ImageConfig, err error)
	// Mount mounts a writable root file system for container id and returns
	// its path. Its image's layers stay until Unmount, whatever becomes of the image.
	Mount(ctx context.Context, id, imageID string, o image.MountOptions) (path string, err error)
	Unmount(ctx context.Context, id string) error // idempotent; deletes the writable layer
	// MountVolume mounts an image for a container to see, read-only, and returns
	// where. Its layers stay until UnmountVolumes. NotFound if the image is
	// absent, or has no such sub path.
	MountVolume(ctx context.Context, v image.Volume) (path string, err error)
	UnmountVolumes(ctx context.Context, container string) error // all of a container's; idempotent
}

// Cgroups names, limits, kills and removes control groups. Package cgroup implements it.
type Cgroups interface {
	CgroupMaker
	Limiter
	// Place names the cgroup of a container (or holder) below parent, which is in
	// cgroupfs syntax; an empty parent means davit's own.
	Place(parent, id string) cgroup.Place
	Kill(ctx context.Context, p cgroup.Place) error   // every process in it; waits until it is empty; idempotent
	Remove(ctx context.Context, p cgroup.Place) error // idempotent
}

// A Limiter changes what a container may use, all of a request or nothing.
type Limiter interface {
	// Limit applies what was left out at create (CPU quota), or an update. Its
	// errors begin with the field to blame.
	Limit(ctx context.Context, p cgroup.Place, r *runtimeapi.LinuxContainerResources) error
	// Current returns what Limit would replace, and changes nothing.
	Current(p cgroup.Place, r *runtimeapi.LinuxContainerResources) ([]cgroup.Value, error)
	Restore(ctx context.Context, p cgroup.Place, before []cgroup.Value) error // idempotent
	// Rescore sets oom_score_adj of the processes that have from.
	Rescore(p cgroup.Place, from, to int64) error
}

// A CgroupMaker makes the control groups that nobody else does.
type CgroupMaker interface {
	Prepare(ctx context.Context, parent string) error // davit's own, for an empty parent; idempotent
	Create(ctx context.Context, p cgroup.Place) error // a holder's; idempotent
	Expect()                                          // a process will be moved soon; returns at once
}

// Processes runs containers. Package monitor's client implements it. Each
// call waits, within ctx, for davit-monitor to come back if it is down.
type Processes interface {
	Create(ctx context.Context, c monitor.Container) (pid int, err error)
	// Start lets the process run. It succeeds, too, when an earlier Start
	// did so whose caller never learned of it.
	Start(ctx context.Context, id string) error
	Signal(ctx context.Context, id string, signal int) error // NotFound once exited
	Remove(ctx context.Context, id string) error             // kills, deletes, forgets; idempotent
	List(ctx context.Context) ([]monitor.Status, error)
}

// Sessions reaches into containers that run. Package monitor's client implements it.
type Sessions interface {
	Streams
	Exec(ctx context.Context, e monitor.Exec) (monitor.ExecResult, error)
	ReopenLog(ctx context.Context, id string) error
	// Hold starts a pod's holder and returns its pid; Remove ends it.
	Hold(ctx context.Context, h monitor.Holder) (pid int, err error)
	// Watch calls f for each container's exit, at least once each; those that
	// happened before the call, too, until Remove. It returns when ctx ends.
	Watch(ctx context.Context, f func(monitor.Exit)) error
}

// Streams are sessions that their caller is connected to.
type Streams interface {
	ExecStream(ctx context.Context, e monitor.Exec, s monitor.Stream) (code int, err error)
	Attach(ctx context.Context, id string, s monitor.Stream) error
}

// Runtimes finds the OCI runtime of a RuntimeClass handler. Invalid for an
// unknown one; Unavailable for one that is configured but missing on this host.
type Runtimes interface {
	Runtime(handler string) (ociruntime.Runtime, error)
	// Seccomp returns the annotations that spare compiling a profile again, or nil.
	Seccomp(r ociruntime.Runtime, profile *specs.LinuxSeccomp) map[string]string
}

// Specs turns what is asked for into an OCI runtime spec. Package ocispec has the first two.
type Specs struct {
	Build       func(ocispec.Input) (*specs.Spec, error)
	ResolveUser func(rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (ocispec.User, error)
	// Devices changes a spec for the devices of the Container Device Interface that
	// a container asks for, if any. Package cdi has it. Nil: none is given.
	Devices func(spec *specs.Spec, c *runtimeapi.ContainerConfig) error
}

// A Host is what specs need to know of this host. The zero value will do for
// containers that are not privileged.
type Host struct {
	CgroupV2       bool
	Capabilities   []string                // of this process's bounding set
	MinOOMScoreAdj int                     // what oom_score_adj is clamped to from below
	Devices        func() []ocispec.Device // all there are now, for privileged containers
	ResolvConf     string                  // "/etc/resolv.conf" if empty
	BootID         string                  // the kernel's if empty
	Labels         *label.SELinux          // nil: there is none
}

// mounts are the few mounts of a pod's or container's own. Tests replace it.
type mounts interface {
	shm(dir, options string) error        // a tmpfs for /dev/shm at dir, which is made
	attach(t idmap.Tree, at string) error // at a path that is made
	detach(dir string) error              // all that is attached in dir, which goes; idempotent
	pin(pid int, file string) error       // pid's PID namespace at file, which is made
	unmount(path string) error            // and removes path; idempotent
}

// killWait is how long a killed process may take to go.
const killWait = 10 * time.Second
