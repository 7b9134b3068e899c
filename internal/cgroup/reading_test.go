package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// written makes a host of files: "controller/file" on v1, "/file" on v2.
func written(t *testing.T, layout Layout, files map[string]string) (*Host, Place) {
	t.Helper()
	h := &Host{layout: layout, driver: Cgroupfs}
	for name, text := range files {
		controller, file, _ := strings.Cut(name, "/")
		mount := filepath.Join(t.TempDir(), "x"+controller)
		found := false
		for _, have := range h.trees {
			if strings.HasSuffix(have.mount, "/x"+controller) {
				mount, found = have.mount, true
			}
		}
		if !found {
			one := tree{mount: mount, unified: controller == ""}
			if controller != "" {
				one.controllers = []string{controller}
			}
			h.trees = append(h.trees, one)
		}
		dir := filepath.Join(mount, "pods", "id")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h, h.Place("/pods", "id")
}

const (
	pressure = "some avg10=1.50 avg60=0.25 avg300=0.01 total=7000001\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3000000\n"
	statV1   = `cache 1
rss 2
pgfault 70
pgmajfault 7
inactive_file 3
hierarchical_memory_limit 104857600
hierarchical_memsw_limit 157286400
total_cache 20971520
total_rss 53248
total_mapped_file 4096
total_swap 8192
total_pgfault 406
total_pgmajfault 6
total_inactive_file 16777216
total_active_file 4194304
`
	statV2 = `anon 53248
file 20971520
kernel 729088
kernel_stack 16384
shmem 0
file_mapped 4096
inactive_anon 49152
active_anon 0
inactive_file 16777216
active_file 4194304
pgfault 406
pgmajfault 6
`
)

var filesV1 = map[string]string{
	"cpuacct/cpuacct.usage":                           "1500000001\n",
	"cpuacct/cpuacct.usage_user":                      "1000000000\n",
	"cpuacct/cpuacct.usage_sys":                       "500000001\n",
	"cpu/cpu.stat":                                    "nr_periods 12\nnr_throttled 3\nthrottled_time 2500000000\nnr_bursts 0\nburst_time 0\n",
	"cpu/cpu.shares":                                  "512\n",
	"cpu/cpu.cfs_quota_us":                            "-1\n",
	"cpu/cpu.cfs_period_us":                           "100000\n",
	"memory/memory.usage_in_bytes":                    "22159360\n",
	"memory/memory.stat":                              statV1,
	"memory/memory.limit_in_bytes":                    "104857600\n",
	"memory/memory.memsw.limit_in_bytes":              "157286400\n",
	"memory/memory.max_usage_in_bytes":                "23318528\n",
	"memory/memory.failcnt":                           "9\n",
	"memory/memory.kmem.usage_in_bytes":               "729088\n",
	"memory/memory.soft_limit_in_bytes":               "9223372036854771712\n",
	"memory/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	"pids/pids.current":                               "5\n",
	"pids/pids.max":                                   "max\n",
	"blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 12288\n8:0 Total 12288\n259:3 Read 512\nTotal 12800\n",
	"blkio/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\n259:3 Read 1\nTotal 4\n",
	"blkio/blkio.bfq.io_service_time_recursive":       "8:0 Read 1500000000\n8:0 Write 2500000000\nTotal 4000000000\n",
	"blkio/blkio.bfq.io_merged_recursive":             "8:0 Read 4\n8:0 Write 5\nTotal 9\n",
	"blkio/blkio.bfq.io_queued_recursive":             "8:0 Read 1\n8:0 Write 1\n8:0 Total 2\nTotal 2\n",
	"/cpu.pressure":                                   pressure,
	"/memory.pressure":                                pressure,
	"/io.pressure":                                    pressure,
}

var filesV2 = map[string]string{
	"/cpu.stat":            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 12\nnr_throttled 3\nthrottled_usec 2500000\n",
	"/cpu.max":             "max 100000\n",
	"/cpu.weight":          "59\n",
	"/memory.current":      "22159360\n",
	"/memory.stat":         statV2,
	"/memory.max":          "104857600\n",
	"/memory.min":          "0\n",
	"/memory.peak":         "23318528\n",
	"/memory.events":       "low 0\nhigh 11\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
	"/memory.swap.current": "8192\n",
	"/memory.swap.max":     "52428800\n",
	"/pids.current":        "5\n",
	"/pids.max":            "max\n",
	"/io.stat":             "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n259:3 rbytes=512 wbytes=0 rios=1 wios=0 dbytes=0 dios=0 cost.usage=3\n",
	"/cpu.pressure":        pressure,
	"/memory.pressure":     pressure,
	"/io.pressure":         pressure,
}

// Both kinds of host tell the same story, so that one table will do.
func TestReadWritten(t *testing.T) {
	stall := &Pressure{Some: Stall{1.5, 0.25, 0.01, 7000001}, Full: Stall{0.5, 0, 0, 3000000}}
	want := Reading{
		CPU: CPU{UsageNanos: 1500000000, Known: true},
		Memory: Memory{
			Usage: 22159360, Limit: 104857600, Anon: 53248, File: 20971520, Mapped: 4096,
			ActiveFile: 4194304, InactiveFile: 16777216, Faults: 406, MajorFaults: 6, Known: true,
		},
		Swap:     Swap{Usage: 8192, Limit: 52428800, Known: true},
		Pressure: Pressures{CPU: stall, Memory: stall, IO: stall},
	}
	known := func(n uint64) Count { return Count{n, true} }
	detail := Detail{
		CPU: CPUDetail{
			UserNanos: known(1e9), SystemNanos: known(5e8), Periods: known(12), Throttled: known(3), ThrottledNanos: known(25e8),
			Shares: known(512), PeriodMicros: known(100000),
		},
		Memory: MemoryDetail{Peak: known(23318528), LimitHit: known(9), OOMKills: known(2)},
		Tasks:  Tasks{known(5), known(Unlimited)},
		Devices: []Device{
			{Major: 8, ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2},
			{Major: 259, Minor: 3, ReadBytes: 512, Reads: 1},
		},
	}
	for _, tt := range []struct {
		layout Layout
		files  map[string]string
		differ func()
	}{
		{V2, filesV2, func() {
			want.Memory.Kernel = 729088
			detail.Memory.High, detail.CPU.Shares = known(11), known(521) // of weight 59, as 512 is
			detail.Memory.Reservation, detail.Memory.SwapLimit = known(0), known(52428800)
		}},
		{Hybrid, filesV1, func() {
			want.CPU.UsageNanos++
			want.Memory.Kernel, detail.CPU.Shares = 0, known(512)
			detail.CPU.SystemNanos.N++
			detail.Memory = MemoryDetail{
				Peak: known(23318528), LimitHit: known(9), OOMKills: known(2), Kernel: known(729088),
				Reservation: known(Unlimited), SwapLimit: Count{}, OwnFaults: known(70), OwnMajorFaults: known(7),
			}
			detail.Memory.SwapLimit = known(157286400)
			detail.Devices[0].Scheduled = &Scheduled{1500000000, 2500000000, 4, 5, 2}
		}},
	} {
		tt.differ()
		h, p := written(t, tt.layout, tt.files)
		got, err := h.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(got.At) > time.Minute {
			t.Errorf("%s: read at %s", tt.layout, got.At)
		}
		got.At = time.Time{}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read\n%+v, want\n%+v", tt.layout, got, want)
		}
		if d := h.Detail(p); !reflect.DeepEqual(d, detail) {
			t.Errorf("%s: detail\n%+v, want\n%+v", tt.layout, d, detail)
		}
		if ws := got.Memory.WorkingSet(); ws != 22159360-16777216 {
			t.Errorf("%s: working set %d", tt.layout, ws)
		}
	}
}

