package contract

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A containerRequest is CreateContainer's, with its parts at hand.
type containerRequest struct {
	*runtimeapi.CreateContainerRequest
	c *runtimeapi.ContainerConfig
	s *runtimeapi.LinuxContainerSecurityContext
}

type badContainer struct {
	by     demand
	name   string
	code   codes.Code
	text   string // what the error must name
	change func(c *containerRequest)
}

// files are what bad requests name on the host.
type files struct{ dir, file, broken, dangling, absent string }

func newFiles(t *testing.T) files {
	t.Helper()
	dir := t.TempDir()
	f := files{dir, filepath.Join(dir, "file"), filepath.Join(dir, "broken.json"), filepath.Join(dir, "dangling"), filepath.Join(dir, "no/such")}
	for name, text := range map[string]string{f.file: "text", f.broken: "{"} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), f.dangling); err != nil {
		t.Fatal(err)
	}
	return f
}

func badContainers(f files) []badContainer {
	return slices.Concat([]badContainer{
		{cri, "pod missing", invalid, "pod_sandbox_id", func(c *containerRequest) { c.PodSandboxId = "" }},
		{cri, "pod unknown", codes.NotFound, "0123", func(c *containerRequest) { c.PodSandboxId = "0123" }},
		{cri, "config missing", invalid, "config", func(c *containerRequest) { c.Config = nil }},
		{cri, "metadata missing", invalid, "config.metadata", func(c *containerRequest) { c.c.Metadata = nil }},
		{ours, "name empty", invalid, "config.metadata.name", func(c *containerRequest) { c.c.Metadata.Name = "" }},
		{ours, "name too long", invalid, "config.metadata.name", func(c *containerRequest) { c.c.Metadata.Name = strings.Repeat("n", 254) }},
		{ours, "name climbs", invalid, "config.metadata.name", func(c *containerRequest) { c.c.Metadata.Name = "../x" }},
		{ours, "name with a zero byte", invalid, "config.metadata.name", func(c *containerRequest) { c.c.Metadata.Name = "a\x00" }},
		{cri, "image missing", invalid, "config.image", func(c *containerRequest) { c.c.Image = nil }},
		{cri, "image empty", invalid, "config.image", func(c *containerRequest) { c.c.Image.Image = "" }},
		{cri, "image absent", codes.NotFound, "absent", func(c *containerRequest) { c.c.Image.Image = "127.0.0.1:1/absent:1" }},
		{cri, "image nonsense", codes.NotFound, "NOT//an image", func(c *containerRequest) { c.c.Image.Image = "NOT//an image" }},
		{cri, "image ID absent", codes.NotFound, "sha256:000", func(c *containerRequest) { c.c.Image.Image = "sha256:" + strings.Repeat("0", 64) }},
		{ours, "image handler unknown", invalid, "nosuch", func(c *containerRequest) { c.c.Image.RuntimeHandler = "nosuch" }},
		{ours, "command with a zero byte", invalid, "config.command[1]", func(c *containerRequest) { c.c.Command = []string{"a", "b\x00"} }},
		{ours, "arguments with a zero byte", invalid, "config.args[0]", func(c *containerRequest) { c.c.Args = []string{"\x00"} }},
		{ours, "working directory relative", invalid, "config.working_dir", func(c *containerRequest) { c.c.WorkingDir = "tmp" }},
		{ours, "working directory with a zero byte", invalid, "config.working_dir", func(c *containerRequest) { c.c.WorkingDir = "/a\x00" }},
		{ours, "working directory is a file", invalid, "/etc/passwd", func(c *containerRequest) { c.c.WorkingDir = "/etc/passwd" }},
		{ours, "variable without a name", invalid, "config.envs[0].key", func(c *containerRequest) { c.c.Envs = []*runtimeapi.KeyValue{{Value: []byte("x")}} }},
		{ours, "variable's name with an equals sign", invalid, "config.envs[0].key", func(c *containerRequest) { c.c.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} }},
		{ours, "variable's name with a zero byte", invalid, "config.envs[0].key", func(c *containerRequest) { c.c.Envs = []*runtimeapi.KeyValue{{Key: "A\x00"}} }},
		{ours, "variable with a zero byte", invalid, "config.envs[0].value", func(c *containerRequest) {
			c.c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("secret\x00")}}
		}},
		{ours, "variable that JSON cannot hold", codes.Unimplemented, "UTF-8", func(c *containerRequest) {
			c.c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("\xff")}}
		}},
		{ours, "log path absolute", invalid, "config.log_path", func(c *containerRequest) { c.c.LogPath = "/etc/x" }},
		{ours, "log path climbs", invalid, "config.log_path", func(c *containerRequest) { c.c.LogPath = "a/../../x" }},
		{ours, "log path is the directory", invalid, "config.log_path", func(c *containerRequest) { c.c.LogPath = "." }},
		{ours, "log path with a zero byte", invalid, "config.log_path", func(c *containerRequest) { c.c.LogPath = "a\x00" }},
		{ours, "stop signal unknown", invalid, "config.stop_signal", func(c *containerRequest) { c.c.StopSignal = 900 }},
		{ours, "stop signal negative", invalid, "config.stop_signal", func(c *containerRequest) { c.c.StopSignal = -1 }},
		{cri, "command missing", invalid, "nosuchprogram", func(c *containerRequest) { c.c.Command = []string{"nosuchprogram"} }},
		{cri, "command absolute and missing", invalid, "/no/such", func(c *containerRequest) { c.c.Command = []string{"/no/such"} }},
		{cri, "command not executable", invalid, "/etc/passwd", func(c *containerRequest) { c.c.Command = []string{"/etc/passwd"} }},
		{cri, "command a directory", invalid, "/etc", func(c *containerRequest) { c.c.Command = []string{"/etc"} }},
	}, badMounts(f), badDevices(), badContainerSecurity(f), badUsers(), badContainerResources())
}

