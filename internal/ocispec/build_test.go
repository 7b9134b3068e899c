package ocispec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// An alter changes the input of one test.
type alter func(in *Input)

// given returns an input like the kubelet's for a plain container.
func given(alters ...alter) Input {
	in := Input{
		ID:  strings.Repeat("ab", 32),
		Pod: &runtimeapi.PodSandboxConfig{Hostname: "web-0", Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}}},
		Container: &runtimeapi.ContainerConfig{
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
			},
		},
		Image:        imagespec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}},
		User:         User{Home: "/root", AdditionalGids: []uint32{0}},
		Rootfs:       "/rootfs",
		CgroupsPath:  "/davit/c1",
		Namespaces:   Namespaces{Net: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts"},
		Files:        Files{ResolvConf: "/run/resolv.conf", Hostname: "/run/hostname", Shm: "/run/shm"},
		Capabilities: slices.Clone(capabilityNames),
		Found:        Found{Hostname: "node"},
	}
	for _, a := range alters {
		a(&in)
	}
	return in
}

func secure(f func(sc *runtimeapi.LinuxContainerSecurityContext)) alter {
	return func(in *Input) { f(in.Container.Linux.SecurityContext) }
}

func limited(f func(r *runtimeapi.LinuxContainerResources)) alter {
	return func(in *Input) { f(in.Container.Linux.Resources) }
}

func mounted(m ...*runtimeapi.Mount) alter {
	return func(in *Input) { in.Container.Mounts = m }
}

func privileged(in *Input) {
	in.Container.Linux.SecurityContext.Privileged = true
	in.Pod.Linux.SecurityContext.Privileged = true
}

