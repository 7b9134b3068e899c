package validate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pageSize is what the files hugetlb.<size>.max are named by.
var pageSize = regexp.MustCompile(`^[1-9][0-9]*[KMG]B$`)

// Resources requires limits that the kernel could accept. What is nil or zero
// is not asked for.
func (c *Check) Resources(field string, r *runtimeapi.LinuxContainerResources) {
	// kernel: sched-bwc.rst, a period is from 1 ms to 1 s, a quota at least 1 ms.
	if n := r.GetCpuPeriod(); n != 0 && (n < 1000 || n > 1000000) {
		c.Bad(field+".cpu_period", "%d is neither 0 nor from 1000 to 1000000", n)
	}
	if n := r.GetCpuQuota(); n < -1 || n > 0 && n < 1000 {
		c.Bad(field+".cpu_quota", "%d is not -1, 0 or at least 1000", n)
	}
	if n := r.GetCpuShares(); n < 0 {
		c.Bad(field+".cpu_shares", "%d is negative", n)
	}
	memory, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if memory < -1 {
		c.Bad(field+".memory_limit_in_bytes", "%d is negative", memory)
	}
	if swap < -1 {
		c.Bad(field+".memory_swap_limit_in_bytes", "%d is negative", swap)
	}
	if swap > 0 && swap < memory {
		c.Bad(field+".memory_swap_limit_in_bytes", "%d is below memory_limit_in_bytes, which it includes", swap)
	}
	if n := r.GetOomScoreAdj(); n < -1000 || n > 1000 {
		c.Bad(field+".oom_score_adj", "%d is not from -1000 to 1000", n)
	}
	c.cpuset(field+".cpuset_cpus", r.GetCpusetCpus())
	c.cpuset(field+".cpuset_mems", r.GetCpusetMems())
	for i, h := range r.GetHugepageLimits() {
		if !pageSize.MatchString(h.GetPageSize()) {
			c.Bad(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), "%q is not a size such as 2MB", h.GetPageSize())
		}
	}
	for file, value := range r.GetUnified() {
		f := fmt.Sprintf("%s.unified[%q]", field, file)
		controller, _, ok := strings.Cut(file, ".")
		if !ok || controller == "" || controller == "cgroup" || strings.ContainsAny(file, "/\x00") || climbs(file) {
			c.Bad(f, "is not the name of a cgroup file")
		}
		c.Text(f, value)
	}
}

// cpuset requires the kernel's list format, "0-3,8".
func (c *Check) cpuset(field, list string) {
	if list == "" {
		return
	}
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || b < a {
			c.Bad(field, "%q is not a list such as 0-3,8", list)
			return
		}
	}
}