func badMounts(f files) []badContainer {
	mount := func(m *runtimeapi.Mount) func(*containerRequest) {
		return func(c *containerRequest) {
			c.c.Mounts = []*runtimeapi.Mount{{HostPath: "/bin", ContainerPath: "/ok"}, m}
		}
	}
	image := func(image, sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: sub, ContainerPath: "/m", Readonly: true}
	}
	of := func(change func(m *runtimeapi.Mount, image string)) func(*containerRequest) {
		return func(c *containerRequest) {
			m := image(c.c.Image.GetImage(), "")
			change(m, c.c.Image.GetImage())
			c.c.Mounts = []*runtimeapi.Mount{m}
		}
	}
	const at = "config.mounts[1]."
	const volume = "desc = ImageVolumeMountFailed"
	one := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
	return []badContainer{
		{ours, "container path empty", invalid, at + "container_path", mount(&runtimeapi.Mount{HostPath: f.dir})},
		{ours, "container path relative", invalid, at + "container_path", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "m"})},
		{ours, "container path with a zero byte", invalid, at + "container_path", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m\x00"})},
		{ours, "container path is the root", invalid, at + "container_path", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/"})},
		{ours, "container path climbs to the root", invalid, at + "container_path", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/a/../../.."})},
		{ours, "host path empty", invalid, at + "host_path", mount(&runtimeapi.Mount{ContainerPath: "/m"})},
		{ours, "host path relative", invalid, at + "host_path", mount(&runtimeapi.Mount{HostPath: "bin", ContainerPath: "/m"})},
		{ours, "host path with a zero byte", invalid, at + "host_path", mount(&runtimeapi.Mount{HostPath: "/bin\x00", ContainerPath: "/m"})},
		{ours, "host path missing", failed, f.absent, mount(&runtimeapi.Mount{HostPath: f.absent, ContainerPath: "/m"})},
		{ours, "host path dangles", failed, f.dangling, mount(&runtimeapi.Mount{HostPath: f.dangling, ContainerPath: "/m"})},
		{ours, "file onto directory", invalid, "/tmp", mount(&runtimeapi.Mount{HostPath: f.file, ContainerPath: "/tmp"})},
		{ours, "directory onto file", invalid, "etc/passwd", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/etc/passwd"})},
		{ours, "mount below a file", invalid, "/etc/passwd", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/etc/passwd/x"})},
		{ours, "propagation unknown", invalid, at + "propagation", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", Propagation: 7})},
		{ours, "mount option unknown", invalid, at + "mount_options[1]", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", MountOptions: []string{"nodev", "suid"}})},
		{ours, "mount option smuggled", invalid, at + "mount_options[0]", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", MountOptions: []string{"nodev,bind"}})},
		{cri, "recursive read-only but writable", invalid, at + "recursive_read_only", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", RecursiveReadOnly: true})},
		{cri, "recursive read-only and propagated", invalid, at + "recursive_read_only", mount(&runtimeapi.Mount{
			HostPath: f.dir, ContainerPath: "/m", RecursiveReadOnly: true, Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		})},
		{ours, "user mapping alone", invalid, at + "uidMappings", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", UidMappings: one})},
		{ours, "group mapping alone", invalid, at + "uidMappings", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", GidMappings: one})},
		{ours, "empty mapping", invalid, at + "uidMappings", mount(&runtimeapi.Mount{HostPath: f.dir, ContainerPath: "/m", UidMappings: []*runtimeapi.IDMapping{{}}, GidMappings: one})},
		{cri, "image volume without a name", invalid, volume, mount(image("", ""))},
		{cri, "image volume of an absent image", codes.NotFound, volume, mount(image("127.0.0.1:1/absent:1", ""))},
		{cri, "image volume and host path", invalid, volume, of(func(m *runtimeapi.Mount, _ string) { m.HostPath = "/bin" })},
		{cri, "image volume writable", invalid, volume, of(func(m *runtimeapi.Mount, _ string) { m.Readonly = false })},
		{cri, "image volume's sub path missing", codes.NotFound, volume, of(func(m *runtimeapi.Mount, _ string) { m.ImageSubPath = "no/such" })},
		{cri, "image volume's sub path climbs", invalid, volume, of(func(m *runtimeapi.Mount, _ string) { m.ImageSubPath = "etc/../../.." })},
		{cri, "image volume's sub path absolute", invalid, volume, of(func(m *runtimeapi.Mount, _ string) { m.ImageSubPath = "/etc" })},
		{ours, "image volume's sub path with a zero byte", invalid, volume, of(func(m *runtimeapi.Mount, _ string) { m.ImageSubPath = "etc\x00" })},
	}
}

func badDevices() []badContainer {
	device := func(host, in, permissions string) func(*containerRequest) {
		return func(c *containerRequest) {
			c.c.Devices = []*runtimeapi.Device{{HostPath: host, ContainerPath: in, Permissions: permissions}}
		}
	}
	cdi := func(names ...string) func(*containerRequest) {
		return func(c *containerRequest) {
			for _, n := range names {
				c.c.CDIDevices = append(c.c.CDIDevices, &runtimeapi.CDIDevice{Name: n})
			}
		}
	}
	return []badContainer{
		{ours, "device missing", failed, "/dev/nosuch", device("/dev/nosuch", "/dev/x", "rw")},
		{ours, "device's host path relative", invalid, "config.devices[0].host_path", device("dev/zero", "/dev/x", "rw")},
		{ours, "device's host path empty", invalid, "config.devices[0].host_path", device("", "/dev/x", "rw")},
		{ours, "device's container path relative", invalid, "config.devices[0].container_path", device("/dev/zero", "dev/x", "rw")},
		{ours, "device's container path with a zero byte", invalid, "config.devices[0].container_path", device("/dev/zero", "/dev/x\x00", "rw")},
		{ours, "device permissions unknown", invalid, "config.devices[0].permissions", device("/dev/zero", "/dev/x", "rx")},
		{ours, "device permissions empty", invalid, "config.devices[0].permissions", device("/dev/zero", "/dev/x", "")},
		{ours, "device that is a file", failed, "/etc/passwd", device("/etc/passwd", "/dev/x", "rw")},
		{cri, "CDI device unresolvable", failed, "vendor.example/class=none", cdi("vendor.example/class=none")},
		{cri, "CDI device unqualified", invalid, "config.CDI_devices[0]", cdi("none")},
		{cri, "CDI device empty", invalid, "config.CDI_devices[0]", cdi("")},
		{cri, "CDI device of one letter", invalid, "config.CDI_devices[0]", cdi("a/b")},
	}
}

func badContainerSecurity(f files) []badContainer {
	const at = "config.linux.security_context."
	caps := func(c *runtimeapi.Capability) func(*containerRequest) {
		return func(r *containerRequest) { r.s.Capabilities = c }
	}
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType, path string) func(*containerRequest) {
		return func(c *containerRequest) {
			c.s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: path}
		}
	}
	const local = runtimeapi.SecurityProfile_Localhost
	namespace := func(f func(*runtimeapi.NamespaceOption)) func(*containerRequest) {
		return func(c *containerRequest) { f(c.s.NamespaceOptions) }
	}
	return []badContainer{
		{cri, "privileged in a plain pod", invalid, at + "privileged", func(c *containerRequest) { c.s.Privileged = true }},
		{ours, "capability to add unknown", invalid, at + "capabilities.add_capabilities[1]", caps(&runtimeapi.Capability{AddCapabilities: []string{"CHOWN", "FLY"}})},
		{ours, "capability to drop unknown", invalid, at + "capabilities.drop_capabilities[0]", caps(&runtimeapi.Capability{DropCapabilities: []string{"CAP_FLY"}})},
		{ours, "ambient capability unknown", invalid, at + "capabilities.add_ambient_capabilities[0]", caps(&runtimeapi.Capability{AddAmbientCapabilities: []string{""}})},
		{ours, "host network in a pod with its own", invalid, at + "namespace_options.network", namespace(func(n *runtimeapi.NamespaceOption) { n.Network = runtimeapi.NamespaceMode_NODE })},
		{ours, "host PIDs in a pod with its own", invalid, at + "namespace_options.pid", namespace(func(n *runtimeapi.NamespaceOption) { n.Pid = runtimeapi.NamespaceMode_NODE })},
		{ours, "host IPC in a pod with its own", invalid, at + "namespace_options.ipc", namespace(func(n *runtimeapi.NamespaceOption) { n.Ipc = runtimeapi.NamespaceMode_NODE })},
		{ours, "PID namespace unknown", invalid, at + "namespace_options.pid", namespace(func(n *runtimeapi.NamespaceOption) { n.Pid = 50 })},
		{cri, "target unknown", invalid, at + "namespace_options.target_id", namespace(func(n *runtimeapi.NamespaceOption) { n.Pid, n.TargetId = runtimeapi.NamespaceMode_TARGET, "0123" })},
		{cri, "target missing", invalid, at + "namespace_options.target_id", namespace(func(n *runtimeapi.NamespaceOption) { n.Pid = runtimeapi.NamespaceMode_TARGET })},
		{ours, "user namespace in a pod without one", invalid, at + "namespace_options.userns_options", namespace(func(n *runtimeapi.NamespaceOption) {
			one := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
			n.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: one, Gids: one}
		})},
		{ours, "masked path relative", invalid, at + "masked_paths[0]", func(c *containerRequest) { c.s.MaskedPaths = []string{"proc"} }},
		{ours, "masked path is the root", invalid, at + "masked_paths[1]", func(c *containerRequest) { c.s.MaskedPaths = []string{"/proc/kcore", "/"} }},
		{ours, "read-only path with a zero byte", invalid, at + "readonly_paths[0]", func(c *containerRequest) { c.s.ReadonlyPaths = []string{"/proc\x00"} }},
		{ours, "read-only path climbs to the root", invalid, at + "readonly_paths[0]", func(c *containerRequest) { c.s.ReadonlyPaths = []string{"/proc/.."} }},
		{ours, "seccomp type unknown", invalid, at + "seccomp.profile_type", seccomp(9, "")},
		{ours, "seccomp path relative", invalid, at + "seccomp.localhost_ref", seccomp(local, "a.json")},
		{ours, "seccomp path empty", invalid, at + "seccomp.localhost_ref", seccomp(local, "")},
		{ours, "seccomp path without Localhost", invalid, at + "seccomp.localhost_ref", seccomp(runtimeapi.SecurityProfile_Unconfined, f.broken)},
		{cri, "seccomp file missing", failed, "/no/profile.json", seccomp(local, "/no/profile.json")},
		{cri, "seccomp file broken", invalid, "seccomp", seccomp(local, f.broken)},
		{cri, "seccomp file a directory", failed, f.dir, seccomp(local, f.dir)},
		{ours, "old seccomp profile nonsense", invalid, at + "seccomp_profile_path", func(c *containerRequest) {
			//lint:ignore SA1019 old kubelets send only this string
			c.s.SeccompProfilePath = "nonsense"
		}},
		{ours, "AppArmor type unknown", invalid, at + "apparmor.profile_type", func(c *containerRequest) { c.s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: -3} }},
		{ours, "AppArmor profile empty", invalid, at + "apparmor.localhost_ref", func(c *containerRequest) { c.s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: local} }},
		{ours, "old AppArmor profile nonsense", invalid, at + "apparmor_profile", func(c *containerRequest) {
			//lint:ignore SA1019 old kubelets send only this string
			c.s.ApparmorProfile = "nonsense"
		}},
	}
}

func badUsers() []badContainer {
	const at = "config.linux.security_context."
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	return []badContainer{
		{ours, "user and user name", invalid, at + "run_as_username", func(c *containerRequest) { c.s.RunAsUser, c.s.RunAsUsername = id(1), "root" }},
		{cri, "group without user", invalid, at + "run_as_group", func(c *containerRequest) { c.s.RunAsGroup = id(1) }},
		{ours, "user negative", invalid, at + "run_as_user", func(c *containerRequest) { c.s.RunAsUser = id(-1) }},
		{ours, "user too large", invalid, at + "run_as_user", func(c *containerRequest) { c.s.RunAsUser = id(math.MaxUint32) }},
		{ours, "group negative", invalid, at + "run_as_group", func(c *containerRequest) { c.s.RunAsUser, c.s.RunAsGroup = id(1), id(math.MinInt64) }},
		{cri, "user name unknown", invalid, "nobodyhere", func(c *containerRequest) { c.s.RunAsUsername = "nobodyhere" }},
		{ours, "user name with a group", invalid, at + "run_as_username", func(c *containerRequest) { c.s.RunAsUsername = "root:root" }},
		{ours, "user name with a zero byte", invalid, at + "run_as_username", func(c *containerRequest) { c.s.RunAsUsername = "root\x00" }},
		{ours, "supplemental group too large", invalid, at + "supplemental_groups[0]", func(c *containerRequest) { c.s.SupplementalGroups = []int64{math.MaxInt64} }},
		{cri, "supplemental groups policy unknown", invalid, at + "supplemental_groups_policy", func(c *containerRequest) { c.s.SupplementalGroupsPolicy = 9 }},
	}
}

func badContainerResources() []badContainer {
	set := func(r *runtimeapi.LinuxContainerResources) func(*containerRequest) {
		return func(c *containerRequest) { c.c.Linux.Resources = r }
	}
	rows := []badContainer{
		{ours, "CPUs that are not there", invalid, "cpuset", set(&runtimeapi.LinuxContainerResources{CpusetCpus: "900"})},
		{ours, "memory too small to start", invalid, "memory", set(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4096})},
	}
	for _, r := range badResources {
		rows = append(rows, badContainer{ours, "resources: " + r.name, invalid, "config.linux.resources." + r.field, set(r.value)})
	}
	return rows
}

// TestContainersRefused: each mistake in a container's configuration is told
// by CreateContainer or StartContainer, never as a fault of the runtime's own;
// nothing is left, and the name can be used again.
func TestContainersRefused(t *testing.T) {
	w := shared(t)
	handlers := []string{""}
	if w.d != nil {
		handlers = []string{"crun", "runc"}
	}
	rows := badContainers(newFiles(t))
	for _, handler := range handlers {
		pod := w.podConfig("refused" + handler)
		r, err := w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, row := range rows {
			if names[row.name] {
				t.Errorf("two rows %q", row.name)
			}
			names[row.name] = true
			t.Run(handler+"/"+row.name, func(t *testing.T) { w.within(t).badContainer(r.PodSandboxId, pod, row) })
		}
	}
}

// badContainer tries one row, and then the same name without its mistake
// unless the name was the mistake.
func (w *world) badContainer(podID string, pod *runtimeapi.PodSandboxConfig, row badContainer) {
	before := w.residue()
	c := w.config("main", "true")
	request := &containerRequest{&runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod}, c, c.Linux.SecurityContext}
	row.change(request)
	w.logDir(pod, c)
	created, err := w.c.CreateContainer(w.ctx, request.CreateContainerRequest)
	id := created.GetContainerId()
	if err == nil {
		if err = w.start(id); err != nil {
			w.startRefused(id)
		}
	}
	w.refused(err, row.by, row.code, row.text)
	if id != "" {
		w.discard(id)
	}
	if after := w.residue(); !slices.Equal(before, after) {
		w.t.Errorf("left behind: %v; before: %v", after, before)
	}
}

// discard removes a container that a runtime made of a bad request. Whether it
// does so at once is another test's matter: TestRemovalForced.
func (w *world) discard(id string) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := errors.Join(w.stop(id, 0), w.remove(id))
		if err == nil {
			return
		}
		if !foreign || time.Now().After(deadline) {
			w.t.Error(err)
			return
		}
	}
}