func TestGolden(t *testing.T) {
	for name, in := range map[string]Input{
		"kubelet": given(func(in *Input) {
			c := in.Container
			c.Command, c.Args, c.WorkingDir = []string{"/bin/server"}, []string{"--port", "80"}, "srv"
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "PATH", Value: []byte("/bin")}, {Key: "A", Value: []byte("2")}}
			c.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/data/cache/deep", HostPath: "/vol/deep"},
				{ContainerPath: "/data", HostPath: "/vol/link", Readonly: true},
				{ContainerPath: "/etc/hosts", HostPath: "/pod/etc-hosts"},
				{ContainerPath: "/dev/termination-log", HostPath: "/pod/log"},
			}
			in.Found.Sources = map[string]string{"/vol/link": "/vol/data"}
			in.Found.SwapAccounting = true
			r := c.Linux.Resources
			r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemoryLimitInBytes, r.OomScoreAdj = 100000, 50000, 512, 64<<20, 985
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}
			sc := c.Linux.SecurityContext
			sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
			sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
			sc.Seccomp = &runtimeapi.SecurityProfile{}
			in.User = User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 7}, Home: "/home/web"}
			in.Annotations = map[string]string{"run.oci.seccomp_bpf_data": "AA=="}
			c.Annotations = map[string]string{"run.oci.hooks.stdout": "/etc/shadow"} // must not get in
		}),
		"privileged-v2": given(privileged, func(in *Input) {
			in.CgroupV2, in.MinOOMScoreAdj, in.Found.Hugetlb = true, -500, true
			in.Namespaces = Namespaces{}
			in.Pod.Hostname = ""
			in.Files = Files{}
			in.Container.Tty = true
			in.Devices = []Device{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232, Mode: 0o660, GID: 104}, {Path: "/dev/vda", Type: "b", Major: 254}}
			in.Container.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE}
			in.Container.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
			r := in.Container.Linux.Resources
			r.OomScoreAdj = -997
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
			r.Unified = map[string]string{"memory.high": "max"}
		}),
		"bare": given(func(in *Input) { in.Container.Linux = nil }), // no security context: masked by default
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			s.Linux.Seccomp = nil // hundreds of lines, and the kernel's version matters; see TestSeccomp
			got, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("differs from %s (-update writes it):\n%s", file, d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	for _, c := range []struct {
		name string
		with alter
		kind fault.Kind
		text string // in the error
	}{
		{"no command", func(in *Input) { in.Image = imagespec.ImageConfig{} }, fault.Invalid, "no command"},
		{"zero byte in argument", func(in *Input) { in.Container.Args = []string{"a\x00b"} }, fault.Invalid, "zero byte"},
		{"environment name", func(in *Input) { in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} }, fault.Invalid, "A=B"},
		{"environment bytes", func(in *Input) { in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0xff}}} }, fault.Unimplemented, "UTF-8"},
		{"relative root", func(in *Input) { in.Rootfs = "rootfs" }, fault.Internal, "absolute"},
		{"privileged in a plain pod", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Privileged = true }), fault.Invalid, "privileged pod"},
		{"target without path", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		}), fault.Internal, "target"},
		{"capability", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"NET_ADMIM"}}
		}), fault.Invalid, `"NET_ADMIM"`},
		{"no host path", mounted(&runtimeapi.Mount{ContainerPath: "/i"}), fault.Invalid, `host path ""`},
		{"no container path", mounted(&runtimeapi.Mount{HostPath: "/i"}), fault.Invalid, "no container path"},
		{"ID-mapped", mounted(&runtimeapi.Mount{ContainerPath: "/i", HostPath: "/h", UidMappings: []*runtimeapi.IDMapping{{}}}), fault.Internal, "ID-mapped"},
		{"propagation", mounted(&runtimeapi.Mount{ContainerPath: "/i", HostPath: "/h", Propagation: 9}), fault.Invalid, "propagation"},
		{"mount option", mounted(&runtimeapi.Mount{ContainerPath: "/i", HostPath: "/h", MountOptions: []string{"exec"}}), fault.Invalid, `"exec"`},
		{"recursive", mounted(&runtimeapi.Mount{ContainerPath: "/i", HostPath: "/h", RecursiveReadOnly: true, Readonly: true}), fault.Internal, "read-only"},
		{"swap alone", limited(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 0, 200 }),
			fault.Invalid, "memory_swap_limit_in_bytes"},
		{"huge pages", limited(func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}}
		}), fault.Precondition, "1GB"},
		{"unified on v1", limited(func(r *runtimeapi.LinuxContainerResources) { r.Unified = map[string]string{"memory.min": "1"} }), fault.Invalid, "v2"},
		{"negative shares", limited(func(r *runtimeapi.LinuxContainerResources) { r.CpuShares = -1 }), fault.Invalid, "negative"},
		{"no device", func(in *Input) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/x", ContainerPath: "/dev/x"}}
		}, fault.Precondition, "/dev/x"},
		{"device permissions", func(in *Input) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/x", ContainerPath: "/dev/x", Permissions: "rx"}}
		}, fault.Invalid, `"rx"`},
		{"seccomp, relative", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "p.json")
		}), fault.Invalid, "absolute"},
		{"seccomp, type", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Seccomp = profile(7, "") }), fault.Invalid, "type 7"},
		{"seccomp, string", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SeccompProfilePath = "none" }), fault.Invalid, `"none"`},
		{"seccomp, not JSON", secure(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/p.json")
		}), fault.Invalid, "seccomp profile"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Build(given(c.with))
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v (%v), want %v with %q", err, fault.KindOf(err), c.kind, c.text)
			}
		})
	}
}

