package nri

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// message returns what plugins are sent; they may change it.
func (p *Pod) message() *api.PodSandbox {
	m, linux := p.Config.GetMetadata(), p.Config.GetLinux()
	out := &api.PodSandbox{
		Id: p.ID, Name: m.GetName(), Uid: m.GetUid(), Namespace: m.GetNamespace(),
		Labels: maps.Clone(p.Config.GetLabels()), Annotations: maps.Clone(p.Config.GetAnnotations()),
		RuntimeHandler: p.Handler, Pid: uint32(p.Pid), Ips: slices.Clone(p.IPs),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: fromCRI(linux.GetOverhead()), PodResources: fromCRI(linux.GetResources()),
			CgroupParent: linux.GetCgroupParent(), CgroupsPath: p.CgroupsPath,
		},
	}
	for _, kind := range slices.Sorted(maps.Keys(p.Namespaces)) {
		out.Linux.Namespaces = append(out.Linux.Namespaces, &api.LinuxNamespace{Type: kind, Path: p.Namespaces[kind]})
	}
	return out
}

// message returns what plugins are sent; they may change it.
func (c *Container) message() *api.Container {
	out := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: c.Config.GetMetadata().GetName(), State: c.state(),
		Labels: maps.Clone(c.Config.GetLabels()), Annotations: map[string]string{},
		Pid: uint32(c.Pid), ExitCode: int32(c.ExitCode), StatusReason: c.Reason, StatusMessage: c.Message,
		CreatedAt: nanos(c.Times.Created), StartedAt: nanos(c.Times.Started), FinishedAt: nanos(c.Times.Finished),
		Image: c.image(), Linux: &api.LinuxContainer{},
	}
	for _, d := range c.Config.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if s := c.Config.GetLinux().GetSecurityContext().GetSeccomp(); s != nil {
		out.Linux.SeccompProfile = &api.SecurityProfile{
			ProfileType: api.SecurityProfile_ProfileType(s.GetProfileType()), LocalhostRef: s.GetLocalhostRef(),
		}
	}
	if c.Spec != nil {
		c.addSpec(out)
	}
	maps.Copy(out.Annotations, c.Config.GetAnnotations())
	out.Linux.Resources = overlay(out.Linux.Resources, fromCRI(c.Resources))
	return out
}

// addSpec adds what the OCI runtime is told.
func (c *Container) addSpec(out *api.Container) {
	s := c.Spec
	maps.Copy(out.Annotations, s.Annotations)
	out.Mounts, out.Hooks = api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	if p := s.Process; p != nil {
		out.Args, out.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: slices.Clone(p.User.AdditionalGids)}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		out.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		out.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		if p.Scheduler != nil {
			out.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
	}
	if l := s.Linux; l != nil {
		out.Linux.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
		out.Linux.Devices = api.FromOCILinuxDevices(l.Devices)
		out.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
		out.Linux.CgroupsPath = l.CgroupsPath
		out.Linux.Sysctl = maps.Clone(l.Sysctl)
		out.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
		if l.Seccomp != nil {
			out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		}
		if r := l.IntelRdt; r != nil {
			out.Linux.Rdt = &api.LinuxRdt{
				ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring),
			}
		}
	}
}

func (c *Container) state() api.ContainerState {
	switch c.State {
	case Created:
		return api.ContainerState_CONTAINER_CREATED
	case Running:
		return api.ContainerState_CONTAINER_RUNNING
	case Stopped:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func (c *Container) image() *api.Image {
	asked := c.Config.GetImage()
	out := &api.Image{Name: asked.GetUserSpecifiedImage(), ConfigDigest: c.ImageID}
	if out.Name == "" {
		out.Name = asked.GetImage()
	}
	if _, digest, ok := strings.Cut(asked.GetImage(), "@"); ok {
		out.Digest = digest
	}
	return out
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// fromCRI translates limits; those that are zero are left out.
func fromCRI(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{
		Cpu:     &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Memory:  &api.LinuxMemory{},
		Unified: maps.Clone(r.GetUnified()),
	}
	if n := r.GetCpuShares(); n != 0 {
		out.Cpu.Shares = api.UInt64(n)
	}
	if n := r.GetCpuQuota(); n != 0 {
		out.Cpu.Quota = api.Int64(n)
	}
	if n := r.GetCpuPeriod(); n != 0 {
		out.Cpu.Period = api.UInt64(n)
	}
	if n := r.GetMemoryLimitInBytes(); n != 0 {
		out.Memory.Limit = api.Int64(n)
	}
	if n := r.GetMemorySwapLimitInBytes(); n != 0 {
		out.Memory.Swap = api.Int64(n)
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return out
}

// toCRI is the other way round. What the CRI has no word for is left out.
func toCRI(r *api.LinuxResources) *runtimeapi.LinuxContainerResources {
	if r == nil {
		return nil
	}
	out := &runtimeapi.LinuxContainerResources{
		CpuShares: int64(r.GetCpu().GetShares().GetValue()), CpuQuota: r.GetCpu().GetQuota().GetValue(),
		CpuPeriod:  int64(r.GetCpu().GetPeriod().GetValue()),
		CpusetCpus: r.GetCpu().GetCpus(), CpusetMems: r.GetCpu().GetMems(),
		MemoryLimitInBytes: r.GetMemory().GetLimit().GetValue(), MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(),
	}
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out
}

// overlay returns resources with what over sets in their place: limits that
// were changed since the spec was written.
func overlay(r, over *api.LinuxResources) *api.LinuxResources {
	if r == nil || over == nil {
		if r == nil {
			return over
		}
		return r
	}
	if r.Cpu == nil {
		r.Cpu = &api.LinuxCPU{}
	}
	if r.Memory == nil {
		r.Memory = &api.LinuxMemory{}
	}
	put(&r.Cpu.Shares, over.Cpu.Shares)
	put(&r.Cpu.Quota, over.Cpu.Quota)
	put(&r.Cpu.Period, over.Cpu.Period)
	put(&r.Memory.Limit, over.Memory.Limit)
	put(&r.Memory.Swap, over.Memory.Swap)
	if over.Cpu.Cpus != "" {
		r.Cpu.Cpus = over.Cpu.Cpus
	}
	if over.Cpu.Mems != "" {
		r.Cpu.Mems = over.Cpu.Mems
	}
	if len(over.HugepageLimits) > 0 {
		r.HugepageLimits = over.HugepageLimits
	}
	if len(over.Unified) > 0 {
		r.Unified = over.Unified
	}
	return r
}

func put[T any](to **T, v *T) {
	if v != nil {
		*to = v
	}
}

// updates translates what plugins ask for. Updates of nothing are left out.
func updates(asked []*api.ContainerUpdate) []Update {
	var all []Update
	for _, u := range asked {
		if r := toCRI(u.GetLinux().GetResources()); r != nil {
			all = append(all, Update{ID: u.GetContainerId(), Resources: r, MayFail: u.GetIgnoreFailure()})
		}
	}
	return all
}

// rest returns what plugins made of the limits asked for. What they left alone
// is as it was.
func rest(asked, made *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := proto.CloneOf(asked)
	if out == nil {
		return made
	}
	out.HugepageLimits, out.Unified = nil, nil // made has them, too
	proto.Merge(out, made)
	return out
}
