package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// Limit applies resources to a cgroup that exists; what is 0 or empty stays as
// it is. All of it is applied, or nothing: if the kernel refuses one value,
// those written before are put back. With systemd, the unit is told as well.
// OomScoreAdj is no matter of control groups: see Rescore.
//
// Its errors begin with the field of resources that is to blame. It returns
// Invalid for values the kernel takes for wrong (on v1 also for more CPU than
// the parent has), and Precondition for those that do not fit now: memory below
// what is in use, a controller or a cgroup that is not there.
//
// kernel: cgroup-v2.rst, cgroup-v1/; CRI: api.proto, UpdateContainerResources.
func (h *Host) Limit(ctx context.Context, p Place, r *runtimeapi.LinuxContainerResources) error {
	before, err := h.Current(p, r)
	if err != nil || len(before) == 0 {
		return err
	}
	c := &changes{}
	if err := h.write(c, p, r); err != nil {
		return errors.Join(err, putBack(c.touched))
	}
	if h.driver != Systemd {
		return nil
	}
	if err := h.tell(ctx, p, before); err != nil {
		return errors.Join(err, h.Restore(context.WithoutCancel(ctx), p, before))
	}
	return nil
}

// Current returns the values that Limit would replace, as Restore takes them.
// It returns the errors of Limit that can be known beforehand.
func (h *Host) Current(p Place, r *runtimeapi.LinuxContainerResources) ([]Value, error) {
	if r == nil {
		return nil, nil
	}
	c := &changes{dry: true}
	if err := h.write(c, p, r); err != nil {
		return nil, err
	}
	return c.touched, nil
}

// Restore puts back what Current returned before a Limit that was cut short, or
// that is not wanted after all. What has gone with its cgroup needs no
// restoring. Internal for values that are not of p.
func (h *Host) Restore(ctx context.Context, p Place, before []Value) error {
	for _, v := range before {
		if !slices.Contains(p.Dirs, filepath.Dir(v.File)) {
			return fault.New(fault.Internal, "cgroup.Restore", "%s is not of %s", v.File, p.ID)
		}
	}
	if err := putBack(before); err != nil {
		return err
	}
	if h.driver != Systemd {
		return nil
	}
	return h.tell(ctx, p, before)
}

// tell tells systemd of all that is in force in p, after the given files have
// changed, and writes it once more. Of what systemd has not been told it knows
// better: with the first thing that it is told, it resets the rest. And it
// rounds the CPU quota up to whole percents.
func (h *Host) tell(ctx context.Context, p Place, changed []Value) error {
	now := inForce(p, changed)
	if h.units.set(ctx, scopeOf(p.ID), properties(now)) {
		return putBack(now)
	}
	return nil
}

func (h *Host) write(c *changes, p Place, r *runtimeapi.LinuxContainerResources) error {
	if h.layout == V2 {
		h.writeV2(c, p, r)
	} else {
		h.writeV1(c, p, r)
	}
	return c.err
}

func (h *Host) writeV2(c *changes, p Place, r *runtimeapi.LinuxContainerResources) {
	dir, ok := h.dirOf(p, "")
	if !ok {
		c.refuse(fault.Precondition, "cgroup", "no directory in the mounted hierarchy")
		return
	}
	if r.CpuShares != 0 {
		c.set("cpu_shares", dir, "cpu.weight", decimal(cpuWeight(r.CpuShares)))
	}
	if r.CpuQuota != 0 || r.CpuPeriod != 0 {
		c.setCPUMax(dir, r.CpuQuota, r.CpuPeriod)
	}
	if r.MemoryLimitInBytes != 0 {
		c.checkUsage("memory_limit_in_bytes", dir, r.MemoryLimitInBytes)
		c.set("memory_limit_in_bytes", dir, "memory.max", maxOr(r.MemoryLimitInBytes))
	}
	if r.MemorySwapLimitInBytes != 0 {
		c.setSwapMax(dir, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes)
	}
	c.setText("cpuset_cpus", dir, "cpuset.cpus", r.CpusetCpus)
	c.setText("cpuset_mems", dir, "cpuset.mems", r.CpusetMems)
	c.setHugetlb(dir, "max", r.HugepageLimits)
	for _, name := range slices.Sorted(maps.Keys(r.Unified)) {
		field := fmt.Sprintf("unified[%q]", name)
		if name != filepath.Base(name) || !strings.Contains(name, ".") || strings.HasPrefix(name, "cgroup.") {
			c.refuse(fault.Invalid, field, "is not a control file")
		}
		if limit, err := strconv.ParseInt(r.Unified[name], 10, 64); err == nil && name == "memory.max" {
			c.checkUsage(field, dir, limit)
		}
		c.set(field, dir, name, r.Unified[name])
	}
}

