package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A Detail is what a cgroup has beside a Reading. A Count that is not Known is
// one that this kernel, or this cgroup, does not have.
type Detail struct {
	CPU       CPUDetail
	Memory    MemoryDetail
	Tasks     Tasks
	Devices   []Device // those that it used
	HugePages []HugePages
	Failed    int // files that are there and could not be read
}

// A Count is a figure that may not be there.
type Count struct {
	N     uint64
	Known bool
}

// CPUDetail is what of CPU time was used for what, and what may be.
type CPUDetail struct {
	UserNanos, SystemNanos             Count
	Periods, Throttled, ThrottledNanos Count
	Shares, PeriodMicros               Count
	QuotaMicros                        Count // not Known without a quota
}

// MemoryDetail is what happened to memory, in times, and its limits, in bytes.
type MemoryDetail struct {
	Peak, Kernel              Count
	LimitHit, OOMKills        Count
	High                      Count // v2: times it was throttled for exceeding memory.high
	Reservation, SwapLimit    Count
	OwnFaults, OwnMajorFaults Count // without those of cgroups below
}

// Tasks are threads.
type Tasks struct{ Current, Max Count }

// A Device is a block device and what went from and to it.
type Device struct {
	Major, Minor                         uint64
	Name                                 string // "/dev/sda", for whoever looks it up; empty here
	ReadBytes, WriteBytes, Reads, Writes uint64
	Scheduled                            *Scheduled
}

// Scheduled is what only the I/O scheduler BFQ counts, on v1, in a kernel made
// to debug it (CONFIG_BFQ_CGROUP_DEBUG).
type Scheduled struct {
	ReadNanos, WriteNanos, ReadsMerged, WritesMerged, Queued uint64
}

// HugePages are those of one size, in bytes.
type HugePages struct {
	Size       string // "2MB"
	Usage, Max Count
}

// Detail reads the details of p. What is not there is not Known; it never fails.
func (h *Host) Detail(p Place) Detail {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	d := &details{scratch: s}
	if h.layout == V2 {
		if dir, ok := h.dirOf(p, ""); ok {
			d.v2(dir)
		}
	} else {
		d.v1(func(controller string) string {
			dir, _ := h.dirOf(p, controller)
			return dir
		})
	}
	return d.Detail
}

// details is a Detail being read.
type details struct {
	*scratch
	Detail
}

// text returns a file's content, nil if it is not there.
func (d *details) text(dir, name string) []byte {
	if dir == "" {
		return nil
	}
	text, err := d.read(dir, name)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.Failed++
		}
		return nil
	}
	return text
}

// count reads a file of one number.
func (d *details) count(dir, name string) Count {
	text := d.text(dir, name)
	return Count{number(text), text != nil}
}

// keyed reads the numbers of a file of lines "key value" into those of to.
func (d *details) keyed(dir, name string, to map[string]*Count, unit uint64) {
	each(d.text(dir, name), func(key, value []byte) {
		if c := to[string(key)]; c != nil {
			*c = Count{number(value) * unit, true}
		}
	})
}

// v2: kernel: cgroup-v2.rst
func (d *details) v2(dir string) {
	c, m := &d.CPU, &d.Memory
	const micros = 1000
	d.keyed(dir, "cpu.stat", map[string]*Count{
		"user_usec": &c.UserNanos, "system_usec": &c.SystemNanos, "throttled_usec": &c.ThrottledNanos,
	}, micros)
	d.keyed(dir, "cpu.stat", map[string]*Count{"nr_periods": &c.Periods, "nr_throttled": &c.Throttled}, 1)
	if quota, period, ok := bytes.Cut(d.text(dir, "cpu.max"), []byte(" ")); ok {
		c.PeriodMicros = Count{number(period), true}
		c.QuotaMicros = limit(Count{number(quota), true})
	}
	if w := d.count(dir, "cpu.weight"); w.Known && w.N > 0 {
		c.Shares = Count{sharesOf(w.N), true}
	}
	m.Peak = d.count(dir, "memory.peak") // since 5.19
	d.keyed(dir, "memory.events", map[string]*Count{"high": &m.High, "max": &m.LimitHit, "oom_kill": &m.OOMKills}, 1)
	m.Reservation = d.count(dir, "memory.min")
	m.SwapLimit = d.count(dir, "memory.swap.max")
	d.Tasks = Tasks{d.count(dir, "pids.current"), d.count(dir, "pids.max")}
	d.Devices = parseIOStat(d.text(dir, "io.stat"))
	for _, size := range hugePageSizes() {
		if usage := d.count(dir, "hugetlb."+size+".current"); usage.Known {
			d.HugePages = append(d.HugePages, HugePages{Size: size, Usage: usage})
		}
	}
}

