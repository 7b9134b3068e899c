package cgroup

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	tableV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
	tableV1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,seclabel,memory\n" +
		"34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children\n" +
		"35 31 0:32 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
	tableSystemd = "36 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd\n"
	tableUnified = "37 31 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	tableTwice   = "38 31 0:30 / /other/memory rw - cgroup cgroup rw,memory\n"
	tableElse    = "23 1 0:20 / /sys rw - sysfs sysfs rw\n"
)

// fakeHost returns the Host of a machine with these mounts, and its root.
func fakeHost(t *testing.T, mountinfo string, systemd bool) (*Host, string) {
	t.Helper()
	root := t.TempDir()
	put(t, root+"/proc/self/mountinfo", mountinfo)
	if systemd {
		if err := os.MkdirAll(root+"/run/systemd/system", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h, err := probe(slog.New(slog.DiscardHandler), root)
	if err != nil {
		t.Fatal(err)
	}
	return h, root
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		table   string
		systemd bool
		layout  Layout
		driver  Driver
		mounts  string
	}{
		"v2":               {tableElse + tableV2, true, V2, Systemd, ""},
		"v2, no systemd":   {tableV2, false, V2, Cgroupfs, ""},
		"v2, elogind's v1": {tableV2 + tableSystemd, false, V2, Cgroupfs, ""},
		"v1":               {tableV1 + tableTwice, false, V1, Cgroupfs, "cpu,cpuacct memory cpuset freezer"},
		"v1, systemd":      {tableV1 + tableSystemd, true, V1, Systemd, "cpu,cpuacct memory cpuset freezer systemd"},
		"hybrid":           {tableV1 + tableSystemd + tableUnified, true, Hybrid, Systemd, "cpu,cpuacct memory cpuset freezer systemd unified"},
	} {
		h, root := fakeHost(t, c.table, c.systemd)
		var mounts []string
		for _, tree := range h.trees {
			mounts = append(mounts, strings.TrimPrefix(strings.TrimPrefix(tree.mount, root+"/sys/fs/cgroup"), "/"))
		}
		if h.Layout() != c.layout || h.Driver() != c.driver || strings.Join(mounts, " ") != c.mounts {
			t.Errorf("%s: %s, %s, %q", name, h.Layout(), h.Driver(), mounts)
		}
	}

	root := t.TempDir()
	put(t, root+"/proc/self/mountinfo", tableElse)
	if _, err := probe(slog.New(slog.DiscardHandler), root); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nothing mounted: %v", err)
	}
	if _, err := probe(slog.New(slog.DiscardHandler), t.TempDir()); err == nil {
		t.Error("no mount table is no error")
	}
}

func TestWithDriver(t *testing.T) {
	h, _ := fakeHost(t, tableV2, true)
	other, err := h.WithDriver(Cgroupfs)
	if err != nil || other.Driver() != Cgroupfs || h.Driver() != Systemd {
		t.Errorf("%v, %v", other, err)
	}
	if _, err := h.WithDriver("cgroups"); !fault.Is(err, fault.Invalid) {
		t.Errorf("unknown driver: %v", err)
	}
	h, _ = fakeHost(t, tableV2, false)
	if _, err := h.WithDriver(Systemd); !fault.Is(err, fault.Invalid) {
		t.Errorf("systemd where there is none: %v", err)
	}
}

