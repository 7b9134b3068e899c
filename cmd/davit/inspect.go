package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) inspectCommand() *cobra.Command {
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
			return writeJSON(a.out, raw)
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "this container of the pod")
	return cmd
}

func (a *app) inspect(ctx context.Context, ref, container string) ([]byte, error) {
	if container == "" {
		pod, err := a.findPod(ctx, ref)
		var absent *notFound
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
	return statusJSON(r.GetStatus(), r.GetInfo())
}

func (a *app) inspectPod(ctx context.Context, pod *runtimeapi.PodSandbox) ([]byte, error) {
	ctx, cancel := a.call(ctx, 0)
	defer cancel()
	r, err := a.client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("inspect pod %s: %w", podName(pod.Metadata), err)
	}
	return statusJSON(r.GetStatus(), r.GetInfo())
}