// v1: kernel: cgroup-v1/memory.rst, blkio-controller.rst, hugetlb.rst, pids.rst,
// cpuacct.rst; scheduler/sched-bwc.rst
func (d *details) v1(dirOf func(controller string) string) {
	c, m := &d.CPU, &d.Memory
	acct, cpu, memory := dirOf("cpuacct"), dirOf("cpu"), dirOf("memory")
	c.UserNanos, c.SystemNanos = d.count(acct, "cpuacct.usage_user"), d.count(acct, "cpuacct.usage_sys")
	d.keyed(cpu, "cpu.stat", map[string]*Count{
		"nr_periods": &c.Periods, "nr_throttled": &c.Throttled, "throttled_time": &c.ThrottledNanos,
	}, 1)
	c.Shares, c.PeriodMicros = d.count(cpu, "cpu.shares"), d.count(cpu, "cpu.cfs_period_us")
	if text := d.text(cpu, "cpu.cfs_quota_us"); len(text) > 0 && text[0] != '-' {
		c.QuotaMicros = Count{number(text), true}
	}
	m.Peak, m.LimitHit = d.count(memory, "memory.max_usage_in_bytes"), d.count(memory, "memory.failcnt")
	m.Kernel = d.count(memory, "memory.kmem.usage_in_bytes")
	d.keyed(memory, "memory.oom_control", map[string]*Count{"oom_kill": &m.OOMKills}, 1)
	d.keyed(memory, "memory.stat", map[string]*Count{"pgfault": &m.OwnFaults, "pgmajfault": &m.OwnMajorFaults}, 1)
	m.Reservation = unlimitedCount(d.count(memory, "memory.soft_limit_in_bytes"))
	m.SwapLimit = unlimitedCount(d.count(memory, "memory.memsw.limit_in_bytes"))
	pids := dirOf("pids")
	d.Tasks = Tasks{d.count(pids, "pids.current"), d.count(pids, "pids.max")}
	d.blkio(dirOf("blkio"))
	huge := dirOf("hugetlb")
	for _, size := range hugePageSizes() {
		usage := d.count(huge, "hugetlb."+size+".usage_in_bytes")
		if usage.Known {
			d.HugePages = append(d.HugePages, HugePages{size, usage, d.count(huge, "hugetlb."+size+".max_usage_in_bytes")})
		}
	}
}

// limit is a limit there may not be.
func limit(c Count) Count {
	if c.N == Unlimited {
		return Count{}
	}
	return c
}

func unlimitedCount(c Count) Count { return Count{unlimited(c.N), c.Known} }

// sharesOf turns a weight back into the shares that cpuWeight made it of.
func sharesOf(weight uint64) uint64 {
	curve := math.Log10(float64(max(weight, 1))) + 7.0/34
	return uint64(math.Round(math.Exp2((math.Sqrt(125*125+4*612*curve) - 125) / 2)))
}

const bfqTime = "blkio.bfq.io_service_time_recursive"

// HasScheduled reports whether Devices have Scheduled.
func (h *Host) HasScheduled() bool {
	if h.layout == V2 {
		return false
	}
	for _, t := range h.trees {
		if slices.Contains(t.controllers, "blkio") {
			_, err := os.Stat(t.mount + "/" + bfqTime)
			return err == nil
		}
	}
	return false
}

