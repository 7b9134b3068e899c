package nri

import (
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// adjust changes s as plugins say and returns the limits among that, or nil.
func adjust(s *specs.Spec, a *api.ContainerAdjustment, inject func(*specs.Spec, []string) error) (*runtimeapi.LinuxContainerResources, error) {
	if a == nil {
		return nil, nil
	}
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	swap := memory(s).Swap
	err := generate.SpecGenerator(editor{s},
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return &specs.LinuxIntelRdt{ClosID: class}, nil
		}),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fault.New(fault.Unimplemented, "", "block I/O class %q: davit has none", class)
		}),
		generate.WithCDIDeviceInjector(func(s *specs.Spec, devices []string) error {
			if inject == nil {
				return fault.New(fault.Unimplemented, "", "CDI devices %s: not to be had here", strings.Join(devices, ", "))
			}
			return inject(s, devices)
		}),
	).Adjust(a)
	if err != nil {
		return nil, err
	}
	s.Process.Rlimits = lastOfEach(s.Process.Rlimits, func(l specs.POSIXRlimit) string { return l.Type })
	changed := toCRI(a.GetLinux().GetResources())
	if changed == nil {
		changed = &runtimeapi.LinuxContainerResources{}
	}
	changed.MemorySwapLimitInBytes = 0
	if changed.MemoryLimitInBytes != 0 { // the generator set swap as well
		if swap == nil { // it is not counted on this host
			s.Linux.Resources.Memory.Swap = nil
		} else {
			changed.MemorySwapLimitInBytes = changed.MemoryLimitInBytes
		}
	}
	if score := a.GetLinux().GetOomScoreAdj(); score != nil {
		changed.OomScoreAdj = score.GetValue()
	}
	return changed, nil
}

func memory(s *specs.Spec) specs.LinuxMemory {
	if s.Linux.Resources == nil || s.Linux.Resources.Memory == nil {
		return specs.LinuxMemory{}
	}
	return *s.Linux.Resources.Memory
}

// lastOfEach returns the last of all with the same key, in the order of the first.
func lastOfEach[E any](all []E, key func(E) string) []E {
	var out []E
	for _, e := range all {
		if i := slices.IndexFunc(out, func(o E) bool { return key(o) == key(e) }); i >= 0 {
			out[i] = e
			continue
		}
		out = append(out, e)
	}
	return out
}

// namespaceTypes are OCI's, by the names that plugins use: OCI's and the kernel's.
var namespaceTypes = map[string]specs.LinuxNamespaceType{
	"network": specs.NetworkNamespace, "net": specs.NetworkNamespace,
	"mount": specs.MountNamespace, "mnt": specs.MountNamespace,
	"pid": specs.PIDNamespace, "ipc": specs.IPCNamespace, "uts": specs.UTSNamespace,
	"user": specs.UserNamespace, "cgroup": specs.CgroupNamespace, "time": specs.TimeNamespace,
}

// An editor changes a spec, one thing at a time. Process and Linux must be there.
type editor struct{ s *specs.Spec }

func (e editor) Spec() *specs.Spec { return e.s }

func (e editor) resources() *specs.LinuxResources {
	if e.s.Linux.Resources == nil {
		e.s.Linux.Resources = &specs.LinuxResources{}
	}
	return e.s.Linux.Resources
}

func (e editor) cpu() *specs.LinuxCPU {
	r := e.resources()
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	return r.CPU
}