// What a kernel does not have is not known, and is no error.
func TestReadWithout(t *testing.T) {
	without := func(files map[string]string, names ...string) map[string]string {
		less := map[string]string{}
		for name, text := range files {
			less[name] = text
		}
		for _, n := range names {
			delete(less, n)
		}
		return less
	}
	h, p := written(t, V2, without(filesV2, "/memory.swap.current", "/cpu.pressure", "/memory.peak"))
	r, err := h.Read(p)
	if err != nil || r.Swap.Known || r.Pressure.CPU != nil || r.Pressure.IO == nil || !r.Memory.Known {
		t.Errorf("without swap, pressure: %+v, %v", r, err)
	}
	if d := h.Detail(p); d.Memory.Peak.Known || d.Failed != 0 {
		t.Errorf("without memory.peak: %+v", d)
	}
	h, p = written(t, V2, without(filesV2, "/memory.current"))
	if r, err = h.Read(p); err != nil || r.Memory.Known || !r.CPU.Known {
		t.Errorf("without the memory controller: %+v, %v", r, err)
	}
	unlimited := without(filesV1)
	unlimited["memory/memory.stat"] = strings.NewReplacer("104857600", "9223372036854771712", "157286400", "9223372036854771712").Replace(statV1)
	h, p = written(t, V1, without(unlimited, "memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes"))
	if r, err = h.Read(p); err != nil || r.Memory.Limit != Unlimited || r.Swap.Limit != Unlimited {
		t.Errorf("without limits: %+v, %v", r, err)
	}
	for _, d := range p.Dirs {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Read(p); !fault.Is(err, fault.NotFound) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
	h, p = written(t, V2, filesV2)
	if err := os.RemoveAll(p.Dirs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Read(p); !fault.Is(err, fault.NotFound) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
}

// A weight turns into shares that turn into it again.
func TestSharesOfWeights(t *testing.T) {
	for weight := int64(1); weight <= 10000; weight++ {
		if got := cpuWeight(int64(sharesOf(uint64(weight)))); got < weight-1 || got > weight+1 {
			t.Errorf("weight %d is %d shares, and those %d", weight, sharesOf(uint64(weight)), got)
		}
	}
	if sharesOf(100) != 1024 {
		t.Errorf("weight 100 is %d shares", sharesOf(100))
	}
}

func TestHugePageSizes(t *testing.T) {
	for name, want := range map[string]string{
		"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB", "hugepages-64kB": "64KB", "hugepages-33554432kB": "32GB",
		"hugepages-0kB": "", "hugepages-kB": "", "2048kB": "", "hugepages-99999999999999999999kB": "",
	} {
		if got := hugePageSize(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// No text makes a parser fail, and no number is more than what was there.
func FuzzFiles(f *testing.F) {
	for _, files := range []map[string]string{filesV1, filesV2} {
		for _, text := range files {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		number(text)
		parsePressure(text)
		var m Memory
		var s Swap
		m.takeV1(text, &s)
		m.takeV2(text)
		if m.WorkingSet() > m.Usage {
			t.Errorf("working set %d of %d", m.WorkingSet(), m.Usage)
		}
		devices := parseIOStat(text)
		parseBlkio(text, &devices, func(d *Device, op string) *uint64 { return ofTwo(op, &d.Reads, &d.Writes) })
		if lines := strings.Count(string(text), "\n") + 1; len(devices) > 2*lines {
			t.Errorf("%d devices in %d lines", len(devices), lines)
		}
		hugePageSize(string(text))
	})
}

// A process that has used a CPU and has memory, against what the kernel says
// of the process itself.
func TestReadRunning(t *testing.T) {
	h := realHost(t)
	p := h.Place(testParent(t, h), "figures")
	if h.layout == V2 {
		if err := h.Create(t.Context(), h.Above(p)); err != nil {
			t.Fatal(err)
		}
		h.enable(h.trees[0].mount)
		h.enable(filepath.Dir(p.Dirs[0]))
	}
	join(t, h, p, "x=$(head -c 24000000 /dev/zero | tr \\\\0 a); i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo >&3; read stop")
	r, err := h.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	pids := h.Processes(p)
	if len(pids) != 1 {
		t.Fatalf("processes %v", pids)
	}
	// The cgroup has the CPU time of head and tr, too.
	used, counted := cpuOf(t, pids[0]), time.Duration(r.CPU.UsageNanos)
	if counted < used*9/10 || counted > used+time.Second {
		t.Errorf("the cgroup used %s of CPU, its process %s", counted, used)
	}
	status, err := readFile(fmt.Sprintf("/proc/%d", pids[0]), "status")
	if err != nil {
		t.Fatal(err)
	}
	_, rss, _ := strings.Cut(status, "RssAnon:")
	anon := number([]byte(strings.TrimSpace(rss))) << 10
	slack := uint64(1+runtime.NumCPU()) << 20 // the kernel adds up in batches for each CPU
	if m := r.Memory; anon < 24_000_000 || m.Anon+slack < anon || m.Anon > anon+slack || m.Usage+slack < anon || m.Faults == 0 {
		t.Errorf("the process has %d bytes, its cgroup %+v", anon, m)
	}
	_, err = os.Stat("/proc/pressure/cpu")
	if psi := err == nil; psi != (r.Pressure.CPU != nil) {
		t.Errorf("the kernel has pressure: %v; read %+v", psi, r.Pressure)
	}
	d := h.Detail(p)
	peak := d.Memory.Peak.N >= r.Memory.Anon || !d.Memory.Peak.Known
	if both := d.CPU.UserNanos.N + d.CPU.SystemNanos.N; both+1e8 < r.CPU.UsageNanos*9/10 || both > r.CPU.UsageNanos*11/10+1e8 {
		t.Errorf("user and system together %d, CPU time %d", both, r.CPU.UsageNanos)
	}
	if d.Failed != 0 || d.Tasks.Current.N != 1 || !peak {
		t.Errorf("details %+v", d)
	}
	if name := h.Name(p); !strings.HasSuffix(p.Dirs[0], name) || filepath.Base(name) != "figures" {
		t.Errorf("it is called %s", name)
	}
	if up, err := h.Read(h.Above(p)); err != nil || up.CPU.UsageNanos < r.CPU.UsageNanos || up.Memory.Usage+slack < r.Memory.Usage {
		t.Errorf("above: %+v, %v", up, err)
	}
	if err := h.Kill(t.Context(), h.Above(p)); err == nil {
		t.Error("what is above may be killed")
	}
}

// cpuOf asks the clock of a process.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	// kernel: include/linux/posix-timers.h, make_process_cpuclock, CPUCLOCK_SCHED
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		t.Fatalf("clock of %d: %v", pid, err)
	}
	return time.Duration(ts.Nano())
}