// startRefused: what was created and does not start has ended, and says so.
func (w *world) startRefused(id string) {
	w.t.Helper()
	s := w.status(id)
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.FinishedAt == 0 {
		w.t.Errorf("status after a failed start: %v", s)
	}
	if s.ExitCode != 128 || s.Reason != "StartError" || s.Message == "" {
		differs(w.t, "status after a failed start: %d, %s, %q", s.ExitCode, s.Reason, s.Message)
	}
}

// TestLogRefused: where no log can be written, no container is made.
func TestLogRefused(t *testing.T) {
	w := shared(t)
	f := newFiles(t)
	t.Run("log directory is a file", func(t *testing.T) {
		w := w.within(t)
		pod := w.podConfig("filelog")
		pod.LogDirectory = f.file
		podID, err := w.c.RunPod(w.ctx, pod)
		if prefer(t, err, codes.OK); err == nil {
			_, err = w.create(podID, pod, w.config("c", "true"))
			prefer(t, err, failed, f.file)
		}
	})
	t.Run("log path is a directory", func(t *testing.T) {
		w := w.within(t)
		podID, pod := w.pod("dirlog")
		config := w.config("c", "true")
		if err := os.MkdirAll(filepath.Join(pod.LogDirectory, config.LogPath), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := w.create(podID, pod, config)
		prefer(t, err, failed, config.LogPath)
	})
	t.Run("the name again", func(t *testing.T) {
		w := w.within(t)
		podID, pod := w.pod("again")
		for i := range 3 {
			config := w.config("main", fmt.Sprintf("/no/such-%d", i))
			id, err := w.launch(podID, pod, config)
			want(t, err, invalid, "/no/such")
			if id != "" {
				if err := w.remove(id); err != nil {
					t.Error(err)
				}
			}
		}
		w.exit(podID, pod, w.config("main", "true"))
	})
}