func (h *Host) writeV1(c *changes, p Place, r *runtimeapi.LinuxContainerResources) {
	if len(r.Unified) > 0 {
		c.refuse(fault.Invalid, "unified", "needs cgroup v2, and this host has "+string(h.layout))
	}
	need := func(field, controller string, wanted bool) (string, bool) {
		dir, ok := h.dirOf(p, controller)
		if wanted && !ok {
			c.refuse(fault.Precondition, field, "controller "+controller+" is not mounted on this host")
		}
		return dir, wanted && ok
	}
	if dir, ok := need("cpu_shares", "cpu", r.CpuShares != 0); ok {
		c.set("cpu_shares", dir, "cpu.shares", decimal(r.CpuShares))
	}
	if dir, ok := need("cpu_quota", "cpu", r.CpuQuota != 0 || r.CpuPeriod != 0); ok {
		c.setQuotaV1(dir, r.CpuQuota, r.CpuPeriod)
	}
	if dir, ok := need("memory_limit_in_bytes", "memory", r.MemoryLimitInBytes != 0 || r.MemorySwapLimitInBytes != 0); ok {
		c.setMemoryV1(dir, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes)
	}
	if dir, ok := need("cpuset_cpus", "cpuset", r.CpusetCpus != "" || r.CpusetMems != ""); ok {
		c.setText("cpuset_cpus", dir, "cpuset.cpus", r.CpusetCpus)
		c.setText("cpuset_mems", dir, "cpuset.mems", r.CpusetMems)
	}
	dir, _ := h.dirOf(p, "hugetlb") // without the controller, nothing can be there
	c.setHugetlb(dir, "limit_in_bytes", r.HugepageLimits)
}

// cpuWeight converts CPU shares (2 to 262144, usual 1024) to a weight (1 to
// 10000, usual 100), by the curve through those three points that crun ≥ 1.23
// and runc ≥ 1.3.2 use.
func cpuWeight(shares int64) int64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// setCPUMax writes what is not 0; a quota below 0 is none.
func (c *changes) setCPUMax(dir string, quota, period int64) {
	const field = "cpu_quota"
	now, err := readFile(dir, "cpu.max")
	if err != nil {
		c.refuse(kindOf(err), field, err.Error())
		return
	}
	value, after, _ := strings.Cut(now, " ")
	if quota != 0 {
		value = maxOr(quota)
	}
	if period != 0 {
		after = decimal(period)
	}
	c.set(field, dir, "cpu.max", strings.TrimSpace(value+" "+after))
}

// checkUsage refuses a limit below what is in use: the kernel of v2 would take
// it and kill.
func (c *changes) checkUsage(field, dir string, limit int64) {
	now, err := readFile(dir, "memory.current")
	used, parseErr := strconv.ParseInt(now, 10, 64)
	if err == nil && parseErr == nil && limit >= 0 && limit < used {
		c.refuse(fault.Precondition, field, fmt.Sprintf("%d bytes are less than the %d in use", limit, used))
	}
}

