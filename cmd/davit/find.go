package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
)

// findPod returns the pod that ref names: by its name, namespace/name, or the
// beginning of its ID.
func (a app) findPod(ctx context.Context, ref string) (*runtimeapi.PodSandbox, error) {
	pods, err := a.listPods(ctx, nil)
	if err != nil {
		return nil, err
	}
	return pickPod(pods, ref)
}

// findContainers returns the containers that ref means: those of a pod, or
// only the one called name; or a container by POD/NAME, the beginning of its
// ID, or its name if no other has it. Of a container started again, the last
// attempt.
func (a app) findContainers(ctx context.Context, ref, name string) ([]*runtimeapi.Container, error) {
	pods, err := a.listPods(ctx, nil)
	if err != nil {
		return nil, err
	}
	all, err := a.listContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	return pickContainers(pods, all, ref, name)
}

// findContainer is findContainers where there must be one; running ones win.
func (a app) findContainer(ctx context.Context, ref, name string) (*runtimeapi.Container, error) {
	found, err := a.findContainers(ctx, ref, name)
	if err != nil {
		return nil, err
	}
	if running := slices.DeleteFunc(slices.Clone(found), notRunning); len(running) > 0 {
		found = running
	}
	if len(found) > 1 {
		return nil, fmt.Errorf("pod %q has several containers; choose one by -c: %s", ref, names(found, containerName))
	}
	return found[0], nil
}

func pickPod(pods []*runtimeapi.PodSandbox, ref string) (*runtimeapi.PodSandbox, error) {
	for _, p := range pods {
		if p.Id == ref {
			return p, nil
		}
	}
	named := newestOfEach(slices.DeleteFunc(slices.Clone(pods), func(p *runtimeapi.PodSandbox) bool {
		return podName(p.Metadata) != ref && p.Metadata.GetName() != ref
	}))
	if len(named) == 0 {
		named = slices.DeleteFunc(slices.Clone(pods), func(p *runtimeapi.PodSandbox) bool {
			return ref == "" || !strings.HasPrefix(p.Id, ref)
		})
	}
	switch len(named) {
	case 0:
		return nil, &console.NotFound{What: "pod", Ref: ref, Hint: "davit pods"}
	case 1:
		return named[0], nil
	}
	return nil, fmt.Errorf("%q means several pods: %s; be more exact", ref, names(named, podAndID))
}

// newestOfEach keeps the last sandbox of each pod (by uid): a kubelet leaves
// earlier ones behind for a while.
func newestOfEach(pods []*runtimeapi.PodSandbox) []*runtimeapi.PodSandbox {
	slices.SortStableFunc(pods, func(a, b *runtimeapi.PodSandbox) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	seen := map[string]bool{}
	return slices.DeleteFunc(pods, func(p *runtimeapi.PodSandbox) bool {
		key := podName(p.Metadata) + " " + p.Metadata.GetUid()
		again := seen[key]
		seen[key] = true
		return again
	})
}

func pickContainers(pods []*runtimeapi.PodSandbox, all []*runtimeapi.Container, ref, name string) ([]*runtimeapi.Container, error) {
	pod, err := pickPod(pods, ref)
	var absent *console.NotFound
	if i := strings.LastIndexByte(ref, '/'); i >= 0 && name == "" && errors.As(err, &absent) {
		if inPod, podErr := pickPod(pods, ref[:i]); !errors.As(podErr, &absent) {
			pod, err = inPod, podErr
			ref, name = ref[:i], ref[i+1:]
		}
	}
	if errors.As(err, &absent) {
		return pickContainerAlone(all, ref)
	}
	if err != nil {
		return nil, err
	}
	var found []*runtimeapi.Container
	for _, c := range lastAttempts(all) {
		if c.PodSandboxId == pod.Id && (name == "" || c.Metadata.GetName() == name) {
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		return nil, &console.NotFound{What: "container", Ref: strings.Trim(ref+"/"+name, "/"), Hint: "davit ps -a"}
	}
	return found, nil
}

func pickContainerAlone(all []*runtimeapi.Container, ref string) ([]*runtimeapi.Container, error) {
	var byID, byName []*runtimeapi.Container
	for _, c := range all {
		if ref != "" && strings.HasPrefix(c.Id, ref) {
			byID = append(byID, c)
		}
	}
	for _, c := range lastAttempts(all) {
		if c.Metadata.GetName() == ref {
			byName = append(byName, c)
		}
	}
	found := byName
	if len(found) == 0 {
		found = byID
	}
	switch len(found) {
	case 0:
		return nil, &console.NotFound{What: "pod or container", Ref: ref, Hint: "davit pods and davit ps -a"}
	case 1:
		return found, nil
	}
	return nil, fmt.Errorf("%q means several containers: %s; be more exact", ref, names(found, containerAndID))
}

// lastAttempts keeps the last attempt of each container, oldest pod first.
func lastAttempts(all []*runtimeapi.Container) []*runtimeapi.Container {
	last := map[string]*runtimeapi.Container{}
	for _, c := range all {
		key := c.PodSandboxId + " " + c.Metadata.GetName()
		if have := last[key]; have == nil || c.Metadata.GetAttempt() > have.Metadata.GetAttempt() {
			last[key] = c
		}
	}
	var out []*runtimeapi.Container
	for _, c := range all {
		if last[c.PodSandboxId+" "+c.Metadata.GetName()] == c {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b *runtimeapi.Container) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	return out
}

func notRunning(c *runtimeapi.Container) bool {
	return c.State != runtimeapi.ContainerState_CONTAINER_RUNNING
}

func names[T any](list []T, name func(T) string) string {
	var out []string
	for _, x := range list {
		out = append(out, name(x))
	}
	return strings.Join(out, ", ")
}

func podName(m *runtimeapi.PodSandboxMetadata) string {
	return m.GetNamespace() + "/" + m.GetName()
}

func podAndID(p *runtimeapi.PodSandbox) string {
	return fmt.Sprintf("%s (%.12s)", podName(p.Metadata), p.Id)
}

func containerName(c *runtimeapi.Container) string { return c.Metadata.GetName() }

func containerAndID(c *runtimeapi.Container) string {
	return fmt.Sprintf("%s (%.12s)", c.Metadata.GetName(), c.Id)
}