func TestPlace(t *testing.T) {
	const all = tableV1 + tableSystemd + tableUnified
	for _, c := range []struct {
		table         string
		systemd       bool
		parent        string
		path, dir     string // dir: below each hierarchy
		dirs          int
		events, owner string // of OOM kills; Parent
	}{
		{tableV2, false, "/kubepods/burstable/podX", "/kubepods/burstable/podX/c1", "/kubepods/burstable/podX/c1", 1, "memory.events", "/kubepods/burstable/podX"},
		{tableV2, false, "", "/davit/c1", "/davit/c1", 1, "memory.events", "/davit"},
		{tableV2, false, "/", "/davit/c1", "/davit/c1", 1, "memory.events", "/davit"},
		{tableV2, false, "../../etc", "/etc/c1", "/etc/c1", 1, "memory.events", "/etc"},
		{tableV2, false, "a.slice", "/a.slice/c1", "/a.slice/c1", 1, "memory.events", "/a.slice"},
		{all, false, "/p", "/p/c1", "/p/c1", 6, "memory.oom_control", "/p"},
		{tableV2, true, "", "davit.slice:davit:c1", "/davit.slice/davit-c1.scope", 1, "memory.events", "/davit"},
		{tableV2, true, "/kubepods/burstable/pod12-34", "kubepods-burstable-pod12_34.slice:davit:c1",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice/davit-c1.scope", 1, "memory.events", "/kubepods/burstable/pod12-34"},
		{tableV2, true, "kubepods-burstable-podX.slice", "kubepods-burstable-podX.slice:davit:c1",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/davit-c1.scope", 1, "memory.events", "/kubepods-burstable-podX.slice"},
		{all, true, "/kubepods.slice/kubepods-podX.slice", "kubepods-podX.slice:davit:c1",
			"/kubepods.slice/kubepods-podX.slice/davit-c1.scope", 6, "memory.oom_control", "/kubepods.slice/kubepods-podX.slice"},
		{tableV2, true, "-.slice", "-.slice:davit:c1", "/davit-c1.scope", 1, "memory.events", "/-.slice"},
	} {
		h, _ := fakeHost(t, c.table, c.systemd)
		p := h.Place(c.parent, "c1")
		if p.Path != c.path || p.Parent != c.owner || p.ID != "c1" || len(p.Dirs) != c.dirs || filepath.Base(p.OOMEvents) != c.events {
			t.Errorf("%q: %+v", c.parent, p)
			continue
		}
		for i, d := range p.Dirs {
			if d != h.trees[i].mount+c.dir {
				t.Errorf("%q: directory %s", c.parent, d)
			}
		}
		if !slices.Contains(p.Dirs, filepath.Dir(p.OOMEvents)) {
			t.Errorf("%q: events in %s", c.parent, p.OOMEvents)
		}
		if err := sane(p); err != nil {
			t.Errorf("%q: %v", c.parent, err)
		}
	}
}

// Whatever a pod's parent is called, its containers stay within the hierarchies.
func FuzzPlace(f *testing.F) {
	for _, s := range []string{"", "/", "/a/b", "a-b.slice", "..", "/../..slice", "-.slice", "a--b.slice", "x.slice/..", ".slice"} {
		f.Add(s)
	}
	trees := []tree{{mount: "/m/memory", controllers: []string{"memory"}}, {mount: "/m/unified", unified: true}}
	f.Fuzz(func(t *testing.T, parent string) {
		for _, d := range []Driver{Cgroupfs, Systemd} {
			h := &Host{log: slog.New(slog.DiscardHandler), layout: Hybrid, driver: d, trees: trees}
			p := h.Place(parent, "c1")
			if err := sane(p); err != nil {
				t.Errorf("%s: %v", d, err)
			}
			for i, dir := range p.Dirs {
				if !strings.HasPrefix(dir, trees[i].mount+"/") || filepath.Clean(dir) != dir {
					t.Errorf("%s: %s", d, dir)
				}
			}
			if d == Systemd && strings.Count(strings.SplitN(p.Path, ":davit:", 2)[0], "/") != 0 {
				t.Errorf("slice of %s", p.Path)
			}
		}
	})
}

// A v2 tree with one container's cgroup, as the kernel fills it.
func fakeV2(t *testing.T, systemd bool) (*Host, Place) {
	h, _ := fakeHost(t, tableV2, systemd)
	p := h.Place("/pod", "c1")
	for name, text := range map[string]string{
		"cpu.max": "max 100000", "cpu.weight": "100", "memory.max": "max", "memory.swap.max": "max", "memory.current": "4096",
		"memory.high": "max", "cpuset.cpus": "", "cpuset.mems": "", "hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.max": "max",
	} {
		put(t, filepath.Join(p.Dirs[0], name), text+"\n")
	}
	return h, p
}

// differences returns the files of dir that are not as in before.
func differences(t *testing.T, dir string, before map[string]string) map[string]string {
	now := contents(t, dir)
	maps.DeleteFunc(now, func(name, text string) bool { return before[name] == text })
	return now
}

func contents(t *testing.T, dir string) map[string]string {
	all := map[string]string{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if !e.IsDir() {
			if all[e.Name()], err = readFile(dir, e.Name()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

type resources = runtimeapi.LinuxContainerResources

func TestLimitV2(t *testing.T) {
	for _, c := range []struct {
		name string
		r    *resources
		want map[string]string
	}{
		{"nothing", &resources{}, nil},
		{"nil", nil, nil},
		{"shares", &resources{CpuShares: 1024}, nil}, // what it is already: 100
		{"few shares", &resources{CpuShares: 2}, map[string]string{"cpu.weight": "1"}},
		{"quota", &resources{CpuQuota: 50000, CpuPeriod: 20000}, map[string]string{"cpu.max": "50000 20000"}},
		{"quota alone", &resources{CpuQuota: 50000}, map[string]string{"cpu.max": "50000 100000"}},
		{"period alone", &resources{CpuPeriod: 50000}, map[string]string{"cpu.max": "max 50000"}},
		{"no quota", &resources{CpuQuota: -1, CpuPeriod: 100000}, nil},
		{"memory", &resources{MemoryLimitInBytes: 1 << 20}, map[string]string{"memory.max": "1048576"}},
		{"memory and swap", &resources{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 3 << 20}, map[string]string{"memory.max": "1048576", "memory.swap.max": "2097152"}},
		{"no swap", &resources{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 1 << 20}, map[string]string{"memory.max": "1048576", "memory.swap.max": "0"}},
		{"sets", &resources{CpusetCpus: "0-1", CpusetMems: "0"}, map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"}},
		{"huge pages", &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}},
			map[string]string{"hugetlb.2MB.max": "0", "hugetlb.2MB.rsvd.max": "0"}}, // this host has no 1GB
		{"unified", &resources{Unified: map[string]string{"memory.high": "5000"}}, map[string]string{"memory.high": "5000"}},
		{"unified wins", &resources{MemoryLimitInBytes: 9000, Unified: map[string]string{"memory.max": "max"}}, nil},
		{"swap alone", &resources{MemorySwapLimitInBytes: 7000}, map[string]string{"memory.swap.max": "7000"}},
	} {
		h, p := fakeV2(t, false)
		before := contents(t, p.Dirs[0])
		if err := h.Limit(t.Context(), p, c.r); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got := differences(t, p.Dirs[0], before)
		if len(got)+len(c.want) > 0 && !maps.Equal(got, c.want) {
			t.Errorf("%s: %s", c.name, cmp.Diff(c.want, got))
		}
	}
}

// A refused update changes nothing.
func TestLimitRefused(t *testing.T) {
	some := func(r *resources) *resources { r.CpuShares, r.CpuQuota = 200, 1000; return r }
	for name, c := range map[string]struct {
		r    *resources
		kind fault.Kind
		text string
	}{
		"below usage":  {some(&resources{MemoryLimitInBytes: 100}), fault.Precondition, "memory_limit_in_bytes: 100 bytes are less than the 4096 in use"},
		"likewise":     {some(&resources{Unified: map[string]string{"memory.max": "100"}}), fault.Precondition, `unified["memory.max"]: 100 bytes are less`},
		"swap":         {some(&resources{MemoryLimitInBytes: 8192, MemorySwapLimitInBytes: 4096}), fault.Invalid, "memory_swap_limit_in_bytes: "},
		"no such file": {some(&resources{Unified: map[string]string{"memory.nope": "1"}}), fault.Precondition, `unified["memory.nope"]: `},
		"a path":       {some(&resources{Unified: map[string]string{"../x.y": "1"}}), fault.Invalid, "../x.y"},
		"the core's":   {some(&resources{Unified: map[string]string{"cgroup.kill": "1"}}), fault.Invalid, "cgroup.kill"},
		"huge pages":   {some(&resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: 1}}}), fault.Precondition, `hugepage_limits["1GB"]: `},
	} {
		h, p := fakeV2(t, false)
		before := contents(t, p.Dirs[0])
		err := h.Limit(t.Context(), p, c.r)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (%v)", name, err, fault.KindOf(err))
		}
		if d := differences(t, p.Dirs[0], before); len(d) > 0 {
			t.Errorf("%s: left %v", name, d)
		}
	}
	h, _ := fakeV2(t, false)
	if err := h.Limit(t.Context(), h.Place("/pod", "gone"), &resources{CpuShares: 5}); !fault.Is(err, fault.Precondition) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
	h, _ = fakeHost(t, tableV1, false)
	p := h.Place("/pod", "c1")
	if err := h.Limit(t.Context(), p, &resources{Unified: map[string]string{"memory.high": "1"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("unified on v1: %v", err)
	}
	if err := h.Limit(t.Context(), p, &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}); err != nil {
		t.Errorf("no huge pages where there are none: %v", err)
	}
	if err := h.Limit(t.Context(), p, &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}); !fault.Is(err, fault.Precondition) {
		t.Errorf("huge pages where there are none: %v", err)
	}
}

// What a davitd wrote before it was killed, another puts back, wherever it was.
func TestRestore(t *testing.T) {
	h, p := fakeV2(t, true)
	f := &told{then: func() {}}
	h.units = f
	r := &resources{
		CpuShares: 2, CpuQuota: 1000, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20, CpusetCpus: "0-2,9",
		Unified: map[string]string{"memory.high": "9999", "io.max": "8:0 rbps=1 wbps=max riops=max wiops=max"},
	}
	put := func(name, text string) { put(t, filepath.Join(p.Dirs[0], name), text) }
	put("io.max", "")
	put("cgroup.controllers", "")
	original := contents(t, p.Dirs[0])
	before, err := h.Current(p, r)
	if err != nil || len(before) != 7 {
		t.Fatalf("%v, %v", before, err)
	}
	if d := differences(t, p.Dirs[0], original); len(d) > 0 {
		t.Fatalf("Current changed %v", d)
	}
	if err := h.Limit(t.Context(), p, r); err != nil {
		t.Fatal(err)
	}
	want := "CPUWeight=1 MemoryMax=1048576 MemoryHigh=9999 MemorySwapMax=1048576 AllowedCPUs=@ay [0x7, 0x2] CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=10000"
	if got := strings.Join(f.properties, " "); got != want {
		t.Errorf("systemd was told %s", got)
	}
	f.properties = nil
	for range 2 {
		if err := h.Restore(t.Context(), p, before); err != nil {
			t.Fatal(err)
		}
	}
	d := differences(t, p.Dirs[0], original)
	if delete(d, "io.max"); len(d) > 0 { // a plain file keeps what was written to reset it
		t.Errorf("left %v", d)
	}
	if now, _ := readFile(p.Dirs[0], "io.max"); now != "8:0 rbps=max wbps=max riops=max wiops=max" {
		t.Errorf("io.max: %q", now)
	}
	if got := strings.Join(f.properties[:2], " "); got != "CPUWeight=100 MemoryMax=18446744073709551615" {
		t.Errorf("systemd was told %s", got)
	}
	other := h.Place("/pod", "c2")
	if err := h.Restore(t.Context(), other, before); !fault.Is(err, fault.Internal) {
		t.Errorf("another's: %v", err)
	}
	if err := os.RemoveAll(p.Dirs[0]); err != nil {
		t.Fatal(err)
	}
	if err := h.Restore(t.Context(), p, before); err != nil {
		t.Errorf("its cgroup has gone: %v", err)
	}
}

func TestMemoryV1(t *testing.T) {
	const none = "9223372036854771712"
	for _, c := range []struct {
		limit, both string // before
		new         *resources
		order       string // what is written, in order
	}{
		{none, none, &resources{MemoryLimitInBytes: 100}, "limit=100"},
		{"100", "100", &resources{MemoryLimitInBytes: 200}, "both=200 limit=200"},
		{"200", "200", &resources{MemoryLimitInBytes: 100}, "limit=100 both=100"},
		{"100", "150", &resources{MemoryLimitInBytes: 120}, "limit=120 both=170"}, // the 50 of swap stay
		{"100", "150", &resources{MemoryLimitInBytes: 300, MemorySwapLimitInBytes: 400}, "both=400 limit=300"},
		{"100", "150", &resources{MemorySwapLimitInBytes: 400}, "both=400"},
		{"100", "100", &resources{MemoryLimitInBytes: -1}, "both=-1 limit=-1"},
		{"100", "", &resources{MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 400}, "limit=200"}, // no swap accounting
	} {
		dir := t.TempDir()
		put(t, dir+"/memory.limit_in_bytes", c.limit)
		if c.both != "" {
			put(t, dir+"/memory.memsw.limit_in_bytes", c.both)
		}
		var ch changes
		ch.setMemoryV1(dir, c.new.MemoryLimitInBytes, c.new.MemorySwapLimitInBytes)
		var order []string
		for _, d := range ch.touched {
			now, _ := readFile(filepath.Split(d.File))
			name := map[string]string{"memory.limit_in_bytes": "limit", "memory.memsw.limit_in_bytes": "both"}[filepath.Base(d.File)]
			order = append(order, name+"="+now)
		}
		if got := strings.Join(order, " "); ch.err != nil || got != c.order {
			t.Errorf("%s/%s, %v: wrote %q, want %q (%v)", c.limit, c.both, c.new, got, c.order, ch.err)
		}
	}
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[int64]int64{1: 1, 2: 1, 3: 2, 10: 4, 100: 17, 512: 59, 1024: 100, 2048: 174, 262144: 10000, 1 << 30: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("%d shares: weight %d, want %d", shares, got, want)
		}
	}
}

