package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// Limit applies resources to a cgroup that exists; what is 0 or empty stays as
// it is. All of it is applied, or nothing: if the kernel refuses one value,
// those written before are put back. With systemd, the unit is told as well.
// OomScoreAdj is not a matter of control groups and is not looked at.
//
// It returns Invalid for values the kernel takes for wrong, naming the file
// (on v1 also for more CPU than the parent has), and Precondition for those
// that do not fit now: memory below what is in use, a cgroup that is gone.
//
// kernel: cgroup-v2.rst, cgroup-v1/; CRI: api.proto, UpdateContainerResources.
func (h *Host) Limit(ctx context.Context, p Place, r *runtimeapi.LinuxContainerResources) error {
	if r == nil {
		return nil
	}
	if err := h.write(p, r); err != nil {
		return fault.New(fault.KindOf(err), "cgroup.Limit", "%s: %w", p.ID, err)
	}
	if h.driver != Systemd {
		return nil
	}
	if h.units.set(ctx, scopeOf(p.ID), properties(h.layout, r)) {
		// systemd rounds the CPU quota up to whole percents.
		if err := h.write(p, r); err != nil {
			return fault.New(fault.KindOf(err), "cgroup.Limit", "%s: %w", p.ID, err)
		}
	}
	return nil
}

func (h *Host) write(p Place, r *runtimeapi.LinuxContainerResources) error {
	c := &changes{}
	var err error
	if h.layout == V2 {
		err = h.writeV2(c, p, r)
	} else {
		err = h.writeV1(c, p, r)
	}
	if err != nil {
		c.undo()
	}
	return err
}

func (h *Host) writeV2(c *changes, p Place, r *runtimeapi.LinuxContainerResources) error {
	dir, ok := h.dirOf(p, "")
	if !ok {
		return fault.New(fault.Precondition, "", "no directory in the mounted hierarchy")
	}
	if r.CpuShares != 0 {
		c.set(dir, "cpu.weight", decimal(cpuWeight(r.CpuShares)))
	}
	if r.CpuQuota != 0 || r.CpuPeriod != 0 {
		c.setCPUMax(dir, r.CpuQuota, r.CpuPeriod)
	}
	if r.MemoryLimitInBytes != 0 {
		c.setMemoryMax(dir, r.MemoryLimitInBytes)
	}
	if r.MemorySwapLimitInBytes != 0 {
		c.setSwapMax(dir, r.MemorySwapLimitInBytes)
	}
	c.setText(dir, "cpuset.cpus", r.CpusetCpus)
	c.setText(dir, "cpuset.mems", r.CpusetMems)
	for _, l := range r.HugepageLimits {
		c.setIfThere(dir, "hugetlb."+l.PageSize+".max", strconv.FormatUint(l.Limit, 10))
		c.setIfThere(dir, "hugetlb."+l.PageSize+".rsvd.max", strconv.FormatUint(l.Limit, 10))
	}
	for name, value := range r.Unified {
		if name != filepath.Base(name) || !strings.Contains(name, ".") || strings.HasPrefix(name, "cgroup.") {
			return fault.New(fault.Invalid, "", "unified: %q is not a control file", name)
		}
		c.set(dir, name, value)
	}
	return c.err
}

