package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/profile.json", "{}")
	if err := os.Mkdir(dir+"/data", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("data", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	profile := func(path string) *runtimeapi.LinuxContainerConfig {
		return &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path},
		}}
	}
	found, err := Inspect(&runtimeapi.ContainerConfig{
		Mounts:  []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: dir + "/link"}, {ContainerPath: "/i", Image: &runtimeapi.ImageSpec{}}},
		Devices: []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/null"}},
		Linux:   profile(dir + "/profile.json"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := found.Sources[dir+"/link"]; got != dir+"/data" {
		t.Errorf("source is %q", got)
	}
	if d := found.Devices["/dev/null"]; len(d) != 1 || d[0].Path != "/dev/null" || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 || d[0].Mode != 0o666 {
		t.Errorf("devices: %+v", d)
	}
	if string(found.Seccomp) != "{}" || found.Hostname == "" {
		t.Errorf("found %+v", found)
	}
	for missing, c := range map[string]*runtimeapi.ContainerConfig{
		dir + "/absent":    {Mounts: []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: dir + "/absent"}}},
		"/dev/absent":      {Devices: []*runtimeapi.Device{{HostPath: "/dev/absent"}}},
		dir + "/data/p":    {Linux: profile(dir + "/data/p")},
		dir + "/profile.j": {Devices: []*runtimeapi.Device{{HostPath: dir + "/profile.json"}}}, // a file is no device
		dir:                {Linux: profile(dir)},
	} {
		if _, err := Inspect(c); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), missing) {
			t.Errorf("%s: %v", missing, err)
		}
	}
	if found, err = Inspect(&runtimeapi.ContainerConfig{Linux: profile(dir + "/fifo")}); err == nil && len(found.Seccomp) > 0 {
		t.Errorf("a FIFO gave %q", found.Seccomp)
	}
	if _, err := Inspect(&runtimeapi.ContainerConfig{Linux: profile("relative")}); !fault.Is(err, fault.Invalid) {
		t.Errorf("relative profile: %v", err)
	}
}

func TestPropagates(t *testing.T) {
	const slave, shared = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	m := func(at, optional string) *mountinfo.Info { return &mountinfo.Info{Mountpoint: at, Optional: optional} }
	for _, c := range []struct {
		above []*mountinfo.Info
		want  runtimeapi.MountPropagation
		ok    bool
	}{
		{[]*mountinfo.Info{m("/", "shared:1"), m("/a", "")}, shared, false},
		{[]*mountinfo.Info{m("/a", "shared:2 master:1"), m("/", "")}, shared, true},
		{[]*mountinfo.Info{m("/a", "master:1")}, shared, false},
		{[]*mountinfo.Info{m("/a", "master:1")}, slave, true},
		{[]*mountinfo.Info{m("/a", "shared:1"), m("/a", "unbindable")}, slave, false}, // one upon the other
		{nil, slave, false},
	} {
		if got := propagates(c.above, c.want); got != c.ok {
			t.Errorf("%+v: got %v", c, got)
		}
	}
}

