package metrics

import (
	"slices"
	"time"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/stats"
)

// device makes a getter of one figure for each device. That of the writable
// layer has one even where the kernel lists nothing: nothing is 0.
func device(figure func(d *cgroup.Device) uint64) func(*stats.Container, emit) {
	return func(c *stats.Container, emit emit) {
		for _, d := range devices(c) {
			emit(figure(&d), d.Name)
		}
	}
}

func devices(c *stats.Container) []cgroup.Device {
	all, disk := c.Detail.Devices, c.Detail.Disk
	for _, d := range all {
		if d.Major == disk.Major && d.Minor == disk.Minor {
			return all
		}
	}
	if disk.Device == "" || disk.Major == 0 && len(all) > 0 { // major 0 is no device
		return all
	}
	return append(slices.Clip(all), cgroup.Device{Major: disk.Major, Minor: disk.Minor, Name: disk.Device})
}

// disk makes a getter of a figure of the file system below the writable layer.
func disk(figure func(c *stats.Container) uint64) func(*stats.Container, emit) {
	return func(c *stats.Container, emit emit) {
		if d := c.Detail.Disk; d.Device != "" {
			emit(figure(c), d.Device)
		}
	}
}

// inodes is disk where the file system has a fixed number of inodes.
func inodes(figure func(c *stats.Container) uint64) func(*stats.Container, emit) {
	return func(c *stats.Container, emit emit) {
		if c.Detail.Disk.InodesKnown {
			disk(figure)(c, emit)
		}
	}
}

const sectorBytes = 512

const fsUsage = "container_fs_usage_bytes"

var onDevice = []string{"device"}

var ofDisks = []metric{
	{fsUsage, "What the writable layer takes on disk, at the time told.", gauge, onDevice,
		disk(func(c *stats.Container) uint64 { return c.Layer.Bytes })},
	{"container_fs_limit_bytes", "Size of the file system that the writable layer is on.", gauge, onDevice,
		disk(func(c *stats.Container) uint64 { return c.Detail.Disk.Bytes })},
	{"container_fs_inodes_total", "Inodes of the file system that the writable layer is on.", gauge, onDevice,
		inodes(func(c *stats.Container) uint64 { return c.Detail.Disk.Inodes })},
	{"container_fs_inodes_free", "Free inodes of the file system that the writable layer is on.", gauge, onDevice,
		inodes(func(c *stats.Container) uint64 { return c.Detail.Disk.InodesFree })},
	{"container_fs_reads_bytes_total", "Bytes read from the device.", counter, onDevice,
		device(func(d *cgroup.Device) uint64 { return d.ReadBytes })},
	{"container_fs_writes_bytes_total", "Bytes written to the device.", counter, onDevice,
		device(func(d *cgroup.Device) uint64 { return d.WriteBytes })},
	{"container_fs_reads_total", "Reads from the device.", counter, onDevice,
		device(func(d *cgroup.Device) uint64 { return d.Reads })},
	{"container_fs_writes_total", "Writes to the device.", counter, onDevice,
		device(func(d *cgroup.Device) uint64 { return d.Writes })},
	{"container_fs_sector_reads_total", "Sectors of 512 bytes read from the device.", counter, onDevice,
		device(func(d *cgroup.Device) uint64 { return d.ReadBytes / sectorBytes })},
	{"container_fs_sector_writes_total", "Sectors of 512 bytes written to the device.", counter, onDevice,
		device(func(d *cgroup.Device) uint64 { return d.WriteBytes / sectorBytes })},
	{"container_blkio_device_usage_total", "Bytes from and to the device.", counter, []string{"device", "major", "minor", "operation"},
		func(c *stats.Container, emit emit) {
			for _, d := range devices(c) {
				major, minor := decimal(d.Major), decimal(d.Minor)
				emit(d.ReadBytes, d.Name, major, minor, "Read")
				emit(d.WriteBytes, d.Name, major, minor, "Write")
			}
		}},
}

// scheduled is device for what only some kernels count.
func scheduled(figure func(s *cgroup.Scheduled) uint64) func(*stats.Container, emit) {
	return device(func(d *cgroup.Device) uint64 {
		if d.Scheduled == nil {
			return 0 // nothing went through the scheduler
		}
		return figure(d.Scheduled)
	})
}

