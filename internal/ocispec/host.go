package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

// cgroupRoot is where control groups are mounted, on every distribution.
const cgroupRoot = "/sys/fs/cgroup"

// ProbeHost reads what Build needs to know of this process and this host,
// once.
func ProbeHost() (Host, error) {
	var h Host
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Host{}, fault.New(fault.Internal, "ocispec.ProbeHost", "%w", err)
	}
	if h.Capabilities, err = parseBounding(string(status)); err != nil {
		return Host{}, err
	}
	if h.MinOOMScoreAdj, err = minOOMScoreAdj(h.Capabilities); err != nil {
		return Host{}, err
	}
	h.CgroupV2 = exists(cgroupRoot + "/cgroup.controllers")
	return h, nil
}

// HostDevices returns every device of the host that there is now, for
// privileged containers.
func HostDevices() ([]Device, error) { return findDevices("/dev") }

// parseBounding names the capabilities of the line CapBnd. Those that this
// program does not know are left out.
func parseBounding(status string) ([]string, error) {
	for line := range strings.Lines(status) {
		value, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return nil, fault.New(fault.Internal, "ocispec.ProbeHost", "bounding set: %w", err)
		}
		var names []string
		for i, name := range capabilityNames {
			if mask&(1<<i) != 0 {
				names = append(names, name)
			}
		}
		return names, nil
	}
	return nil, fault.New(fault.Internal, "ocispec.ProbeHost", "bounding set: no line CapBnd")
}

// minOOMScoreAdj is this process's own value unless it may go below: lowering
// needs CAP_SYS_RESOURCE. kernel: fs/proc/base.c, __set_oom_adj.
func minOOMScoreAdj(caps []string) (int, error) {
	for _, c := range caps {
		if c == "CAP_SYS_RESOURCE" {
			return -1000, nil
		}
	}
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fault.New(fault.Internal, "ocispec.ProbeHost", "%w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fault.New(fault.Internal, "ocispec.ProbeHost", "oom_score_adj: %w", err)
	}
	return n, nil
}

// probeControllers reports whether swap is accounted, and whether there is a
// controller of huge pages, in the control groups mounted at root.
func probeControllers(root string) (swap, hugetlb bool) {
	controllers, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil { // v1
		return exists(root + "/memory/memory.memsw.limit_in_bytes"), exists(root + "/hugetlb/cgroup.procs")
	}
	hugetlb = slices.Contains(strings.Fields(string(controllers)), "hugetlb")
	// The root cgroup has no limits, so any other that has one of memory tells.
	below, _ := os.ReadDir(root)
	for _, e := range below {
		if exists(filepath.Join(root, e.Name(), "memory.max")) {
			return exists(filepath.Join(root, e.Name(), "memory.swap.max")), hugetlb
		}
	}
	return exists("/proc/swaps"), hugetlb
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