func TestMakeWorkingDir(t *testing.T) {
	rootfs, outside := t.TempDir(), t.TempDir()
	write(t, rootfs+"/file", "")
	if err := os.Symlink(outside, rootfs+"/out"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]fault.Kind{
		"/a/b/c": 0, "/": 0, "a": 0, "/../../x": 0, "/file": fault.Invalid, "/file/x": fault.Invalid,
	} {
		err := MakeWorkingDir(rootfs, dir, idmap.Map{})
		if want == 0 {
			st, statErr := os.Stat(filepath.Join(rootfs, filepath.Join("/", dir)))
			if err != nil || statErr != nil || !st.IsDir() {
				t.Errorf("%s: %v, %v", dir, err, statErr)
			}
		} else if !fault.Is(err, want) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	err := MakeWorkingDir(rootfs, "/out/dir", idmap.Map{}) // whatever it says, nothing may be made outside
	if left, readErr := os.ReadDir(outside); readErr != nil || len(left) != 0 {
		t.Errorf("made outside the root: %v (%v)", left, err)
	}
}

// What is made belongs to the root of the user namespace, what was there stays.
func TestMakeMappedWorkingDir(t *testing.T) {
	testkit.Root(t)
	rootfs := t.TempDir()
	if err := os.Mkdir(rootfs+"/there", 0o755); err != nil {
		t.Fatal(err)
	}
	users := idmap.Map{UIDs: []idmap.Range{{Container: 0, Host: 5000, Length: 10}}, GIDs: []idmap.Range{{Container: 0, Host: 6000, Length: 10}}}
	if err := MakeWorkingDir(rootfs, "/there/a/b", users); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][2]uint32{"/there": {0, 0}, "/there/a": {5000, 6000}, "/there/a/b": {5000, 6000}} {
		var st unix.Stat_t
		if err := unix.Stat(rootfs+dir, &st); err != nil || [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s belongs to %d:%d, want %v: %v", dir, st.Uid, st.Gid, want, err)
		}
	}
}

func TestHost(t *testing.T) {
	h, err := ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	if h.MinOOMScoreAdj < -1000 || h.MinOOMScoreAdj > 1000 {
		t.Errorf("%+v", h)
	}
	all, err := HostDevices()
	if err != nil {
		t.Fatal(err)
	}
	byPath := map[string]Device{}
	for _, d := range all {
		byPath[d.Path] = d
		if strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") || d.Path == "/dev/console" {
			t.Errorf("%s is the container's own", d.Path)
		}
	}
	if d := byPath["/dev/zero"]; d.Type != "c" || d.Major != 1 || d.Minor != 5 {
		t.Errorf("/dev/zero: %+v", d)
	}
	for status, want := range map[string][]string{
		"CapBnd:\t0000000000000021\n": {"CAP_CHOWN", "CAP_KILL"},
		"CapBnd:\tfffffeffffffffff":   nil, // counted below
		"CapEff:\t00\n":               nil,
		"CapBnd:\txyz\n":              nil,
	} {
		got, err := parseBounding("Name:\tx\n" + status)
		switch {
		case strings.Contains(status, "ffff"):
			if len(got) != len(capabilityNames)-1 || slices.Contains(got, "CAP_CHECKPOINT_RESTORE") {
				t.Errorf("%q: %v, %v", status, got, err)
			}
		case want == nil:
			if err == nil {
				t.Errorf("%q: %v", status, got)
			}
		case !slices.Equal(got, want) || err != nil:
			t.Errorf("%q: %v, %v", status, got, err)
		}
	}
}

func TestProbeControllers(t *testing.T) {
	for name, c := range map[string]struct {
		files         []string
		controllers   string
		swap, hugetlb bool
	}{
		"v1":              {files: []string{"memory/memory.limit_in_bytes"}},
		"v1, all":         {files: []string{"memory/memory.memsw.limit_in_bytes", "hugetlb/cgroup.procs"}, swap: true, hugetlb: true},
		"v2, all":         {files: []string{"a/memory.max", "a/memory.swap.max"}, controllers: "cpu hugetlb memory\n", swap: true, hugetlb: true},
		"v2, without":     {files: []string{"a/cgroup.procs", "b/memory.max"}, controllers: "cpu memory\n"},
		"v2, nothing yet": {controllers: "memory\n", swap: true},
	} {
		root := t.TempDir()
		for _, f := range c.files {
			write(t, filepath.Join(root, f), "")
		}
		if c.controllers != "" {
			write(t, root+"/cgroup.controllers", c.controllers)
		}
		if swap, hugetlb := probeControllers(root); swap != c.swap || hugetlb != c.hugetlb {
			t.Errorf("%s: swap %v, hugetlb %v", name, swap, hugetlb)
		}
	}
}
