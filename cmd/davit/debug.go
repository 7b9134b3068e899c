package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/cmd/davit/images"
	"github.com/davit-runtime/davit/criclient/cristream"
	"github.com/davit-runtime/davit/internal/inside"
	"github.com/davit-runtime/davit/internal/play"
	"github.com/davit-runtime/davit/internal/terminal"
)

// debugProgram is where this program is in a container for debugging.
const debugProgram = "/.davit"

type debugOptions struct {
	session
	image string
}

func (a app) debugCommand() *cobra.Command {
	var o debugOptions
	cmd := &cobra.Command{
		Use:   "debug POD[/CONTAINER] [--image IMAGE] [-- COMMAND [ARGUMENT...]]",
		Short: "Open a shell with tools in a container's namespaces",
		Long: `Open a shell, or run COMMAND, where a running container is, and exit with its code. The container needs no shell for that.

Without --image the tools are this node's, in the container's network, process, IPC and host name namespaces, as root and with this node's
files. With --image the tools are IMAGE's, pulled if it is not here: in a container that is added to the pod and removed in the end, beside the
container's processes and with the capabilities SYS_PTRACE, NET_ADMIN and NET_RAW; this works for pods of which no container runs, too.
The container's own files are below $TARGET in both.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, command := args[0], args[1:]
			screen := terminal.Of(a.In) != nil && terminal.Of(a.Out) != nil
			o.stdin, o.tty = o.stdin || screen || len(command) == 0, screen
			var err error
			if o.image == "" {
				err = a.debugHere(cmd.Context(), ref, o, command)
			} else {
				err = a.debugByImage(cmd.Context(), ref, o, command)
			}
			var exit *cristream.ExitError
			if errors.As(err, &exit) {
				return console.ExitCode(exit.Code)
			}
			return err
		},
	}
	o.dialFlags(cmd)
	cmd.Flags().StringVarP(&o.container, "container", "c", "", "name of the container, if the pod has several")
	cmd.Flags().StringVar(&o.image, "image", "", "image with the tools; without it, this node's")
	cmd.Flags().BoolVarP(&o.stdin, "stdin", "i", false, "pass standard input on to COMMAND, also if it is no terminal")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; if it is the command's, put -- before the command", err)
	})
	return cmd
}

// debugHere runs this node's program in the container's namespaces.
func (a app) debugHere(ctx context.Context, ref string, o debugOptions, command []string) error {
	c, err := a.findContainer(ctx, ref, o.container)
	if err != nil {
		return err
	}
	name := c.Metadata.GetName()
	p, err := a.process(ctx, c)
	if err != nil {
		return fmt.Errorf("container %s: %w; --image has a container of its own", name, err)
	}
	defer p.Close()
	pid, err := p.LastPid()
	if err != nil {
		return fmt.Errorf("container %s: %w", name, err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if len(command) == 0 {
		command = []string{"sh"}
		if bash, err := exec.LookPath("bash"); err == nil {
			command = []string{bash}
		}
		fmt.Fprintf(a.Err, "This node's shell where container %s is; its files are below $TARGET, /proc/%s/root.\n", name, pid)
	}
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	shell := exec.CommandContext(ctx, self, append([]string{"inside", "run", "--"}, command...)...)
	shell.Env = append(os.Environ(), "TARGET=/proc/"+pid+"/root")
	shell.Stdout, shell.Stderr = a.Out, a.Err
	if o.stdin {
		shell.Stdin = a.In
	}
	// Keys that end programs are the shell's, and do not end davit.
	keys := make(chan os.Signal, 8)
	signal.Notify(keys, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(keys)
	err = p.Run(shell)
	if screen := terminal.Of(a.In); screen != nil && o.stdin {
		terminal.TakeBack(screen)
	}
	if ctx.Err() != nil {
		return context.Canceled
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return console.ExitCode(128 + int(status.Signal()))
	}
	return console.ExitCode(exit.ExitCode())
}

// debugByImage runs a program of an image's in a container of its own.
func (a app) debugByImage(ctx context.Context, ref string, o debugOptions, command []string) error {
	pod, target, err := a.findTarget(ctx, ref, o.container)
	if err != nil {
		return err
	}
	r, err := a.podStatus(ctx, pod.Id)
	if err != nil {
		return err
	}
	if r.Status.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod %s is not ready: nothing can be run in it", podName(pod.Metadata))
	}
	sandbox := sandboxConfig(r)
	config, err := debugConfig(r.Status, target, o.tty)
	if err != nil {
		return err
	}
	if config.Image, err = a.imageFor(ctx, o.image, sandbox); err != nil {
		return err
	}
	if target != nil {
		a.nameTarget(ctx, target, config)
	}
	c, err := a.runDebug(ctx, pod.Id, config, sandbox)
	if c != nil {
		defer a.removeDebug(context.WithoutCancel(ctx), c)
	}
	if err != nil {
		return fmt.Errorf("container with %s: %w", o.image, err)
	}
	if len(command) == 0 {
		command = []string{"sh"}
	}
	if err := a.exec(ctx, &o.session, c, command, 0); err != nil {
		return fmt.Errorf("%s of %s: %w", command[0], o.image, err)
	}
	return nil
}

// findTarget returns the pod that ref means, and the container in it, or none
// if none runs.
func (a app) findTarget(ctx context.Context, ref, name string) (*runtimeapi.PodSandbox, *runtimeapi.Container, error) {
	c, err := a.findContainer(ctx, ref, name)
	var absent *console.NotFound
	switch {
	case err == nil:
		pod, err := a.findPod(ctx, c.PodSandboxId)
		if notRunning(c) {
			c = nil
		}
		return pod, c, err
	case errors.As(err, &absent) && name == "":
		pod, podErr := a.findPod(ctx, ref) // one without containers
		return pod, nil, podErr
	}
	found, findErr := a.findContainers(ctx, ref, name)
	if findErr == nil && !slices.ContainsFunc(found, func(c *runtimeapi.Container) bool { return !notRunning(c) }) {
		pod, err := a.findPod(ctx, found[0].PodSandboxId)
		return pod, nil, err
	}
	return nil, nil, err
}

func (a app) podStatus(ctx context.Context, id string) (*runtimeapi.PodSandboxStatusResponse, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	r, err := a.Client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("status of the pod: %w", err)
	}
	return r, nil
}

// sandboxConfig is what the pod was made by, as davitd and containerd tell it.
// CRI-O does not, but goes by what it knows itself.
func sandboxConfig(r *runtimeapi.PodSandboxStatusResponse) *runtimeapi.PodSandboxConfig {
	var info struct {
		Config json.RawMessage `json:"config"`
	}
	config := &runtimeapi.PodSandboxConfig{}
	if json.Unmarshal([]byte(r.Info["info"]), &info) == nil &&
		(protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(info.Config, config) == nil && config.Metadata != nil {
		return config
	}
	return &runtimeapi.PodSandboxConfig{Metadata: r.Status.Metadata, Labels: r.Status.Labels, Annotations: r.Status.Annotations, Linux: &runtimeapi.LinuxPodSandboxConfig{
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: r.Status.GetLinux().GetNamespaces().GetOptions()},
	}}
}

// debugConfig is the container's, with labels that tell a kubelet whose it is.
func debugConfig(pod *runtimeapi.PodSandboxStatus, target *runtimeapi.Container, tty bool) (*runtimeapi.ContainerConfig, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	name := "debug-" + strings.ToLower(rand.Text()[:5])
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if has := pod.GetLinux().GetNamespaces().GetOptions(); has != nil {
		options = proto.CloneOf(has)
	}
	if target != nil && options.Pid == runtimeapi.NamespaceMode_CONTAINER {
		options.Pid, options.TargetId = runtimeapi.NamespaceMode_TARGET, target.Id
	}
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Command:  []string{debugProgram, "inside", "wait"},
		Mounts:   []*runtimeapi.Mount{{ContainerPath: debugProgram, HostPath: self, Readonly: true}},
		Labels: map[string]string{
			play.LabelPodName: pod.GetMetadata().GetName(), play.LabelPodNamespace: pod.GetMetadata().GetNamespace(),
			play.LabelPodUID: pod.GetMetadata().GetUid(), play.LabelContainerName: name,
		},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: options, RunAsUser: &runtimeapi.Int64Value{},
				Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE", "NET_ADMIN", "NET_RAW"}},
				Seccomp:      &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
	if kind := os.Getenv("TERM"); tty && kind != "" {
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: "TERM", Value: []byte(kind)})
	}
	return config, nil
}

// nameTarget tells the container where the target's files are, if the
// runtime says which process is the target's.
func (a app) nameTarget(ctx context.Context, target *runtimeapi.Container, config *runtimeapi.ContainerConfig) {
	p, err := a.process(ctx, target)
	if err != nil {
		return // it is debugged all the same
	}
	defer p.Close()
	if pid, err := p.LastPid(); err == nil {
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: "TARGET", Value: []byte("/proc/" + pid + "/root")})
	}
}

// imageFor returns an image by its ID, pulled if it is not there.
func (a app) imageFor(ctx context.Context, name string, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.ImageSpec, error) {
	have, err := images.List(ctx, a.Console, name)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	if len(have) > 0 {
		return &runtimeapi.ImageSpec{Image: have[0].Id, UserSpecifiedImage: name}, nil
	}
	end := images.NewSteps(a.Console, a.Err).Step(play.StepPull, name)
	r, err := a.Client.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}, SandboxConfig: sandbox})
	if err != nil {
		end(play.Failed)
		return nil, fmt.Errorf("pull %s: %w", name, err)
	}
	end("pulled")
	return &runtimeapi.ImageSpec{Image: r.ImageRef, UserSpecifiedImage: name}, nil
}

// runDebug makes and starts the container. What it returns has to be removed,
// also with an error.
func (a app) runDebug(ctx context.Context, pod string, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.Container, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	r, err := a.Client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return nil, err
	}
	_, err = a.Client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId})
	return &runtimeapi.Container{Id: r.ContainerId, Metadata: config.Metadata}, err
}

// removeDebug tells what cannot be removed.
func (a app) removeDebug(ctx context.Context, c *runtimeapi.Container) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	_, stopErr := a.Client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id})
	_, err := a.Client.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id})
	if err := errors.Join(stopErr, err); err != nil {
		fmt.Fprintf(a.Err, "davit: container %s is left: %s\n", c.Metadata.GetName(), a.Explain(err))
	}
}

// insideCommand is what davit debug runs where the container is.
func insideCommand() *cobra.Command {
	parent := &cobra.Command{Use: "inside", Hidden: true, Args: cobra.NoArgs, PersistentPreRunE: func(*cobra.Command, []string) error { return nil }}
	parent.AddCommand(
		&cobra.Command{Use: "run -- COMMAND [ARGUMENT...]", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			return inside.Enter(args)
		}},
		&cobra.Command{Use: "wait", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return inside.WaitAlone(cmd.Context(), 30*time.Second)
		}},
	)
	return parent
}
