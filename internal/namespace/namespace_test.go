package namespace

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestCheckSysctls(t *testing.T) {
	all := Spec{Net: true, IPC: true, UTS: true}
	tests := []struct {
		spec   Spec
		name   string
		path   string // empty: refused
		reason string // part of the error
	}{
		{all, "net.core.somaxconn", "net/core/somaxconn", ""},
		{all, "net/core/somaxconn", "net/core/somaxconn", ""},
		{all, "net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter", ""},
		{all, "net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter", ""},
		{all, "kernel.shmmax", "kernel/shmmax", ""},
		{all, "kernel.shm_rmid_forced", "kernel/shm_rmid_forced", ""},
		{all, "kernel.msgmax", "kernel/msgmax", ""},
		{all, "kernel.sem", "kernel/sem", ""},
		{all, "fs.mqueue.msg_max", "fs/mqueue/msg_max", ""},
		{all, "kernel.semaphore", "", "not namespaced"},
		{all, "kernel.pid_max", "", "not namespaced"},
		{all, "kernel.hostname", "", "not namespaced"}, // the pod's hostname has a field of its own
		{all, "vm.swappiness", "", "not namespaced"},
		{all, "fs.file-max", "", "not namespaced"},
		{all, "net", "", "not namespaced"},
		{all, "", "", "malformed"},
		{all, "net/../kernel/core_pattern", "", "malformed"},
		{all, "net.//.kernel.core_pattern", "", "malformed"}, // slashes stand for dots
		{all, "net..core.somaxconn", "", "malformed"},
		{all, "/net/core/somaxconn", "", "malformed"},
		{Spec{IPC: true}, "net.core.somaxconn", "", "no network namespace"},
		{Spec{Net: true}, "kernel.shmmax", "", "no IPC namespace"},
		{Spec{Net: true}, "fs.mqueue.msg_max", "", "no IPC namespace"},
	}
	for _, tt := range tests {
		tt.spec.Sysctls = map[string]string{tt.name: "1"}
		got, err := checkSysctls(tt.spec)
		if tt.path == "" {
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.reason) || !strings.Contains(err.Error(), tt.name) {
				t.Errorf("%q: got %v, want Invalid naming it, with %q", tt.name, err, tt.reason)
			}
			continue
		}
		found := false
		for _, s := range got {
			found = found || s.path == tt.path && !s.optional
		}
		if err != nil || !found {
			t.Errorf("%q: got %v, %v, want path %s", tt.name, got, err, tt.path)
		}
	}
	_, err := checkSysctls(Spec{Net: true, Sysctls: map[string]string{"net.core.somaxconn": "1", "net/core/somaxconn": "2"}})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("the same sysctl twice: got %v", err)
	}
}

