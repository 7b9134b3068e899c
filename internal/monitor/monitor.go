// Package monitor is the wire protocol to davit-monitor and its client.
package monitor

import (
	"io"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/ociruntime"
)

// A Container is what davit-monitor needs to create one container.
type Container struct {
	ID        string // 64 hex digits
	Runtime   ociruntime.Runtime
	Bundle    string // directory that holds config.json
	LogPath   string // CRI log file; empty: output is read and dropped
	TTY       bool   // one pseudo-terminal instead of three pipes
	Stdin     bool   // keep standard input open for attach; false: /dev/null
	StdinOnce bool   // close standard input after the first attach ends
	// UID and GID are whose the standard streams are, on the host, so that the
	// process may open them by name.
	UID, GID uint32
	// OOMEvents is the file that counts OOM kills of the container's cgroup:
	// memory.events (v2) or memory.oom_control (v1). Empty: not counted.
	OOMEvents string
}

// An Exit says how a container's first process ended.
type Exit struct {
	ID        string
	Code      int // 0–255; 128+n when signal n ended it
	Signal    int // 0 unless a signal ended it
	At        time.Time
	OOMKilled bool // the kernel's OOM killer ended it
	OOM       *OOM `json:",omitempty"` // more of that; nil if nothing more is known
}

// An OOM says whose want of memory an OOM kill was. What the kernel did not tell
// is empty or 0.
type OOM struct {
	Scope       string // one of the following
	Cgroup      string // whose limit was hit, as the kernel names it, if it is not the container's
	Limit, Peak int64  // of the scope, in bytes; for the node all its memory, and the most that the container used
	Victim      string // what the killed process was called
	VictimPid   int
}

// Scopes of an OOM.
const (
	OOMOfContainer = "container" // the container's own limit, or one below that
	OOMOfPod       = "pod"       // the limit of the cgroup that the container's is in
	OOMAbove       = "above"     // the limit of one above that
	OOMOfNode      = "node"      // none: the node had no memory left
)

// A Status is what davit-monitor knows of one container.
type Status struct {
	ID   string
	Pid  int   // of the first process, in the host's PID namespace; 0 before create and once exited
	Exit *Exit // nil while it lives; set only once the log is complete
}

// An Exec is one command to run in a container without a terminal.
type Exec struct {
	ContainerID string
	Args        []string
	Timeout     time.Duration // 0: none
	MaxBytes    int           // of standard output and standard error together; the rest is read and dropped
}

// An ExecResult is what an Exec left.
type ExecResult struct {
	Code           int // as Exit.Code
	Stdout, Stderr []byte
}

// A Stream is the caller's side of an interactive session: what is nil is not
// connected. The session owns none of it: when its context has ended, or what
// ran has, a Read or a Write may still be under way. Stdout and Stderr are
// written at the same time; if that fails, or a Read does, the session ends.
type Stream struct {
	Stdin          io.Reader // its end closes the command's standard input
	Stdout, Stderr io.Writer
	TTY            bool        // Exec: a pseudo-terminal, all of whose output goes to Stdout
	Resize         <-chan Size // of the terminal, until closed
}

// A Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// A Holder is a process of davit's own that keeps a PID namespace alive and
// reaps in it as its first process, for pods with a shared PID namespace.
type Holder struct {
	ID         string   // the pod's ID
	Users      string   // file of the pinned user namespace that owns the PID namespace; empty: the host's
	Namespaces []string // files of pinned namespaces (net, ipc, uts) that it joins
	Cgroup     []string // directories, one for each hierarchy, whose cgroup.procs it is put in
}

// Resources are those of an update, by the OCI runtime's `update`.
type Resources = specs.LinuxResources
