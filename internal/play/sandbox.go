package play

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels and annotations that a kubelet gives pods and containers.
// Source: Kubernetes, pkg/kubelet/types/labels.go, kuberuntime/labels.go.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
	AnnotationGrace    = "io.kubernetes.pod.terminationGracePeriod"

	annotationRestarts = "io.kubernetes.container.restartCount"
	annotationMsgPath  = "io.kubernetes.container.terminationMessagePath"
	annotationMsgRule  = "io.kubernetes.container.terminationMessagePolicy"
)

// Annotations of davit's own.
const (
	// AnnotationFiles is on each played pod: the directory of its files.
	AnnotationFiles = "davit.play/files"
	// AnnotationSidecar is on sidecars: their place in the order of starting.
	AnnotationSidecar = "davit.play/sidecar"
	// annotationUsers is on pods with a user namespace: the ID that their root
	// has on the host.
	annotationUsers = "davit.play/users"
)

const (
	clusterDomain  = "cluster.local"
	maxHostnameLen = 63
	maxFQDNLen     = 64 // what sethostname(2) takes
)

// sandboxConfig translates the pod.
//
// Source: Kubernetes, pkg/kubelet/kuberuntime, generatePodSandboxConfig.
func sandboxConfig(pod *corev1.Pod, files Files, host *runtimeapi.DNSConfig) *runtimeapi.PodSandboxConfig {
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID),
		},
		LogDirectory: files.Logs,
		DnsConfig:    dnsConfig(&pod.Spec, host),
		Labels:       podLabels(pod),
		Annotations:  map[string]string{},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: sandboxSecurity(pod),
			Sysctls:         map[string]string{},
		},
	}
	maps.Copy(config.Annotations, pod.Annotations)
	config.Annotations[AnnotationFiles] = files.Dir
	for _, ctl := range pod.Spec.SecurityContext.Sysctls {
		config.Linux.Sysctls[ctl.Name] = ctl.Value
	}
	if !pod.Spec.HostNetwork {
		config.Hostname = sandboxHostname(pod)
		config.PortMappings = portMappings(&pod.Spec)
	}
	return config
}

// podLabels are the manifest's labels and those a kubelet adds.
func podLabels(pod *corev1.Pod) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, pod.Labels)
	labels[LabelPodName] = pod.Name
	labels[LabelPodNamespace] = pod.Namespace
	labels[LabelPodUID] = string(pod.UID)
	return labels
}

func portMappings(s *corev1.PodSpec) []*runtimeapi.PortMapping {
	var out []*runtimeapi.PortMapping
	for c := range eachContainer(s) {
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			out = append(out, &runtimeapi.PortMapping{
				Protocol:      runtimeapi.Protocol(runtimeapi.Protocol_value[string(p.Protocol)]),
				ContainerPort: p.ContainerPort,
				HostPort:      p.HostPort,
				HostIp:        p.HostIP,
			})
		}
	}
	return out
}

// hostname is the pod's name on the network, cut to what a host name may be.
func hostname(pod *corev1.Pod) string {
	if pod.Spec.Hostname != "" {
		return pod.Spec.Hostname
	}
	name := pod.Name[:min(len(pod.Name), maxHostnameLen)]
	return strings.TrimRight(name, "-.")
}

// domain is the pod's domain, empty without a subdomain.
func domain(pod *corev1.Pod) string {
	if pod.Spec.Subdomain == "" {
		return ""
	}
	return pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
}

func sandboxHostname(pod *corev1.Pod) string {
	name, d := hostname(pod), domain(pod)
	if isTrue(pod.Spec.SetHostnameAsFQDN) && d != "" && len(name)+1+len(d) <= maxFQDNLen {
		return name + "." + d
	}
	return name
}