// setSwapMax takes memory and swap together, as the CRI has it; limit is that
// of memory if it is set along with it. Without swap accounting there is nothing
// to set.
func (c *changes) setSwapMax(dir string, limit, both int64) {
	const field = "memory_swap_limit_in_bytes"
	if limit == 0 {
		memory, err := readFile(dir, "memory.max")
		if err != nil {
			c.refuse(kindOf(err), field, err.Error())
			return
		}
		limit, _ = strconv.ParseInt(memory, 10, 64) // 0 for "max"
	}
	swap := both
	if both > 0 {
		if swap = both - max(limit, 0); swap < 0 {
			c.refuse(fault.Invalid, field, fmt.Sprintf("%d is less than the limit of memory, %d, which it includes", both, limit))
		}
	}
	c.setIfThere(field, dir, "memory.swap.max", maxOr(swap))
}

// setHugetlb writes limits to the files hugetlb.<size>.<suffix>, and to those
// of reservations where the kernel has them. Where it has neither, no huge page
// of that size can be had, and so a limit of 0 is in force.
func (c *changes) setHugetlb(dir, suffix string, limits []*runtimeapi.HugepageLimit) {
	for _, l := range limits {
		field := fmt.Sprintf("hugepage_limits[%q]", l.PageSize)
		file, value := "hugetlb."+l.PageSize+".", strconv.FormatUint(l.Limit, 10)
		if l.Limit > 0 && dir == "" {
			c.refuse(fault.Precondition, field, "controller hugetlb is not mounted on this host")
		}
		if dir == "" {
			continue
		}
		if l.Limit > 0 {
			c.set(field, dir, file+suffix, value)
		} else {
			c.setIfThere(field, dir, file+suffix, value)
		}
		c.setIfThere(field, dir, file+"rsvd."+suffix, value)
	}
}

// setQuotaV1 writes period and quota in the order that never exceeds the
// parent's share in between, which the kernel refuses: it tries the period
// first, and if that is refused, the quota.
func (c *changes) setQuotaV1(dir string, quota, period int64) {
	if c.err != nil {
		return
	}
	if period != 0 {
		c.set("cpu_period", dir, "cpu.cfs_period_us", decimal(period))
	}
	if quota == 0 {
		return
	}
	first := c.err
	c.err = nil
	c.set("cpu_quota", dir, "cpu.cfs_quota_us", decimal(max(quota, -1)))
	if first != nil {
		c.set("cpu_period", dir, "cpu.cfs_period_us", decimal(period))
	}
}

// setMemoryV1 keeps memory + swap at or above memory at each step, as the
// kernel demands. Without a new limit of both, what may be swapped stays. A
// limit below what cannot be reclaimed the kernel refuses as busy.
func (c *changes) setMemoryV1(dir string, limit, both int64) {
	if c.err != nil {
		return
	}
	type step struct {
		field, name string
		value       int64
	}
	memory := step{"memory_limit_in_bytes", "memory.limit_in_bytes", limit}
	nowBoth, err := readBytes(dir, "memory.memsw.limit_in_bytes")
	if errors.Is(err, fs.ErrNotExist) { // no swap accounting
		if limit != 0 {
			c.set(memory.field, dir, memory.name, decimal(limit))
		}
		return
	}
	nowLimit, limitErr := readBytes(dir, memory.name)
	if err := errors.Join(err, limitErr); err != nil {
		c.refuse(fault.Precondition, memory.field, err.Error())
		return
	}
	swap := step{"memory_swap_limit_in_bytes", "memory.memsw.limit_in_bytes", both}
	switch {
	case both == 0 && limit > 0 && nowBoth < unlimitedV1:
		swap.field, swap.value = memory.field, limit+nowBoth-nowLimit
	case both == 0 && limit < 0:
		swap.field, swap.value = memory.field, -1
	}
	steps := []step{memory, swap}
	if limit < 0 || limit > nowBoth {
		steps = []step{swap, memory}
	}
	for _, s := range steps {
		if s.value != 0 {
			c.set(s.field, dir, s.name, decimal(s.value))
		}
	}
}

// unlimitedV1 is less than what v1 shows for no limit (the largest number of
// whole pages), and more than anybody has.
const unlimitedV1 = math.MaxInt64 / 2

func readBytes(dir, name string) (int64, error) {
	text, err := readFile(dir, name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

func maxOr(n int64) string {
	if n < 0 {
		return "max"
	}
	return decimal(n)
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }
