package play

import (
	"iter"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Defaults of the API server.
// Source: Kubernetes, pkg/apis/core/v1/defaults.go.
const (
	defaultGraceSeconds       = 30
	defaultTerminationLogPath = "/dev/termination-log"
)

// setDefaults fills in what the API server would, and no more.
func setDefaults(pod *corev1.Pod) {
	spec := &pod.Spec
	setIfZero(&pod.Namespace, "default")
	setIfZero(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	setIfZero(&spec.DNSPolicy, corev1.DNSClusterFirst)
	setIfNil(&spec.TerminationGracePeriodSeconds, defaultGraceSeconds)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	for i := range spec.Volumes {
		if h := spec.Volumes[i].HostPath; h != nil {
			setIfNil(&h.Type, corev1.HostPathUnset)
		}
		if v := spec.Volumes[i].Image; v != nil {
			setIfZero(&v.PullPolicy, defaultPullPolicy(v.Reference))
		}
	}
	for c := range eachContainer(spec) {
		setContainerDefaults(c, spec.HostNetwork)
	}
}

func defaultPullPolicy(image string) corev1.PullPolicy {
	if imageTag(image) == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func setContainerDefaults(c *corev1.Container, hostNetwork bool) {
	setIfZero(&c.ImagePullPolicy, defaultPullPolicy(c.Image))
	setIfZero(&c.TerminationMessagePath, defaultTerminationLogPath)
	setIfZero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		p := &c.Ports[i]
		setIfZero(&p.Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			setIfZero(&p.HostPort, p.ContainerPort)
		}
	}
	for i := range c.Env {
		if v := c.Env[i].ValueFrom; v != nil && v.FieldRef != nil {
			setIfZero(&v.FieldRef.APIVersion, "v1")
		}
	}
	// A limit without a request is also the request.
	for name, limit := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
	if sc := c.SecurityContext; sc != nil {
		setIfNil(&sc.ProcMount, corev1.DefaultProcMount)
	} else {
		c.SecurityContext = &corev1.SecurityContext{}
	}
}

// imageTag returns the tag of an image name: "latest" where a kubelet would
// add it, and empty for a name by digest only.
func imageTag(image string) string {
	name, _, byDigest := strings.Cut(image, "@")
	last := name[strings.LastIndex(name, "/")+1:]
	if _, tag, ok := strings.Cut(last, ":"); ok {
		return tag
	}
	if byDigest {
		return ""
	}
	return "latest"
}

// withTag returns image with the tag that a kubelet would add.
func withTag(image string) string {
	if imageTag(image) == "latest" && !strings.HasSuffix(image, ":latest") {
		return image + ":latest"
	}
	return image
}

func setIfZero[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func setIfNil[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// eachContainer visits init containers, then containers, in place.
func eachContainer(spec *corev1.PodSpec) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for i := range spec.InitContainers {
			if !yield(&spec.InitContainers[i]) {
				return
			}
		}
		for i := range spec.Containers {
			if !yield(&spec.Containers[i]) {
				return
			}
		}
	}
}

// isSidecar reports whether an init container keeps running beside the
// containers. KEP-753: restartPolicy Always on an init container.
func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func isTrue(b *bool) bool { return b != nil && *b }