// told notes what systemd is told.
type told struct {
	unit       string
	properties []string
	then       func()
}

func (f *told) set(_ context.Context, unit string, all []dbus.Property) bool {
	f.unit = unit
	for _, p := range all {
		f.properties = append(f.properties, p.Name+"="+strings.TrimPrefix(p.Value.String(), "@t "))
	}
	f.then()
	return true
}

func TestLimitTellsSystemd(t *testing.T) {
	h, p := fakeV2(t, true)
	put(t, p.Dirs[0]+"/memory.high", "7777\n")
	f := &told{then: func() { put(t, p.Dirs[0]+"/cpu.max", "10000 100000\n") }} // what systemd would make of 9001
	h.units = f
	r := &resources{CpuShares: 512, CpuQuota: 9001, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 1 << 20}
	if err := h.Limit(t.Context(), p, r); err != nil {
		t.Fatal(err)
	}
	// What the OCI runtime has set is told along with what is set here.
	want := "CPUWeight=59 MemoryMax=1048576 MemoryHigh=7777 MemorySwapMax=0 CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=100000"
	if got := strings.Join(f.properties, " "); f.unit != "davit-c1.scope" || got != want {
		t.Errorf("%s was told %s", f.unit, got)
	}
	if now, _ := readFile(p.Dirs[0], "cpu.max"); now != "9001 100000" {
		t.Errorf("cpu.max is %q", now)
	}
	all := properties([]Value{
		{"/m/cpu.shares", "5"}, {"/m/cpu.cfs_quota_us", "-1"}, {"/m/memory.limit_in_bytes", "9223372036854771712"}, {"/m/cpuset.cpus", "0"},
	})
	if len(all) != 3 || all[0].Name != "CPUShares" || all[1].Name != "MemoryLimit" || all[1].Value.Value() != ^uint64(0) ||
		all[2].Name != "CPUQuotaPerSecUSec" || all[2].Value.Value() != ^uint64(0) {
		t.Errorf("on v1: %v", all)
	}
}

