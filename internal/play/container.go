package play

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An image is what a container is made from.
type image struct {
	ref  string // what the runtime calls it
	user imageUser
}

// containerConfig translates one container of a pod whose sandbox runs.
//
// Source: Kubernetes, pkg/kubelet/kuberuntime, generateContainerConfig.
func (l *launch) containerConfig(c *corev1.Container) (*runtimeapi.ContainerConfig, error) {
	img := l.images[c.Image]
	envs, values, err := environment(l.pod, c, l.node, l.ips)
	if err != nil {
		return nil, err
	}
	mounts, err := l.mounts(c, values)
	if err != nil {
		return nil, err
	}
	resources := linuxResources(&c.Resources)
	resources.OomScoreAdj = oomScore(&l.pod.Spec, c, l.node.MemoryBytes)
	labels := podLabelsOnly(l.pod)
	labels[LabelContainerName] = c.Name
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name},
		Image:       &runtimeapi.ImageSpec{Image: img.ref, UserSpecifiedImage: c.Image, RuntimeHandler: l.handler()},
		Command:     expandAll(c.Command, values),
		Args:        expandAll(c.Args, values),
		WorkingDir:  c.WorkingDir,
		Envs:        envs,
		Mounts:      mounts,
		Labels:      labels,
		Annotations: containerAnnotations(l.pod, c),
		LogPath:     filepath.Join(c.Name, "0.log"),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       resources,
			SecurityContext: containerSecurity(l.pod, c, img.user, l.node.CPUs),
		},
	}, nil
}

// podLabelsOnly are the labels by which a container's pod is known; the
// manifest's own stay with the sandbox, as with a kubelet.
func podLabelsOnly(pod *corev1.Pod) map[string]string {
	return map[string]string{
		LabelPodName: pod.Name, LabelPodNamespace: pod.Namespace, LabelPodUID: string(pod.UID),
	}
}

func containerAnnotations(pod *corev1.Pod, c *corev1.Container) map[string]string {
	out := map[string]string{
		annotationRestarts: "0",
		annotationMsgPath:  c.TerminationMessagePath,
		annotationMsgRule:  string(c.TerminationMessagePolicy),
		AnnotationGrace:    strconv.FormatInt(*pod.Spec.TerminationGracePeriodSeconds, 10),
	}
	for i := range pod.Spec.InitContainers {
		if ic := &pod.Spec.InitContainers[i]; ic == c && isSidecar(ic) {
			out[AnnotationSidecar] = strconv.Itoa(i)
		}
	}
	return out
}

// mounts are the manifest's, then /etc/hosts and the termination message,
// each unless the manifest mounts something there.
func (l *launch) mounts(c *corev1.Container, values map[string]string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	ids := idMappings(l.pod)
	taken := map[string]bool{}
	for i := range c.VolumeMounts {
		m, err := l.volumeMount(&c.VolumeMounts[i], values)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", c.VolumeMounts[i].MountPath, err)
		}
		out = append(out, m)
		taken[filepath.Clean(m.ContainerPath)] = true
	}
	for path, file := range map[string]string{hostsPath: l.files.hosts(), c.TerminationMessagePath: l.files.message(c.Name)} {
		if !taken[filepath.Clean(path)] {
			out = append(out, &runtimeapi.Mount{ContainerPath: path, HostPath: file, UidMappings: ids, GidMappings: ids})
		}
	}
	tail := out[len(c.VolumeMounts):]
	slices.SortFunc(tail, func(a, b *runtimeapi.Mount) int { return len(a.ContainerPath) - len(b.ContainerPath) })
	return out, nil
}

func (l *launch) volumeMount(m *corev1.VolumeMount, values map[string]string) (*runtimeapi.Mount, error) {
	i := slices.IndexFunc(l.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
	subPath := m.SubPath
	if m.SubPathExpr != "" {
		if missing := unresolved(m.SubPathExpr, values); len(missing) > 0 {
			return nil, fmt.Errorf("subPathExpr %s: there are no variables %q", m.SubPathExpr, missing)
		}
		subPath = expand(m.SubPathExpr, values)
		if filepath.IsAbs(subPath) || hasDotDot(subPath) {
			return nil, fmt.Errorf("subPathExpr %s gives %q, which is not below the volume", m.SubPathExpr, subPath)
		}
	}
	path := m.MountPath
	if !filepath.IsAbs(path) {
		path = "/" + path
	}
	volume := &l.pod.Spec.Volumes[i]
	if volume.Image != nil {
		image := l.images[volume.Image.Reference].ref
		return &runtimeapi.Mount{
			ContainerPath: path, Readonly: true, ImageSubPath: subPath,
			Image: &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: volume.Image.Reference, RuntimeHandler: l.handler()},
		}, nil
	}
	source, err := l.files.mountSource(volume, subPath)
	if err != nil {
		return nil, err
	}
	recursive, err := l.recursiveReadOnly(m)
	if err != nil {
		return nil, err
	}
	ids := idMappings(l.pod)
	return &runtimeapi.Mount{
		ContainerPath:     path,
		HostPath:          source,
		UidMappings:       ids,
		GidMappings:       ids,
		Readonly:          m.ReadOnly,
		RecursiveReadOnly: recursive,
		Propagation:       propagation(m.MountPropagation),
	}, nil
}

// recursiveReadOnly asks what the runtime's handler can do, as KEP-3857 has it.
func (l *launch) recursiveReadOnly(m *corev1.VolumeMount) (bool, error) {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !l.rro && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
		return false, fmt.Errorf("recursiveReadOnly Enabled is not supported by runtime handler %q; use IfPossible", l.handler())
	}
	return l.rro, nil
}

func propagation(mode *corev1.MountPropagationMode) runtimeapi.MountPropagation {
	switch {
	case mode == nil:
	case *mode == corev1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case *mode == corev1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}
	return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
}