// in runs f inside the pinned namespaces below dir.
func in(t *testing.T, dir string, f func()) {
	t.Helper()
	err := onThread(func() error {
		for _, k := range kinds {
			if k.flag == unix.CLONE_NEWUSER {
				continue // no thread of many can enter it
			}
			fd, err := unix.Open(filepath.Join(dir, k.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, k.flag); err != nil {
				return err
			}
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) { testkit.Main(m) }

func TestCreateAndRelease(t *testing.T) {
	t.Run("host's users", func(t *testing.T) { createAndRelease(t, idmap.Map{}) })
	t.Run("users of its own", func(t *testing.T) {
		ids := []idmap.Range{{Container: 0, Host: 300000, Length: 65536}}
		createAndRelease(t, idmap.Map{UIDs: ids, GIDs: ids})
	})
}

func createAndRelease(t *testing.T, users idmap.Map) {
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ") // nothing here makes one, but others on the machine do
	ctx, m, dir := context.Background(), New(), filepath.Join(t.TempDir(), "pod")
	t.Cleanup(func() { _ = m.Release(ctx, dir) })
	hostname, _ := os.Hostname()
	spec := Spec{Net: true, IPC: true, UTS: true, Users: users, Hostname: "web-0", Sysctls: map[string]string{
		"kernel.shmmax": "12345", "fs.mqueue.msg_max": "7", "net.core.somaxconn": "77", "net/ipv4/ip_unprivileged_port_start": "80",
	}}
	if err := m.Create(ctx, dir, spec); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/proc/sys/kernel/shmmax": "12345", "/proc/sys/fs/mqueue/msg_max": "7", "/proc/sys/net/core/somaxconn": "77",
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": "80", "/proc/sys/net/ipv4/ping_group_range": "0\t2147483647",
	}
	in(t, dir, func() {
		var u unix.Utsname
		_ = unix.Uname(&u)
		if got := unix.ByteSliceToString(u.Nodename[:]); got != "web-0" {
			t.Errorf("hostname %q", got)
		}
		for path, value := range want {
			if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != value {
				t.Errorf("%s: %q, %v, want %q", path, got, err, value)
			}
		}
		s, _ := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		defer unix.Close(s)
		ifr, _ := unix.NewIfreq("lo")
		if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr); err != nil || ifr.Uint16()&unix.IFF_UP == 0 {
			t.Errorf("lo is not up: %v", err)
		}
	})
	if now, _ := os.Hostname(); now != hostname {
		t.Errorf("the host's name became %q", now)
	}
	if !users.Empty() {
		checkOwner(t, dir)
	}
	if err := m.Create(ctx, dir, spec); !fault.Is(err, fault.Exists) {
		t.Errorf("create over a live pod: %v, want Exists", err)
	}
	for range 2 {
		if err := m.Release(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// All of the pod's namespaces belong to its user namespace.
func checkOwner(t *testing.T, dir string) {
	t.Helper()
	const nsGetUserns = 0xb701 // kernel: linux/nsfs.h
	var owner unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "user"), &owner); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"net", "ipc", "uts"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.IoctlRetInt(int(f.Fd()), nsGetUserns)
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(fd, &st)
			_ = unix.Close(fd)
		}
		if err != nil || st.Ino != owner.Ino {
			t.Errorf("%s belongs to user namespace %d, want %d: %v", name, st.Ino, owner.Ino, err)
		}
		_ = f.Close()
	}
}

func TestCreateSome(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ") // nothing here makes one, but others on the machine do
	ctx, m, dir := context.Background(), New(), t.TempDir()
	if err := m.Create(ctx, dir, Spec{UTS: true, Hostname: "host-network"}); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || entries[0].Name() != "uts" {
		t.Errorf("got %v, want uts alone", entries)
	}
	if err := m.Release(ctx, dir); err != nil {
		t.Fatal(err)
	}
}

// After an error, a crash or a reboot anything may be there, or nothing.
func TestReleaseOfParts(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ") // nothing here makes one, but others on the machine do
	ctx, m := context.Background(), New()
	if err := m.Release(ctx, filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "net"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(ctx, dir); err != nil {
		t.Errorf("a plain file: %v", err)
	}
	err := m.Create(ctx, dir, Spec{Net: true, Sysctls: map[string]string{"net.no.such": "1"}})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("a sysctl the kernel lacks: %v", err)
	}
	if err := m.Release(ctx, dir); err != nil {
		t.Errorf("after a failed create: %v", err)
	}
	if err := m.Create(ctx, dir, Spec{UTS: true, Hostname: strings.Repeat("x", 65)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a hostname too long: %v", err)
	}
	if err := m.Release(ctx, dir); err != nil {
		t.Errorf("after a failed create: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The process's own first thread must never be the one thrown away.
func TestFirstThreadStays(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ") // nothing here makes one, but others on the machine do
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ctx, m, root := context.Background(), New(), t.TempDir()
	for i := range 50 {
		dir := filepath.Join(root, string(rune('a'+i%26))+string(rune('a'+i/26)))
		if err := m.Create(ctx, dir, Spec{Net: true}); err != nil {
			t.Fatal(err)
		}
		if err := m.Release(ctx, dir); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
		t.Errorf("the process is in %s, was in %s", after, before)
	}
}

// A user namespace costs a process that lives for a moment.
//
// go test -bench CreateUsers -run - -benchtime 200x ./internal/namespace
func BenchmarkCreateUsers(b *testing.B) {
	ids := []idmap.Range{{Container: 0, Host: 300000, Length: 65536}}
	benchmarkCreate(b, idmap.Map{UIDs: ids, GIDs: ids})
}

// go test -bench Create -run - -benchtime 200x ./internal/namespace
func BenchmarkCreate(b *testing.B) { benchmarkCreate(b, idmap.Map{}) }

func benchmarkCreate(b *testing.B, users idmap.Map) {
	testkit.Root(b)
	ctx, m, dir := context.Background(), New(), b.TempDir()
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := m.Create(ctx, dir, Spec{Net: true, IPC: true, UTS: true, Hostname: "bench", Users: users}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		if err := m.Release(ctx, dir); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "min-µs")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-µs")
}
