package pod

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/ocispec"
)

// A Snapshot is a pod at one moment. Nobody may change what it points to.
type Snapshot struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig
	Handler   string // as asked for; empty for the default
	State     State
	CreatedAt time.Time
	Network   network.Result    // zero with the host's network
	Paths     map[string]string // pinned namespaces: "net", "ipc", "uts", "pid"
	Held      []string          // what it holds, in the order acquired
	HolderPid int               // 0 without a shared PID namespace
}

// A ContainerSnapshot is a container at one moment. Nobody may change what it points to.
type ContainerSnapshot struct {
	ID, PodID  string
	Config     *runtimeapi.ContainerConfig
	Handler    string
	ImageID    string
	State      State
	Pid        int
	CreatedAt  time.Time
	StartedAt  time.Time // zero until it happens
	FinishedAt time.Time // zero until it happens
	ExitCode   int
	Reason     string // "Completed", "Error", "OOMKilled", "StartError", "Unknown"
	Message    string
	User       ocispec.User
	Resources  *runtimeapi.LinuxContainerResources // as applied
	StopSignal string                              // effective, "SIGTERM"
	LogPath    string                              // absolute; empty: no log
	Held       []string
}

// MustRun returns Precondition for a container that does not run.
func (s *ContainerSnapshot) MustRun() error {
	if s.State != Running {
		return fault.New(fault.Precondition, "", "container %s is not running, it is %s", s.ID, s.State)
	}
	return nil
}

// A State is where a pod or a container stands.
type State string

const (
	Preparing State = "preparing" // being made; a pod is listed NOTREADY, a container is hidden
	Ready     State = "ready"     // pods
	NotReady  State = "notready"  // pods: stopped, or what it held was lost
	Created   State = "created"   // containers
	Running   State = "running"
	Exited    State = "exited"
	Unknown   State = "unknown" // its fate is not known yet
)

// An event is what can happen to a pod or a container.
type event string

const (
	made        event = "made"        // every step of making it succeeded
	stopped     event = "stopped"     // a pod is to run nothing any more
	started     event = "started"     // the container's process runs
	startFailed event = "startfailed" // and never will run
	died        event = "died"        // the container's process ended
	lost        event = "lost"        // nobody knows the process, or what the pod held
)

// podStates and containerStates say what an event makes of a state. What is
// absent is refused.
var (
	podStates = map[State]map[event]State{
		Preparing: {made: Ready, lost: NotReady},
		Ready:     {stopped: NotReady, lost: NotReady},
		NotReady:  {stopped: NotReady, lost: NotReady},
	}
	containerStates = map[State]map[event]State{
		Preparing: {made: Created},
		Created:   {started: Running, startFailed: Exited, died: Exited, lost: Exited},
		Running:   {died: Exited, lost: Exited},
		// A start that failed explains an exit that was heard of first; one that
		// succeeded may be outrun by the exit. Neither brings it back to life.
		Exited:  {startFailed: Exited, started: Exited},
		Unknown: {died: Exited, lost: Exited},
	}
)
