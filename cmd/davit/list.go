package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/cmd/davit/images"
)

func (a app) podsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Long:  "List pods. With -o json: the CRI's ListPodSandboxResponse.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pods, err := a.listPods(cmd.Context(), nil)
			if err != nil {
				return fmt.Errorf("list pods: %w", err)
			}
			if a.JSON() {
				return a.PrintMessage(&runtimeapi.ListPodSandboxResponse{Items: pods})
			}
			return a.podTable(cmd.Context(), pods)
		},
	}
}

func (a app) podTable(ctx context.Context, pods []*runtimeapi.PodSandbox) error {
	var rows [][]string
	for _, p := range pods {
		state := strings.ToLower(strings.TrimPrefix(p.State.String(), "SANDBOX_"))
		rows = append(rows, []string{
			console.Short(p.Id), p.Metadata.GetNamespace(), p.Metadata.GetName(), state, a.address(ctx, p), console.Age(p.CreatedAt), console.Dash(p.RuntimeHandler),
		})
	}
	return a.PrintTable("ID NAMESPACE NAME STATE ADDRESS AGE HANDLER", rows)
}

// address asks for a pod's address; a pod may vanish meanwhile.
func (a app) address(ctx context.Context, p *runtimeapi.PodSandbox) string {
	if p.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return "-"
	}
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	r, err := a.Client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
	if err != nil {
		return "-"
	}
	if r.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return "host"
	}
	return console.Dash(r.GetStatus().GetNetwork().GetIp())
}

func (a app) psCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers that run",
		Long:  "List containers that run. With -o json: the CRI's ListContainersResponse.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter := &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}
			if all {
				filter = nil
			}
			found, err := a.listContainers(cmd.Context(), filter)
			if err != nil {
				return fmt.Errorf("list containers: %w", err)
			}
			if a.JSON() {
				return a.PrintMessage(&runtimeapi.ListContainersResponse{Containers: found})
			}
			return a.containerTable(cmd.Context(), found)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that were only created or have ended")
	return cmd
}

func (a app) containerTable(ctx context.Context, found []*runtimeapi.Container) error {
	pods, err := a.listPods(ctx, nil)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	podOf := map[string]string{}
	for _, p := range pods {
		podOf[p.Id] = podName(p.Metadata)
	}
	images := a.imageNames(ctx, found)
	var rows [][]string
	for _, c := range found {
		image := c.Image.GetUserSpecifiedImage()
		if image == "" {
			image = c.Image.GetImage()
		}
		if name, isID := images[image]; isID {
			image = name
		}
		state := strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		rows = append(rows, []string{
			console.Short(c.Id), console.Dash(podOf[c.PodSandboxId]), c.Metadata.GetName(), state,
			fmt.Sprint(c.Metadata.GetAttempt()), console.Age(c.CreatedAt), console.Dash(image),
		})
	}
	return a.PrintTable("ID POD NAME STATE ATTEMPT AGE IMAGE", rows)
}

var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// imageNames has what to show for each image that is listed by its ID: a tag
// of it or, without one, the ID's beginning. Runtimes list what the container
// was made with, and that is often the ID.
func (a app) imageNames(ctx context.Context, containers []*runtimeapi.Container) map[string]string {
	names := map[string]string{}
	for _, c := range containers {
		if id := c.Image.GetImage(); imageID.MatchString(id) {
			names[id] = console.Short(id)
		}
	}
	if len(names) == 0 {
		return nil
	}
	images, _ := images.List(ctx, a.Console) // without them the IDs are shown
	for _, i := range images {
		if _, wanted := names[i.Id]; wanted && len(i.RepoTags) > 0 {
			names[i.Id] = i.RepoTags[0]
		}
	}
	return names
}

func (a app) listPods(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	return a.Client.Pods(ctx, filter)
}

func (a app) listContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	return a.Client.Containers(ctx, filter)
}

func (a app) inspectCommand() *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:   "inspect POD|CONTAINER",
		Short: "Show all that the runtime knows of a pod or a container",
		Long: `Show all that the runtime knows of a pod, or of one of its containers (-c), or of a container
by its ID, as JSON: {"status": PodSandboxStatus or ContainerStatus, "info": the runtime's own details}.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := a.inspect(cmd.Context(), args[0], container)
			if err != nil {
				return err
			}
			return console.WriteJSON(a.Out, raw)
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "this container of the pod")
	return cmd
}

func (a app) inspect(ctx context.Context, ref, container string) ([]byte, error) {
	if container == "" {
		pod, err := a.findPod(ctx, ref)
		var absent *console.NotFound
		if err == nil {
			return a.inspectPod(ctx, pod)
		}
		if !errors.As(err, &absent) {
			return nil, err
		}
	}
	found, err := a.findContainers(ctx, ref, container)
	if err != nil {
		return nil, err
	}
	r, err := a.containerStatus(ctx, found[0].Id, true)
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", found[0].Metadata.GetName(), err)
	}
	return console.StatusJSON(r.GetStatus(), r.GetInfo())
}

func (a app) inspectPod(ctx context.Context, pod *runtimeapi.PodSandbox) ([]byte, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	r, err := a.Client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("inspect pod %s: %w", podName(pod.Metadata), err)
	}
	return console.StatusJSON(r.GetStatus(), r.GetInfo())
}
