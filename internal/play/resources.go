package play

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Source: Kubernetes, pkg/kubelet/cm/helpers_linux.go.
const (
	minShares       = 2
	maxShares       = 262144
	sharesPerCPU    = 1024
	quotaPeriod     = 100000 // µs
	minQuotaMicros  = 1000
	milliCPUsPerCPU = 1000
)

// Source: Kubernetes, pkg/kubelet/qos/policy.go.
const (
	guaranteedOOMScore = -997
	bestEffortOOMScore = 1000
)

// qosClass is the pod's quality of service class.
//
// Source: Kubernetes, pkg/apis/core/v1/helper/qos.
func qosClass(s *corev1.PodSpec) corev1.PodQOSClass {
	some, all := false, true
	for c := range eachContainer(s) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := c.Resources.Limits[name], c.Resources.Requests[name]
			some = some || !limit.IsZero() || !request.IsZero()
			all = all && !limit.IsZero() && request.Cmp(limit) == 0
		}
	}
	switch {
	case !some:
		return corev1.PodQOSBestEffort
	case all:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// oomScore is a container's oom_score_adj: the more of the node's memory it
// asks for, the later it is killed. A sidecar dies no earlier than the
// containers it serves.
//
// Source: Kubernetes, pkg/kubelet/qos/policy.go, GetContainerOOMScoreAdjust.
func oomScore(s *corev1.PodSpec, c *corev1.Container, memoryBytes int64) int64 {
	switch qosClass(s) {
	case corev1.PodQOSGuaranteed:
		return guaranteedOOMScore
	case corev1.PodQOSBestEffort:
		return bestEffortOOMScore
	}
	memoryBytes = max(memoryBytes, 1)
	score := 1000 - 1000*c.Resources.Requests.Memory().Value()/memoryBytes
	if isSidecar(c) && len(s.Containers) > 0 {
		least := s.Containers[0].Resources.Requests.Memory().Value()
		for i := range s.Containers {
			least = min(least, s.Containers[i].Resources.Requests.Memory().Value())
		}
		score = min(score, 1000-1000*least/memoryBytes)
	}
	return min(max(score, 1000+guaranteedOOMScore), bestEffortOOMScore-1)
}

// linuxResources translates requests and limits.
//
// Source: Kubernetes, pkg/kubelet/kuberuntime, calculateLinuxResources.
func linuxResources(r *corev1.ResourceRequirements) *runtimeapi.LinuxContainerResources {
	cpu := r.Requests.Cpu()
	if _, given := r.Requests[corev1.ResourceCPU]; !given {
		cpu = r.Limits.Cpu()
	}
	return &runtimeapi.LinuxContainerResources{
		CpuShares:          cpuShares(cpu),
		CpuPeriod:          quotaPeriod,
		CpuQuota:           cpuQuotaMicros(r.Limits.Cpu()),
		MemoryLimitInBytes: r.Limits.Memory().Value(),
	}
}

func cpuShares(cpu *resource.Quantity) int64 {
	return min(max(cpu.MilliValue()*sharesPerCPU/milliCPUsPerCPU, minShares), maxShares)
}

// cpuQuotaMicros returns the quota of one period, 0 for none.
func cpuQuotaMicros(cpu *resource.Quantity) int64 {
	if cpu.IsZero() {
		return 0
	}
	return max(cpu.MilliValue()*quotaPeriod/milliCPUsPerCPU, minQuotaMicros)
}