func (d *details) blkio(dir string) {
	get := func(name string, to func(*Device, string) *uint64) {
		parseBlkio(d.text(dir, name), &d.Devices, to)
	}
	get("blkio.throttle.io_service_bytes_recursive", func(v *Device, op string) *uint64 {
		return ofTwo(op, &v.ReadBytes, &v.WriteBytes)
	})
	get("blkio.throttle.io_serviced_recursive", func(v *Device, op string) *uint64 {
		return ofTwo(op, &v.Reads, &v.Writes)
	})
	scheduled := func(v *Device) *Scheduled {
		if v.Scheduled == nil {
			v.Scheduled = &Scheduled{}
		}
		return v.Scheduled
	}
	get(bfqTime, func(v *Device, op string) *uint64 {
		return ofTwo(op, &scheduled(v).ReadNanos, &scheduled(v).WriteNanos)
	})
	get("blkio.bfq.io_merged_recursive", func(v *Device, op string) *uint64 {
		return ofTwo(op, &scheduled(v).ReadsMerged, &scheduled(v).WritesMerged)
	})
	get("blkio.bfq.io_queued_recursive", func(v *Device, op string) *uint64 {
		if op == "Total" {
			return &scheduled(v).Queued
		}
		return nil
	})
}

func ofTwo(op string, read, write *uint64) *uint64 {
	switch op {
	case "Read":
		return read
	case "Write":
		return write
	}
	return nil
}

// parseBlkio reads lines "8:0 Read 4096"; the last one, "Total 4096", has no device.
func parseBlkio(text []byte, all *[]Device, to func(*Device, string) *uint64) {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue
		}
		v := deviceOf(all, f[0])
		if v == nil {
			continue
		}
		if n := to(v, string(f[1])); n != nil {
			*n = number(f[2])
		}
	}
}

// parseIOStat reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func parseIOStat(text []byte) []Device {
	var all []Device
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue // the kernel lists some devices without figures
		}
		v := deviceOf(&all, f[0])
		if v == nil {
			continue
		}
		for _, pair := range f[1:] {
			key, value, _ := bytes.Cut(pair, []byte("="))
			switch string(key) {
			case "rbytes":
				v.ReadBytes = number(value)
			case "wbytes":
				v.WriteBytes = number(value)
			case "rios":
				v.Reads = number(value)
			case "wios":
				v.Writes = number(value)
			}
		}
	}
	return all
}

// deviceOf returns the device "8:0" in all, added if need be; nil if it is none.
func deviceOf(all *[]Device, name []byte) *Device {
	major, minor, ok := bytes.Cut(name, []byte(":"))
	a, errA := strconv.ParseUint(string(major), 10, 32)
	b, errB := strconv.ParseUint(string(minor), 10, 32)
	if !ok || errA != nil || errB != nil {
		return nil
	}
	i := slices.IndexFunc(*all, func(v Device) bool { return v.Major == a && v.Minor == b })
	if i < 0 {
		i = len(*all)
		*all = append(*all, Device{Major: a, Minor: b})
	}
	return &(*all)[i]
}

// hugePageSizes are those of this machine, named as control groups name them.
var hugePageSizes = sync.OnceValue(func() []string {
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages") // none: no huge pages
	var all []string
	for _, e := range entries {
		if size := hugePageSize(e.Name()); size != "" {
			all = append(all, size)
		}
	}
	return all
})

// hugePageSize turns "hugepages-2048kB" into "2MB".
func hugePageSize(name string) string {
	text, ok := strings.CutPrefix(name, "hugepages-")
	text, kB := strings.CutSuffix(text, "kB")
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || !kB || err != nil || n == 0 || n > math.MaxUint64>>10 {
		return ""
	}
	units := []string{"KB", "MB", "GB"}
	for len(units) > 1 && n%1024 == 0 {
		n, units = n/1024, units[1:]
	}
	return strconv.FormatUint(n, 10) + units[0]
}
