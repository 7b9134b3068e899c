package metrics

import (
	"time"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/stats"
)

// when makes a getter of one figure that may not be there.
func when(figure func(c *stats.Container) cgroup.Count) func(*stats.Container, emit) {
	return func(c *stats.Container, emit emit) {
		if n := figure(c); n.Known {
			emit(n.N)
		}
	}
}

// seconds is when for nanoseconds.
func seconds(figure func(c *stats.Container) cgroup.Count) func(*stats.Container, emit) {
	return when(func(c *stats.Container) cgroup.Count {
		n := figure(c)
		n.N /= uint64(time.Second)
		return n
	})
}

// limit is when for a limit, which is 0 where there is none.
func limit(figure func(c *stats.Container) cgroup.Count) func(*stats.Container, emit) {
	return when(func(c *stats.Container) cgroup.Count {
		n := figure(c)
		if n.N == cgroup.Unlimited {
			n.N = 0
		}
		return n
	})
}

// memory is when for a figure that comes with all of memory.
func memory(figure func(m *cgroup.Memory) uint64) func(*stats.Container, emit) {
	return when(func(c *stats.Container) cgroup.Count {
		return cgroup.Count{N: figure(&c.Memory), Known: c.Memory.Known}
	})
}

var ofCPU = []metric{
	{"container_cpu_usage_seconds_total", "CPU time used, in whole seconds.", counter, []string{"cpu"},
		func(c *stats.Container, emit emit) {
			if c.CPU.Known {
				emit(c.CPU.UsageNanos/uint64(time.Second), "total")
			}
		}},
	{"container_cpu_user_seconds_total", "CPU time used in user mode, in whole seconds.", counter, nil,
		seconds(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.UserNanos })},
	{"container_cpu_system_seconds_total", "CPU time used in the kernel, in whole seconds.", counter, nil,
		seconds(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.SystemNanos })},
	{"container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.", counter, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", counter, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.Throttled })},
	{"container_cpu_cfs_throttled_seconds_total", "Time waited for the next period of the CPU quota, in whole seconds.", counter, nil,
		seconds(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.ThrottledNanos })},
}

var ofMemory = []metric{
	{"container_memory_usage_bytes", "Memory in use, whenever it was touched last.", gauge, nil,
		memory(func(m *cgroup.Memory) uint64 { return m.Usage })},
	{"container_memory_working_set_bytes", "Memory in use without inactive pages of files.", gauge, nil,
		memory((*cgroup.Memory).WorkingSet)},
	{"container_memory_rss", "Anonymous memory, in bytes.", gauge, nil,
		memory(func(m *cgroup.Memory) uint64 { return m.Anon })},
	{"container_memory_cache", "Pages of files, in bytes.", gauge, nil,
		memory(func(m *cgroup.Memory) uint64 { return m.File })},
	{"container_memory_mapped_file", "Pages of files that are mapped, in bytes.", gauge, nil,
		memory(func(m *cgroup.Memory) uint64 { return m.Mapped })},
	{"container_memory_total_active_file_bytes", "Active pages of files, in bytes.", gauge, nil,
		memory(func(m *cgroup.Memory) uint64 { return m.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", "Inactive pages of files, in bytes.", gauge, nil,
		memory(func(m *cgroup.Memory) uint64 { return m.InactiveFile })},
	{"container_memory_kernel_usage", "Memory that the kernel uses for the container, in bytes.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count {
			if n := c.Detail.Memory.Kernel; n.Known {
				return n
			}
			return cgroup.Count{N: c.Memory.Kernel, Known: c.Memory.Known}
		})},
	{"container_memory_max_usage_bytes", "The most memory in use so far.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.Peak })},
	{"container_memory_swap", "Swap in use, in bytes.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count { return cgroup.Count{N: c.Swap.Usage, Known: c.Swap.Known} })},
	{"container_memory_failcnt", "Times the memory limit was hit.", counter, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.LimitHit })},
	{"container_memory_failures_total", "Page faults.", counter, []string{"failure_type", "scope"}, faults},
	{"container_oom_events_total", "Processes that the kernel killed for want of memory.", counter, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.OOMKills })},
	{"container_hugetlb_usage_bytes", "Huge pages in use, in bytes.", gauge, []string{"pagesize"},
		func(c *stats.Container, emit emit) {
			for _, h := range c.Detail.HugePages {
				emit(h.Usage.N, h.Size)
			}
		}},
	{"container_hugetlb_max_usage_bytes", "The most huge pages in use so far, in bytes.", gauge, []string{"pagesize"},
		func(c *stats.Container, emit emit) {
			for _, h := range c.Detail.HugePages {
				if h.Max.Known {
					emit(h.Max.N, h.Size)
				}
			}
		}},
}

// faults has those of the container alone, and those with cgroups below it,
// which v2 does not tell apart.
func faults(c *stats.Container, emit emit) {
	if !c.Memory.Known {
		return
	}
	own, ownMajor := c.Detail.Memory.OwnFaults, c.Detail.Memory.OwnMajorFaults
	if own.Known && ownMajor.Known {
		emit(own.N, "pgfault", "container")
		emit(ownMajor.N, "pgmajfault", "container")
	}
	emit(c.Memory.Faults, "pgfault", "hierarchy")
	emit(c.Memory.MajorFaults, "pgmajfault", "hierarchy")
}

// ofV2 is what v1 does not count.
var ofV2 = []metric{
	{"container_memory_events_high_total", "Times the container was throttled for exceeding memory.high.", counter, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.High })},
	{"container_memory_events_max_total", "Times memory was about to exceed memory.max.", counter, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.LimitHit })},
}

// stalls makes a getter of a pressure's total.
func stalls(pressure func(*cgroup.Pressures) *cgroup.Pressure, total func(*cgroup.Pressure) uint64) func(*stats.Container, emit) {
	return func(c *stats.Container, emit emit) {
		if p := pressure(&c.Pressure); p != nil {
			emit(total(p) / uint64(time.Second/time.Microsecond))
		}
	}
}

func some(p *cgroup.Pressure) uint64                { return p.Some.TotalMicros }
func full(p *cgroup.Pressure) uint64                { return p.Full.TotalMicros }
func onCPU(p *cgroup.Pressures) *cgroup.Pressure    { return p.CPU }
func onMemory(p *cgroup.Pressures) *cgroup.Pressure { return p.Memory }
func onIO(p *cgroup.Pressures) *cgroup.Pressure     { return p.IO }

var ofPressure = []metric{
	{"container_pressure_cpu_waiting_seconds_total", "Time in which some tasks waited for a CPU, in whole seconds.", counter, nil, stalls(onCPU, some)},
	{"container_pressure_cpu_stalled_seconds_total", "Time in which no task could run for want of a CPU, in whole seconds.", counter, nil, stalls(onCPU, full)},
	{"container_pressure_memory_waiting_seconds_total", "Time in which some tasks waited for memory, in whole seconds.", counter, nil, stalls(onMemory, some)},
	{"container_pressure_memory_stalled_seconds_total", "Time in which no task could run for want of memory, in whole seconds.", counter, nil, stalls(onMemory, full)},
	{"container_pressure_io_waiting_seconds_total", "Time in which some tasks waited for I/O, in whole seconds.", counter, nil, stalls(onIO, some)},
	{"container_pressure_io_stalled_seconds_total", "Time in which no task could run for want of I/O, in whole seconds.", counter, nil, stalls(onIO, full)},
}
