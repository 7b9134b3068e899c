package nri

import (
	"time"

	validator "github.com/containerd/nri/plugins/default-validator"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An Event is what a hook is called for.
type Event string

// Events, in the order of a life.
const (
	RunPod           Event = "RunPodSandbox"
	UpdatePod        Event = "UpdatePodSandbox"
	PodUpdated       Event = "PostUpdatePodSandbox"
	StopPod          Event = "StopPodSandbox"
	RemovePod        Event = "RemovePodSandbox"
	CreateContainer  Event = "CreateContainer"
	ContainerCreated Event = "PostCreateContainer"
	StartContainer   Event = "StartContainer"
	ContainerStarted Event = "PostStartContainer"
	UpdateContainer  Event = "UpdateContainer"
	ContainerUpdated Event = "PostUpdateContainer"
	StopContainer    Event = "StopContainer"
	RemoveContainer  Event = "RemoveContainer"
)

// A Pod is what plugins are told of one.
type Pod struct {
	ID, Handler string
	Config      *runtimeapi.PodSandboxConfig
	CgroupsPath string            // of its holder, as OCI specs have it
	Namespaces  map[string]string // files, by the names of network, ipc, uts and pid in OCI specs
	IPs         []string
	Pid         int // of its holder; 0: it has none

	NewOverhead, NewResources *runtimeapi.LinuxContainerResources // of UpdatePod
}

// A Container is what plugins are told of one.
type Container struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	ImageID   string
	Spec      *specs.Spec // nil if it cannot be read
	Resources *runtimeapi.LinuxContainerResources
	State     State
	Pid       int
	Times     Times
	ExitCode  int
	Reason    string
	Message   string

	NewResources *runtimeapi.LinuxContainerResources // of UpdateContainer
}

// Times are when things happened; zero where they have not.
type Times struct{ Created, Started, Finished time.Time }

// A State is where a container stands.
type State int

// States.
const (
	Unknown State = iota
	Created
	Running
	Stopped
)

// An Answer is what plugins want done.
type Answer struct {
	Resources *runtimeapi.LinuxContainerResources // of the container that it is about; nil: nothing changed
	Updates   []Update                            // of other containers
	Evictions []Eviction
}

// An Update changes limits of a container; what is zero stays.
type Update struct {
	ID        string
	Resources *runtimeapi.LinuxContainerResources
	MayFail   bool // the plugin does not mind
}

// An Eviction stops a container.
type Eviction struct{ ID, Reason string }

// A Validator is the library's own plugin that refuses adjustments of some kinds.
type Validator struct {
	Hooks           bool     // refuse OCI hooks
	RuntimeDefault  bool     // refuse to change the runtime's default seccomp profile
	Unconfined      bool     // refuse to change an unconfined seccomp profile
	Custom          bool     // refuse to change a custom seccomp profile
	Namespaces      bool     // refuse to change namespaces
	Sysctls         bool     // refuse to change sysctls
	Required        []string // plugins without which no container is made
	TolerateMissing string   // annotation of those that are made nevertheless
}

func (v *Validator) library() *validator.DefaultValidatorConfig {
	if v == nil {
		return nil
	}
	return &validator.DefaultValidatorConfig{
		Enable:                                true,
		RejectOCIHookAdjustment:               v.Hooks,
		RejectRuntimeDefaultSeccompAdjustment: v.RuntimeDefault,
		RejectUnconfinedSeccompAdjustment:     v.Unconfined,
		RejectCustomSeccompAdjustment:         v.Custom,
		RejectNamespaceAdjustment:             v.Namespaces,
		RejectSysctlAdjustment:                v.Sysctls,
		RequiredPlugins:                       v.Required,
		TolerateMissingAnnotation:             v.TolerateMissing,
	}
}
