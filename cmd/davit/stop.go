package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/play"
)

// defaultGrace is Kubernetes' terminationGracePeriodSeconds.
const defaultGrace = 30

func (a app) stopCommand() *cobra.Command {
	grace := int64(-1)
	cmd := &cobra.Command{
		Use:   "stop POD...",
		Short: "Stop pods",
		Long: `Stop pods: the containers together, then sidecars from the last to the first, then the sandbox.
The pods stay, stopped, until davit rm. With -o json: the CRI's ListPodSandboxResponse of those that were stopped.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachPod(args, func(ref string) (*runtimeapi.PodSandbox, error) { return a.stop(cmd.Context(), ref, grace) })
		},
	}
	cmd.Flags().Int64Var(&grace, "grace", grace, "seconds between asking and killing; as the manifest says, else 30, if negative")
	return cmd
}

// eachPod does something to pods, and tells programs of those that it was done
// to. do returns nil where nothing was to be done.
func (a app) eachPod(refs []string, do func(ref string) (*runtimeapi.PodSandbox, error)) error {
	var errs []error
	done := &runtimeapi.ListPodSandboxResponse{}
	for _, ref := range refs {
		pod, err := do(ref)
		errs = append(errs, err)
		if err == nil && pod != nil {
			done.Items = append(done.Items, pod)
		}
	}
	if a.JSON() {
		errs = append(errs, a.PrintMessage(done))
	}
	return errors.Join(errs...)
}

func (a app) stop(ctx context.Context, ref string, grace int64) (*runtimeapi.PodSandbox, error) {
	began := time.Now()
	pod, err := a.findPod(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := a.stopPod(ctx, pod, grace); err != nil {
		return nil, fmt.Errorf("stop pod %s: %w", podName(pod.Metadata), err)
	}
	pod.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	return pod, a.tell("pod %s stopped, %s\n", podName(pod.Metadata), console.Took(began))
}

// tell tells people.
func (a app) tell(format string, args ...any) error {
	if a.JSON() {
		return nil
	}
	_, err := fmt.Fprintf(a.Out, format, args...)
	return err
}

func (a app) stopPod(ctx context.Context, pod *runtimeapi.PodSandbox, grace int64) error {
	found, err := a.listContainers(ctx, &runtimeapi.ContainerFilter{
		PodSandboxId: pod.Id,
		State:        &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err != nil {
		return err
	}
	for _, together := range stopOrder(found) {
		if err := a.stopContainers(ctx, together, grace); err != nil {
			return err
		}
	}
	return a.stopSandbox(ctx, pod.Id)
}

func (a app) stopSandbox(ctx context.Context, id string) error {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	_, err := a.Client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

// stopOrder groups containers as a kubelet stops them: first all but the
// sidecars, then each sidecar, the last to start first. KEP-753.
func stopOrder(found []*runtimeapi.Container) [][]*runtimeapi.Container {
	var first, sidecars []*runtimeapi.Container
	for _, c := range found {
		if _, ok := sidecarIndex(c); ok {
			sidecars = append(sidecars, c)
		} else {
			first = append(first, c)
		}
	}
	slices.SortFunc(sidecars, func(a, b *runtimeapi.Container) int {
		i, _ := sidecarIndex(a)
		j, _ := sidecarIndex(b)
		return cmp.Compare(j, i)
	})
	order := [][]*runtimeapi.Container{first}
	for _, s := range sidecars {
		order = append(order, []*runtimeapi.Container{s})
	}
	return order
}

func sidecarIndex(c *runtimeapi.Container) (int, bool) {
	i, err := strconv.Atoi(c.Annotations[play.AnnotationSidecar])
	return i, err == nil
}

// stopContainers stops all at once and waits for them.
func (a app) stopContainers(ctx context.Context, together []*runtimeapi.Container, grace int64) error {
	errs := make([]error, len(together))
	var wg sync.WaitGroup
	for i, c := range together {
		wg.Go(func() {
			seconds := graceOf(c, grace)
			ctx, cancel := a.Call(ctx, time.Duration(seconds)*time.Second)
			defer cancel()
			_, err := a.Client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: seconds})
			if err != nil {
				errs[i] = fmt.Errorf("container %s: %w", c.Metadata.GetName(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// graceOf is what the user said, else the manifest, else Kubernetes.
func graceOf(c *runtimeapi.Container, asked int64) int64 {
	if asked >= 0 {
		return asked
	}
	if said, err := strconv.ParseInt(c.Annotations[play.AnnotationGrace], 10, 64); err == nil && said >= 0 {
		return said
	}
	return defaultGrace
}

type rmOptions struct {
	force   bool
	playDir string
}

func (a app) rmCommand() *cobra.Command {
	var o rmOptions
	cmd := &cobra.Command{
		Use:   "rm POD...",
		Short: "Remove pods, and the files that davit play made for them",
		Long: `Remove pods, and the files that davit play made for them. With -o json: the CRI's ListPodSandboxResponse of those that were
removed, as they were.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachPod(args, func(ref string) (*runtimeapi.PodSandbox, error) { return a.remove(cmd.Context(), ref, o) })
		},
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "also pods that run: kill them; a pod that is not there is no error")
	cmd.Flags().StringVar(&o.playDir, "play-dir", defaultPlayDir, "where to look for the files of a pod that does not name them itself")
	return cmd
}

func (a app) remove(ctx context.Context, ref string, o rmOptions) (*runtimeapi.PodSandbox, error) {
	pod, err := a.findPod(ctx, ref)
	var absent *console.NotFound
	if o.force && errors.As(err, &absent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	name := podName(pod.Metadata)
	if pod.State == runtimeapi.PodSandboxState_SANDBOX_READY && !o.force {
		return nil, fmt.Errorf("pod %s runs; stop it first (davit stop %s), or use -f to kill it", name, name)
	}
	if err := a.removeSandbox(ctx, pod.Id); err != nil {
		return nil, fmt.Errorf("remove pod %s: %w", name, err)
	}
	if err := a.removeFiles(pod, o.playDir); err != nil {
		return nil, fmt.Errorf("pod %s is removed, but not its files: %w", name, err)
	}
	return pod, a.tell("pod %s removed\n", name)
}

// removeSandbox stops and removes, as a kubelet does, whatever the state.
func (a app) removeSandbox(ctx context.Context, id string) error {
	if err := a.stopSandbox(ctx, id); err != nil {
		return err
	}
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	_, err := a.Client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (a app) removeFiles(pod *runtimeapi.PodSandbox, playDir string) error {
	uid := pod.Metadata.GetUid()
	if dir := pod.Annotations[play.AnnotationFiles]; dir != "" {
		return play.Clean(dir, uid)
	}
	if uid == "" || !filepath.IsLocal(uid) {
		return nil // no pod of davit play
	}
	return play.Clean(filepath.Join(playDir, uid), uid)
}
