package ocispec

import (
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// resources translates limits, without the CPU quota; 0 and empty mean unset.
func resources(in Input) (*specs.LinuxResources, error) {
	r := in.Container.GetLinux().GetResources()
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	if r.CpuShares < 0 || r.CpuPeriod < 0 || r.MemoryLimitInBytes < -1 {
		return nil, fault.New(fault.Invalid, "", "negative CPU shares, CPU period or memory limit")
	}
	cpu := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CpuShares > 0 {
		cpu.Shares = ptr(uint64(r.CpuShares))
	}
	if r.CpuPeriod > 0 {
		cpu.Period = ptr(uint64(r.CpuPeriod))
	}
	if *cpu != (specs.LinuxCPU{}) {
		out.CPU = cpu
	}
	if r.MemoryLimitInBytes != 0 {
		out.Memory = &specs.LinuxMemory{Limit: ptr(r.MemoryLimitInBytes)}
	} else if r.MemorySwapLimitInBytes > 0 {
		return nil, fault.New(fault.Invalid, "", "memory_swap_limit_in_bytes needs memory_limit_in_bytes, which it includes")
	}
	if in.Found.SwapAccounting {
		swap := r.MemorySwapLimitInBytes
		if swap == 0 { // no swap beside the limit, unless asked for
			swap = r.MemoryLimitInBytes
		}
		if out.Memory != nil { // without a limit, the kernel's for both is none
			out.Memory.Swap = ptr(swap)
		}
	}
	for _, h := range r.HugepageLimits {
		switch {
		case in.Found.Hugetlb:
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
		case h.Limit > 0: // the kubelet sends 0 for every size
			return nil, fault.New(fault.Precondition, "", "hugepage_limits: %s: this host has no hugetlb controller", h.PageSize)
		}
	}
	if len(r.Unified) > 0 {
		if !in.CgroupV2 {
			return nil, fault.New(fault.Invalid, "", "unified resources need cgroup v2")
		}
		out.Unified = r.Unified
	}
	return out, nil
}

// oomScoreAdj is always set: what davit itself runs with must not be inherited.
func oomScoreAdj(in Input) *int {
	wanted := in.Container.GetLinux().GetResources().GetOomScoreAdj()
	return ptr(int(ClampOOMScoreAdj(wanted, in.MinOOMScoreAdj)))
}

// ClampOOMScoreAdj returns what becomes of a wanted oom_score_adj where a
// process may not go below least.
func ClampOOMScoreAdj(wanted int64, least int) int64 {
	return min(max(wanted, int64(least), -1000), 1000)
}

// defaultDeviceRules let a container use the devices that every OCI runtime
// makes, and make others that it may then not open.
var defaultDeviceRules = []specs.LinuxDeviceCgroup{
	{Allow: false, Access: "rwm"},
	{Allow: true, Type: "c", Access: "m"},
	{Allow: true, Type: "b", Access: "m"},
	charDevice(1, 3),    // null
	charDevice(1, 5),    // zero
	charDevice(1, 7),    // full
	charDevice(1, 8),    // random
	charDevice(1, 9),    // urandom
	charDevice(5, 0),    // tty
	charDevice(5, 1),    // console
	charDevice(5, 2),    // ptmx
	charDevice(136, -1), // pts
}

func charDevice(major, minor int64) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: "rwm"}
	if minor >= 0 {
		d.Minor = &minor
	}
	return d
}

// devices returns the nodes to make and the rules for opening them.
func devices(in Input) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	privileged := in.Container.GetLinux().GetSecurityContext().GetPrivileged()
	rules := slices.Clone(defaultDeviceRules)
	var nodes []specs.LinuxDevice
	if privileged {
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range in.Devices {
			nodes = append(nodes, node(d, d.Path))
		}
	}
	for _, want := range in.Container.Devices {
		access, err := deviceAccess(want)
		if err != nil {
			return nil, nil, err
		}
		found := in.Found.Devices[want.HostPath]
		if len(found) == 0 {
			return nil, nil, fault.New(fault.Precondition, "", "device %s: no device is there", want.HostPath)
		}
		for _, d := range found {
			n := node(d, want.ContainerPath+strings.TrimPrefix(d.Path, want.HostPath))
			nodes = slices.DeleteFunc(nodes, func(o specs.LinuxDevice) bool { return o.Path == n.Path })
			nodes = append(nodes, n)
			if !privileged {
				rules = append(rules, specs.LinuxDeviceCgroup{
					Allow: true, Type: d.Type, Major: ptr(d.Major), Minor: ptr(d.Minor), Access: access,
				})
			}
		}
	}
	return nodes, rules, nil
}

func node(d Device, at string) specs.LinuxDevice {
	return specs.LinuxDevice{
		Path: at, Type: d.Type, Major: d.Major, Minor: d.Minor,
		FileMode: ptr(os.FileMode(d.Mode)), UID: ptr(d.UID), GID: ptr(d.GID),
	}
}

func deviceAccess(d *runtimeapi.Device) (string, error) {
	if !strings.HasPrefix(d.ContainerPath, "/") || !strings.HasPrefix(d.HostPath, "/") {
		return "", fault.New(fault.Invalid, "", "device %q at %q: two absolute paths are needed", d.HostPath, d.ContainerPath)
	}
	if d.Permissions == "" {
		return "rwm", nil
	}
	if strings.Trim(d.Permissions, "rwm") != "" {
		return "", fault.New(fault.Invalid, "", "device %s: permissions %q are not of r, w and m", d.HostPath, d.Permissions)
	}
	return d.Permissions, nil
}

func ptr[T any](v T) *T { return &v }