func TestPrepareV2(t *testing.T) {
	h, root := fakeHost(t, tableV2, false)
	mount := root + "/sys/fs/cgroup"
	put(t, mount+"/cgroup.controllers", "cpu memory\n")
	put(t, mount+"/cgroup.subtree_control", "cpu\n")
	if err := h.Prepare(t.Context(), "/kubepods/podX"); err != nil { // somebody else's
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(mount); len(list) != 2 {
		t.Errorf("made %v", list)
	}
	for range 2 {
		if err := h.Prepare(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(mount + "/davit"); err != nil || !st.IsDir() {
		t.Error(err)
	}
	if now, _ := readFile(mount, "cgroup.subtree_control"); now != "+memory" { // a plain file keeps only the last write
		t.Errorf("enabled %q", now)
	}
	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(mount + "/davit"); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
}

func TestKillV2(t *testing.T) {
	h, p := fakeV2(t, false)
	dir := p.Dirs[0]
	put(t, dir+"/cgroup.procs", "")
	put(t, dir+"/sub/cgroup.procs", "4194301\n0\n")
	put(t, dir+"/cgroup.kill", "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := h.Kill(ctx, p) // nobody dies of a plain file
	if !fault.Is(err, fault.Deadline) || !strings.Contains(err.Error(), "4194301 (") {
		t.Errorf("%v", err)
	}
	if now, _ := readFile(dir, "cgroup.kill"); now != "1" {
		t.Errorf("cgroup.kill is %q", now)
	}
}

func TestDescribe(t *testing.T) {
	if got := describe([]int{os.Getpid()}); !strings.Contains(got, "(cgroup.test, state ") {
		t.Error(got)
	}
}

func TestOnlyItsOwn(t *testing.T) {
	h, p := fakeV2(t, false)
	for _, bad := range []Place{{Dirs: []string{h.trees[0].mount}}, {ID: "c1", Dirs: []string{filepath.Dir(p.Dirs[0])}}, {Dirs: p.Dirs}} {
		if err := h.Kill(t.Context(), bad); !fault.Is(err, fault.Internal) {
			t.Errorf("Kill(%v): %v", bad, err)
		}
		if err := h.Remove(t.Context(), bad); !fault.Is(err, fault.Internal) {
			t.Errorf("Remove(%v): %v", bad, err)
		}
	}
	if err := h.Remove(t.Context(), Place{}); err != nil { // a record from before the cgroup had a name
		t.Error(err)
	}
}