func TestCommand(t *testing.T) {
	for _, c := range []struct{ entrypoint, cmd, command, args, want string }{
		{"e", "c", "", "", "e c"},
		{"e", "c", "k", "", "k"}, // the image's command goes with its entrypoint
		{"e", "c", "", "a", "e a"},
		{"e", "c", "k", "a", "k a"},
		{"", "c", "", "", "c"},
		{"", "c", "", "a", "a"},
	} {
		in := given(func(in *Input) {
			in.Image = imagespec.ImageConfig{Entrypoint: strings.Fields(c.entrypoint), Cmd: strings.Fields(c.cmd)}
			in.Container.Command, in.Container.Args = strings.Fields(c.command), strings.Fields(c.args)
		})
		if got, err := commandLine(in); err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
}

func TestWorkingDir(t *testing.T) {
	for _, c := range []struct{ image, container, want string }{
		{"", "", "/"}, {"/srv", "", "/srv"}, {"/srv", "/data", "/data"}, {"srv", "", "/srv"}, {"", "../../etc/", "/etc"},
	} {
		s, err := Build(given(func(in *Input) { in.Image.WorkingDir, in.Container.WorkingDir = c.image, c.container }))
		if err != nil || s.Process.Cwd != c.want {
			t.Errorf("%+v: got %v, %v", c, s, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	some := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"}
	for _, c := range []struct{ add, drop, ambient, allowed, want, wantAmbient string }{
		{allowed: strings.Join(capabilityNames, " "), want: strings.Join(defaultCapabilities, " ")},
		{want: "CAP_CHOWN CAP_KILL"}, // of the defaults, what this process has itself
		{add: "net_admin", want: "CAP_CHOWN CAP_KILL CAP_NET_ADMIN"},
		{add: "CAP_Net_Admin NET_ADMIN", want: "CAP_CHOWN CAP_KILL CAP_NET_ADMIN"},
		{add: "SYS_TIME", want: "CAP_CHOWN CAP_KILL"},
		{add: "all", want: strings.Join(some, " ")},
		{add: "ALL", drop: "KILL", want: "CAP_CHOWN CAP_NET_ADMIN CAP_SYS_ADMIN"},
		{drop: "ALL", want: ""},
		{add: "KILL", drop: "ALL", want: "CAP_KILL"},
		{add: "KILL", drop: "kill", want: "CAP_CHOWN"},
		{ambient: "KILL", want: "CAP_CHOWN CAP_KILL", wantAmbient: "CAP_KILL"},
		{drop: "ALL", ambient: "SYS_ADMIN", want: "CAP_SYS_ADMIN", wantAmbient: "CAP_SYS_ADMIN"},
		{drop: "KILL", ambient: "KILL", want: "CAP_CHOWN"},
	} {
		allowed := some
		if c.allowed != "" {
			allowed = strings.Fields(c.allowed)
		}
		sc := &runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{
			AddCapabilities: strings.Fields(c.add), DropCapabilities: strings.Fields(c.drop), AddAmbientCapabilities: strings.Fields(c.ambient),
		}}
		got, err := capabilities(sc, allowed)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		given, ambient := strings.Fields(c.want), strings.Fields(c.wantAmbient)
		want := capabilitySets(given, ambient)
		if d := cmp.Diff(want, got, cmp.Transformer("set", func(s []string) string { return strings.Join(s, " ") })); d != "" {
			t.Errorf("%+v: %s", c, d)
		}
	}
}

func TestMounts(t *testing.T) {
	find := func(s *specs.Spec, at string) []string {
		var all []string
		for _, m := range s.Mounts {
			if m.Destination == at {
				all = append(all, m.Source+" "+strings.Join(m.Options, ","))
			}
		}
		return all
	}
	const shared, slave = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	for _, c := range []struct {
		name string
		with alter
		at   string
		want []string
		root string // propagation
	}{
		{"private", mounted(&runtimeapi.Mount{ContainerPath: "v/", HostPath: "/h"}), "/v", []string{"/h rbind,rprivate,rw"}, ""},
		{"slave", mounted(&runtimeapi.Mount{ContainerPath: "/v", HostPath: "/h", Propagation: slave}), "/v", []string{"/h rbind,rslave,rw"}, "rslave"},
		{"shared wins", mounted(
			&runtimeapi.Mount{ContainerPath: "/v", HostPath: "/h", Propagation: shared},
			&runtimeapi.Mount{ContainerPath: "/w", HostPath: "/h", Propagation: slave},
		), "/v", []string{"/h rbind,rshared,rw"}, "rshared"},
		{"options", mounted(&runtimeapi.Mount{ContainerPath: "/v", HostPath: "/h", Readonly: true, MountOptions: []string{"noexec", "nosuid"}}),
			"/v", []string{"/h rbind,rprivate,ro,noexec,nosuid"}, ""},
		{"sysfs", func(*Input) {}, "/sys", []string{"sysfs nosuid,noexec,nodev,ro"}, ""},
		{"the host's sysfs", func(in *Input) { in.Files.Sys = "/run/sys" }, "/sys", []string{"/run/sys rbind,rprivate,nosuid,noexec,nodev,ro"}, ""},
		{"resolv.conf", given1, "/etc/resolv.conf", []string{"/run/resolv.conf rbind,rprivate,rw"}, ""},
		{"resolv.conf of the container's", mounted(&runtimeapi.Mount{ContainerPath: "/etc/resolv.conf", HostPath: "/h"}),
			"/etc/resolv.conf", []string{"/h rbind,rprivate,rw"}, ""},
		{"sys", given1, "/sys", []string{"sysfs nosuid,noexec,nodev,ro"}, ""},
		{"sys, privileged", privileged, "/sys", []string{"sysfs nosuid,noexec,nodev,rw"}, ""},
		{"dev of the host", mounted(&runtimeapi.Mount{ContainerPath: "/dev", HostPath: "/dev"}), "/dev/shm", nil, ""},
		{"below dev of the host", mounted(&runtimeapi.Mount{ContainerPath: "/dev/log", HostPath: "/h"}, &runtimeapi.Mount{ContainerPath: "/dev", HostPath: "/dev"}),
			"/dev/log", []string{"/h rbind,rprivate,rw"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Build(given(c.with))
			if err != nil {
				t.Fatal(err)
			}
			if got := find(s, c.at); !slices.Equal(got, c.want) {
				t.Errorf("at %s: got %q, want %q", c.at, got, c.want)
			}
			if s.Linux.RootfsPropagation != c.root {
				t.Errorf("root is %q, want %q", s.Linux.RootfsPropagation, c.root)
			}
			for i, m := range s.Mounts {
				for _, later := range s.Mounts[i+1:] {
					if strings.HasPrefix(m.Destination, later.Destination+"/") {
						t.Errorf("%s comes before %s, and is covered by it", m.Destination, later.Destination)
					}
				}
			}
		})
	}
}

func given1(*Input) {}

func TestSwapAndOOM(t *testing.T) {
	for _, c := range []struct {
		memory, swap int64
		accounting   bool
		want         int64 // -2: unset
	}{
		{100, 0, true, 100}, {100, 150, true, 150}, {100, 150, false, -2}, {0, 0, true, -2}, {-1, 0, true, -1}, {0, -1, true, -2},
	} {
		in := given(limited(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = c.memory, c.swap
		}))
		in.Found.SwapAccounting = c.accounting
		r, err := resources(in)
		got := int64(-2)
		if err == nil && r.Memory != nil && r.Memory.Swap != nil {
			got = *r.Memory.Swap
		}
		if err != nil || got != c.want {
			t.Errorf("%+v: got %d, %v", c, got, err)
		}
	}
	for _, c := range [][3]int{{-997, -1000, -997}, {-997, 0, 0}, {-5000, -1000, -1000}, {5000, 0, 1000}, {0, 100, 100}} {
		in := given(limited(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = int64(c[0]) }))
		in.MinOOMScoreAdj = c[1]
		if got := *oomScoreAdj(in); got != c[2] {
			t.Errorf("%d, at least %d: got %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

func TestDevices(t *testing.T) {
	in := given(func(in *Input) {
		in.Container.Devices = []*runtimeapi.Device{
			{HostPath: "/dev/snd", ContainerPath: "/dev/sound", Permissions: "rw"},
			{HostPath: "/dev/kvm", ContainerPath: "/dev/kvm"},
		}
		in.Found.Devices = map[string][]Device{
			"/dev/snd": {{Path: "/dev/snd/a/pcm", Type: "c", Major: 116, Minor: 2, Mode: 0o660, GID: 29}},
			"/dev/kvm": {{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}},
		}
	})
	nodes, rules, err := devices(in)
	if err != nil || len(nodes) != 2 || nodes[0].Path != "/dev/sound/a/pcm" || nodes[1].Path != "/dev/kvm" {
		t.Fatalf("%+v, %v", nodes, err)
	}
	added := rules[len(defaultDeviceRules):]
	if len(added) != 2 || added[0].Access != "rw" || *added[0].Minor != 2 || added[1].Access != "rwm" {
		t.Errorf("%+v", added)
	}
	if len(defaultDeviceRules) != 12 || defaultDeviceRules[0].Allow {
		t.Error("the default rules were changed, or do not begin with a refusal")
	}

	privileged(&in)
	in.Devices = []Device{{Path: "/dev/kvm", Type: "c"}, {Path: "/dev/vda", Type: "b"}}
	nodes, rules, err = devices(in)
	if err != nil || len(nodes) != 3 || len(rules) != 1 || !rules[0].Allow {
		t.Errorf("privileged: %+v, %+v, %v", nodes, rules, err)
	}
}

func TestNamespaces(t *testing.T) {
	types := func(in Input) string {
		var all []string
		for _, n := range namespaces(in) {
			all = append(all, strings.TrimSuffix(string(n.Type)+":"+n.Path, ":"))
		}
		return strings.Join(all, " ")
	}
	pid := func(m runtimeapi.NamespaceMode, path string) alter {
		return func(in *Input) {
			in.Container.Linux.SecurityContext.NamespaceOptions.Pid, in.Namespaces.PID = m, path
		}
	}
	const joined = " network:/ns/net ipc:/ns/ipc uts:/ns/uts"
	for want, in := range map[string]Input{
		"mount pid" + joined:                given(),
		"mount pid:/ns/pid" + joined:        given(pid(runtimeapi.NamespaceMode_POD, "/ns/pid")),
		"mount pid:/proc/7/ns/pid" + joined: given(pid(runtimeapi.NamespaceMode_TARGET, "/proc/7/ns/pid")),
		"mount" + joined:                    given(pid(runtimeapi.NamespaceMode_NODE, "")),
		"mount pid cgroup" + joined:         given(func(in *Input) { in.CgroupV2 = true }),
		"mount pid":                         given(func(in *Input) { in.Namespaces = Namespaces{} }),
	} {
		if got := types(in); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	const unconfined, local = runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_Localhost
	profile := []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`)
	build := func(alters ...alter) *specs.LinuxSeccomp {
		s, err := Build(given(append(alters, func(in *Input) { in.Found.Seccomp = profile })...))
		if err != nil {
			t.Fatal(err)
		}
		return s.Linux.Seccomp
	}
	field := func(kind runtimeapi.SecurityProfile_ProfileType) alter {
		return secure(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: "/p"}
		})
	}
	text := func(s string) alter {
		return secure(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SeccompProfilePath = s })
	}
	admin := secure(func(sc *runtimeapi.LinuxContainerSecurityContext) {
		sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	})
	standard, own := build(field(0)), build(field(local))
	if standard.DefaultAction != specs.ActErrno || len(own.Syscalls) != 1 {
		t.Fatalf("default %v, localhost %+v", standard.DefaultAction, own)
	}
	a, b := SeccompKey(standard), SeccompKey(own)
	for name, got := range map[string]struct{ key, want string }{
		"none":                     {SeccompKey(build()), ""},
		"unconfined":               {SeccompKey(build(field(unconfined))), ""},
		"unconfined, old":          {SeccompKey(build(text("unconfined"))), ""},
		"default, old":             {SeccompKey(build(text("runtime/default"))), a},
		"default of docker's name": {SeccompKey(build(text("docker/default"))), a},
		"localhost, old":           {SeccompKey(build(text("localhost//p"))), b},
		"the newer field wins":     {SeccompKey(build(field(unconfined), text("runtime/default"))), ""},
		"privileged":               {SeccompKey(build(privileged, field(0))), ""},
	} {
		if got.key != got.want {
			t.Errorf("%s: key %q, want %q", name, got.key, got.want)
		}
	}
	if SeccompKey(build(field(0), admin)) == a {
		t.Error("CAP_SYS_ADMIN makes no difference to the default profile")
	}
}

// FuzzSeccomp feeds Localhost profiles, which are files by anybody.
func FuzzSeccomp(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":[]}],"syscalls":[{"name":"a","action":"SCMP_ACT_ERRNO","includes":{"minKernel":"4.8"}}]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"syscalls":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		in := given(secure(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SeccompProfilePath = "localhost//p" }))
		in.Found.Seccomp = text
		if s, err := Build(in); err == nil {
			SeccompKey(s.Linux.Seccomp)
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	in := given(secure(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Seccomp = &runtimeapi.SecurityProfile{} }))
	for b.Loop() {
		s, err := Build(in)
		if err != nil {
			b.Fatal(err)
		}
		SeccompKey(s.Linux.Seccomp)
	}
}