var ofScheduled = []metric{
	{"container_fs_reads_merged_total", "Reads merged with others.", counter, onDevice,
		scheduled(func(s *cgroup.Scheduled) uint64 { return s.ReadsMerged })},
	{"container_fs_writes_merged_total", "Writes merged with others.", counter, onDevice,
		scheduled(func(s *cgroup.Scheduled) uint64 { return s.WritesMerged })},
	{"container_fs_read_seconds_total", "Time that reads took, in whole seconds.", counter, onDevice,
		scheduled(func(s *cgroup.Scheduled) uint64 { return s.ReadNanos / uint64(time.Second) })},
	{"container_fs_write_seconds_total", "Time that writes took, in whole seconds.", counter, onDevice,
		scheduled(func(s *cgroup.Scheduled) uint64 { return s.WriteNanos / uint64(time.Second) })},
	{"container_fs_io_time_seconds_total", "Time that reads and writes took, in whole seconds.", counter, onDevice,
		scheduled(func(s *cgroup.Scheduled) uint64 { return (s.ReadNanos + s.WriteNanos) / uint64(time.Second) })},
	{"container_fs_io_current", "Reads and writes under way.", gauge, onDevice,
		scheduled(func(s *cgroup.Scheduled) uint64 { return s.Queued })},
}

var ofProcesses = []metric{
	{"container_processes", "Processes.", gauge, nil,
		func(c *stats.Container, emit emit) { emit(c.Detail.Processes.Count) }},
	{"container_threads", "Threads.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.Tasks.Current })},
	{"container_threads_max", "How many threads there may be; 0 means no limit.", gauge, nil,
		limit(func(c *stats.Container) cgroup.Count { return c.Detail.Tasks.Max })},
	{"container_file_descriptors", "Open file descriptors.", gauge, nil,
		func(c *stats.Container, emit emit) { emit(c.Detail.Descriptors) }},
	{"container_sockets", "Open sockets.", gauge, nil,
		func(c *stats.Container, emit emit) {
			if c.Detail.Looked {
				emit(c.Detail.Sockets)
			}
		}},
	{"container_ulimits_soft", "Soft limits of the first process.", gauge, []string{"ulimit"},
		func(c *stats.Container, emit emit) {
			if n := c.Detail.OpenFiles; n.Known {
				emit(n.N, "max_open_files")
			}
		}},
	{"container_tasks_state", "Threads by state.", gauge, []string{"state"},
		func(c *stats.Container, emit emit) {
			if c.Detail.States == nil {
				return
			}
			for _, state := range []string{stats.Running, stats.Sleeping, stats.Stopped, stats.Uninterruptible} {
				emit(c.Detail.States[state], state)
			}
		}},
	{"container_last_seen", "When the container was seen last, in seconds since 1970.", gauge, nil,
		func(c *stats.Container, emit emit) { emit(uint64(c.At.Unix())) }},
	{"container_start_time_seconds", "When the container started, or was made if it has not yet, in seconds since 1970.", gauge, nil,
		func(c *stats.Container, emit emit) {
			at := c.StartedAt
			if at.IsZero() {
				at = c.CreatedAt
			}
			emit(uint64(at.Unix()))
		}},
	{"container_scrape_error", "1 if something that is there could not be read.", gauge, nil,
		func(c *stats.Container, emit emit) { emit(uint64(min(c.Detail.Failed, 1))) }},
}

var ofSpec = []metric{
	{"container_spec_cpu_period", "Period of the CPU quota, in microseconds.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.PeriodMicros })},
	{"container_spec_cpu_quota", "CPU quota, in microseconds.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.QuotaMicros })},
	{"container_spec_cpu_shares", "CPU shares.", gauge, nil,
		when(func(c *stats.Container) cgroup.Count { return c.Detail.CPU.Shares })},
	{"container_spec_memory_limit_bytes", "Memory limit; 0 means none.", gauge, nil,
		limit(func(c *stats.Container) cgroup.Count { return cgroup.Count{N: c.Memory.Limit, Known: c.Memory.Known} })},
	{"container_spec_memory_reservation_limit_bytes", "Memory that is kept for the container (v2), or above which it is the first to be taken from (v1); 0 means none.", gauge, nil,
		limit(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.Reservation })},
	{"container_spec_memory_swap_limit_bytes", "Limit of swap (v2), or of memory and swap together (v1); 0 means none.", gauge, nil,
		limit(func(c *stats.Container) cgroup.Count { return c.Detail.Memory.SwapLimit })},
}