func (h *Host) writeV1(c *changes, p Place, r *runtimeapi.LinuxContainerResources) error {
	if len(r.Unified) > 0 {
		return fault.New(fault.Invalid, "", "unified resources need cgroup v2")
	}
	need := func(controller string, wanted bool) (string, bool) {
		dir, ok := h.dirOf(p, controller)
		if wanted && !ok && c.err == nil {
			c.err = fault.New(fault.Precondition, "", "controller %s is not mounted on this host", controller)
		}
		return dir, wanted && ok
	}
	if dir, ok := need("cpu", r.CpuShares != 0 || r.CpuQuota != 0 || r.CpuPeriod != 0); ok {
		if r.CpuShares != 0 {
			c.set(dir, "cpu.shares", decimal(r.CpuShares))
		}
		c.setQuotaV1(dir, r.CpuQuota, r.CpuPeriod)
	}
	if dir, ok := need("memory", r.MemoryLimitInBytes != 0 || r.MemorySwapLimitInBytes != 0); ok {
		c.setMemoryV1(dir, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes)
	}
	if dir, ok := need("cpuset", r.CpusetCpus != "" || r.CpusetMems != ""); ok {
		c.setText(dir, "cpuset.cpus", r.CpusetCpus)
		c.setText(dir, "cpuset.mems", r.CpusetMems)
	}
	if dir, ok := h.dirOf(p, "hugetlb"); ok {
		for _, l := range r.HugepageLimits {
			c.setIfThere(dir, "hugetlb."+l.PageSize+".limit_in_bytes", strconv.FormatUint(l.Limit, 10))
			c.setIfThere(dir, "hugetlb."+l.PageSize+".rsvd.limit_in_bytes", strconv.FormatUint(l.Limit, 10))
		}
	}
	return c.err
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

// changes are values written so far, so that they can be put back. The first
// error stays; after it nothing is written.
type changes struct {
	done []change
	err  error
}

type change struct{ dir, name, before string }

func (c *changes) set(dir, name, value string) {
	if c.err != nil {
		return
	}
	before, err := readFile(dir, name)
	if err != nil {
		c.err = fault.New(kindOf(err), "", "%w", err)
		return
	}
	if before == value {
		return
	}
	if c.err = writeFile(dir, name, value); c.err == nil {
		c.done = append(c.done, change{dir, name, before})
	}
}

func (c *changes) setText(dir, name, value string) {
	if value != "" {
		c.set(dir, name, value)
	}
}

// setIfThere tolerates that the file is missing with its controller.
func (c *changes) setIfThere(dir, name, value string) {
	if _, err := readFile(dir, name); errors.Is(err, fs.ErrNotExist) {
		return
	}
	c.set(dir, name, value)
}

// undo puts back what was written, last first, as far as it goes.
func (c *changes) undo() {
	for i := len(c.done) - 1; i >= 0; i-- {
		d := c.done[i]
		_ = writeFile(d.dir, d.name, d.before+"\n") // an empty set of CPUs needs at least this to be written
	}
}

// setCPUMax writes what is not 0; a quota below 0 is none.
func (c *changes) setCPUMax(dir string, quota, period int64) {
	now, err := readFile(dir, "cpu.max")
	if err != nil && c.err == nil {
		c.err = fault.New(kindOf(err), "", "%w", err)
	}
	value, after, _ := strings.Cut(now, " ")
	if quota != 0 {
		value = maxOr(quota)
	}
	if period != 0 {
		after = decimal(period)
	}
	c.set(dir, "cpu.max", strings.TrimSpace(value+" "+after))
}

// setMemoryMax refuses a limit below what is in use: the kernel would take it
// and kill.
func (c *changes) setMemoryMax(dir string, limit int64) {
	now, err := readFile(dir, "memory.current")
	if used, parseErr := strconv.ParseInt(now, 10, 64); err == nil && parseErr == nil && limit > 0 && limit < used && c.err == nil {
		c.err = fault.New(fault.Precondition, "", "memory.max: %d bytes are less than the %d in use", limit, used)
	}
	c.set(dir, "memory.max", maxOr(limit))
}

// setSwapMax takes memory and swap together, as the CRI has it; the limit of
// memory is in its file by now. Without swap accounting there is nothing to set.
func (c *changes) setSwapMax(dir string, both int64) {
	memory, err := readFile(dir, "memory.max")
	if err != nil && c.err == nil {
		c.err = fault.New(kindOf(err), "", "%w", err)
	}
	swap := both
	if limit, err := strconv.ParseInt(memory, 10, 64); err == nil && both > 0 {
		if swap = both - limit; swap < 0 && c.err == nil {
			c.err = fault.New(fault.Invalid, "", "memory and swap together (%d) are less than memory (%d)", both, limit)
		}
	}
	c.setIfThere(dir, "memory.swap.max", maxOr(swap))
}

// setQuotaV1 writes period and quota in the order that never exceeds the
// parent's share in between, which the kernel refuses: it tries the period
// first, and if that is refused, the quota.
func (c *changes) setQuotaV1(dir string, quota, period int64) {
	if c.err != nil {
		return
	}
	if period != 0 {
		c.set(dir, "cpu.cfs_period_us", decimal(period))
	}
	if quota == 0 {
		return
	}
	first := c.err
	c.err = nil
	c.set(dir, "cpu.cfs_quota_us", decimal(max(quota, -1)))
	if first != nil {
		c.set(dir, "cpu.cfs_period_us", decimal(period))
	}
}

// setMemoryV1 keeps memory + swap at or above memory at each step, as the
// kernel demands. Without a new limit of both, what may be swapped stays.
func (c *changes) setMemoryV1(dir string, limit, both int64) {
	if c.err != nil {
		return
	}
	const bothFile, limitFile = "memory.memsw.limit_in_bytes", "memory.limit_in_bytes"
	nowBoth, err := readBytes(dir, bothFile)
	if errors.Is(err, fs.ErrNotExist) { // no swap accounting
		if limit != 0 {
			c.set(dir, limitFile, decimal(limit))
		}
		return
	}
	nowLimit, limitErr := readBytes(dir, limitFile)
	if err := errors.Join(err, limitErr); err != nil {
		c.err = fault.New(fault.Precondition, "", "%w", err)
		return
	}
	if both == 0 && limit > 0 && nowBoth < unlimitedV1 {
		both = limit + nowBoth - nowLimit
	}
	if both == 0 && limit < 0 {
		both = -1
	}
	steps := []struct {
		name  string
		value int64
	}{{limitFile, limit}, {bothFile, both}}
	if limit < 0 || limit > nowBoth {
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, s := range steps {
		if s.value != 0 {
			c.set(dir, s.name, decimal(s.value))
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