func (e editor) memory() *specs.LinuxMemory {
	r := e.resources()
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

func (e editor) hooks() *specs.Hooks {
	if e.s.Hooks == nil {
		e.s.Hooks = &specs.Hooks{}
	}
	return e.s.Hooks
}

func set[M ~map[string]string](m *M, key, value string) {
	if *m == nil {
		*m = M{}
	}
	(*m)[key] = value
}

func (e editor) AddAnnotation(key, value string)  { set(&e.s.Annotations, key, value) }
func (e editor) RemoveAnnotation(key string)      { delete(e.s.Annotations, key) }
func (e editor) AddLinuxSysctl(key, value string) { set(&e.s.Linux.Sysctl, key, value) }
func (e editor) RemoveLinuxSysctl(key string)     { delete(e.s.Linux.Sysctl, key) }

func (e editor) AddPostStartHook(h specs.Hook) { e.hooks().Poststart = append(e.hooks().Poststart, h) }
func (e editor) AddPostStopHook(h specs.Hook)  { e.hooks().Poststop = append(e.hooks().Poststop, h) }
func (e editor) AddPreStartHook(h specs.Hook) {
	e.hooks().Prestart = append(e.hooks().Prestart, h) //nolint:staticcheck // deprecated, and still what plugins may ask for
}

func (e editor) AddProcessEnv(name, value string) {
	e.s.Process.Env = lastOfEach(append(e.s.Process.Env, name+"="+value), func(v string) string {
		name, _, _ := strings.Cut(v, "=")
		return name
	})
}

func (e editor) ClearProcessEnv()                { e.s.Process.Env = nil }
func (e editor) SetProcessArgs(args []string)    { e.s.Process.Args = slices.Clone(args) }
func (e editor) SetProcessOOMScoreAdj(score int) { e.s.Process.OOMScoreAdj = &score }

func (e editor) AddMount(m specs.Mount) { e.s.Mounts = append(e.s.Mounts, m) }
func (e editor) ClearMounts()           { e.s.Mounts = nil }
func (e editor) Mounts() []specs.Mount  { return e.s.Mounts }
func (e editor) RemoveMount(destination string) {
	e.s.Mounts = slices.DeleteFunc(e.s.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
}

func (e editor) AddDevice(d specs.LinuxDevice) { e.s.Linux.Devices = append(e.s.Linux.Devices, d) }
func (e editor) RemoveDevice(path string) {
	e.s.Linux.Devices = slices.DeleteFunc(e.s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (e editor) AddOrReplaceLinuxNamespace(name, path string) error {
	kind, err := namespaceType(name)
	if err != nil {
		return err
	}
	n := specs.LinuxNamespace{Type: kind, Path: path}
	all := append(e.s.Linux.Namespaces, n)
	e.s.Linux.Namespaces = lastOfEach(all, func(n specs.LinuxNamespace) string { return string(n.Type) })
	return nil
}

func (e editor) RemoveLinuxNamespace(name string) error {
	kind, err := namespaceType(name)
	if err != nil {
		return err
	}
	e.s.Linux.Namespaces = slices.DeleteFunc(e.s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
	return nil
}

func namespaceType(name string) (specs.LinuxNamespaceType, error) {
	kind, ok := namespaceTypes[name]
	if !ok {
		return "", fault.New(fault.Invalid, "", "unknown kind of namespace: %q", name)
	}
	return kind, nil
}

func (e editor) SetLinuxCgroupsPath(path string) { e.s.Linux.CgroupsPath = path }

func (e editor) SetLinuxRootPropagation(mode string) error {
	e.s.Linux.RootfsPropagation = mode
	return nil
}

func (e editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := e.resources()
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (e editor) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := e.resources()
	all := append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	r.HugepageLimits = lastOfEach(all, func(l specs.LinuxHugepageLimit) string { return l.Pagesize })
}

func (e editor) AddLinuxResourcesUnified(key, value string)       { set(&e.resources().Unified, key, value) }
func (e editor) SetLinuxResourcesCPUCpus(cpus string)             { e.cpu().Cpus = cpus }
func (e editor) SetLinuxResourcesCPUMems(mems string)             { e.cpu().Mems = mems }
func (e editor) SetLinuxResourcesCPUPeriod(micros uint64)         { e.cpu().Period = &micros }
func (e editor) SetLinuxResourcesCPUQuota(micros int64)           { e.cpu().Quota = &micros }
func (e editor) SetLinuxResourcesCPURealtimePeriod(micros uint64) { e.cpu().RealtimePeriod = &micros }
func (e editor) SetLinuxResourcesCPURealtimeRuntime(micros int64) { e.cpu().RealtimeRuntime = &micros }
func (e editor) SetLinuxResourcesCPUShares(shares uint64)         { e.cpu().Shares = &shares }
func (e editor) SetLinuxResourcesMemoryLimit(bytes int64)         { e.memory().Limit = &bytes }
func (e editor) SetLinuxResourcesMemorySwap(bytes int64)          { e.memory().Swap = &bytes }
