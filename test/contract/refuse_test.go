package contract

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// TestContainersRefused: each mistake in a container's configuration is told
// by CreateContainer or StartContainer with a code that is not davit's own
// fault, and its name can be used again.
func TestContainersRefused(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("refused")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	broken, fifo := filepath.Join(dir, "broken.json"), filepath.Join(dir, "dangling")
	for name, text := range map[string]string{file: "text", broken: "{"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", fifo); err != nil {
		t.Fatal(err)
	}
	mount := func(host, at string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: at}}
		}
	}
	security := func(f func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
	}
	resources := func(r *runtimeapi.LinuxContainerResources) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
	}
	seccomp := func(path string) func(*runtimeapi.ContainerConfig) {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}
		})
	}
	cases := []struct {
		name   string
		change func(*runtimeapi.ContainerConfig)
		code   codes.Code
		text   string
	}{
		{"no metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, "metadata"},
		{"image absent", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "127.0.0.1:1/absent:1" }, codes.NotFound, "absent"},
		{"image nonsense", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "NOT//an image" }, codes.NotFound, ""},
		{"host path missing", mount("/no/such/path", "/m"), codes.FailedPrecondition, "/no/such/path"},
		{"host path dangles", mount(fifo, "/m"), codes.FailedPrecondition, fifo},
		{"file onto directory", mount(file, "/tmp"), codes.InvalidArgument, "/tmp"},
		{"directory onto file", mount(dir, "/etc/passwd"), codes.InvalidArgument, "etc/passwd"},
		{"mount on root", mount(dir, "/"), codes.InvalidArgument, ""},
		{"mount below a file", mount(dir, "/etc/passwd/x"), codes.InvalidArgument, "/etc/passwd"},
		{"seccomp file missing", seccomp("/no/profile.json"), codes.FailedPrecondition, "/no/profile.json"},
		{"seccomp file broken", seccomp(broken), codes.InvalidArgument, "seccomp"},
		{"seccomp file a directory", seccomp(dir), codes.FailedPrecondition, dir},
		{"device missing", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/nosuch", ContainerPath: "/dev/x", Permissions: "rw"}}
		}, codes.FailedPrecondition, "/dev/nosuch"},
		{"user unknown", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "nobodyhere" }), codes.InvalidArgument, "nobodyhere"},
		{"working dir a file", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, codes.InvalidArgument, "/etc/passwd"},
		{"capability unknown", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		}), codes.InvalidArgument, "FLY"},
		{"target unknown", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "0123"}
		}), codes.InvalidArgument, "target_id"},
		{"privileged in a plain pod", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), codes.InvalidArgument, "privileged"},
		{"log path climbs", func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../x" }, codes.InvalidArgument, "log_path"},
		{"cpuset beyond", resources(&runtimeapi.LinuxContainerResources{CpusetCpus: "900"}), codes.InvalidArgument, "cpuset"},
		{"memory too small", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4096}), codes.InvalidArgument, "memory"},
		{"stop signal unknown", func(c *runtimeapi.ContainerConfig) { c.StopSignal = 900 }, codes.InvalidArgument, "stop_signal"},
		{"command missing", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"nosuchprogram"} }, codes.InvalidArgument, "nosuchprogram"},
		{"command absolute and missing", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such"} }, codes.InvalidArgument, "/no/such"},
		{"command not executable", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/etc/passwd"} }, codes.InvalidArgument, "/etc/passwd"},
		{"command a directory", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/etc"} }, codes.InvalidArgument, "/etc"},
	}
	for _, handler := range []string{"crun", "runc"} {
		id, pod := podID, pod
		if handler == "runc" {
			pod = testkit.PodConfig("refused-runc", w.d.Logs)
			r, err := w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "runc"})
			if err != nil {
				t.Fatal(err)
			}
			id = r.PodSandboxId
		}
		for _, c := range cases {
			t.Run(handler+"/"+c.name, func(t *testing.T) {
				w := w.within(t)
				if err := os.Chmod(file, 0o755); err != nil {
					t.Fatal(err)
				}
				config := w.config("main", "true")
				c.change(config)
				ctr, err := w.c.RunContainer(w.ctx, id, pod, config)
				want(t, err, c.code, c.text)
				if ctr != "" {
					s := w.status(ctr)
					if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" || s.FinishedAt == 0 || s.Message == "" {
						t.Errorf("status after a failed start: %v", s)
					}
					if err := w.remove(ctr); err != nil {
						t.Error(err)
					}
				}
				// The name is free.
				w.exit(id, pod, w.config("main", "true"))
				list, err := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}})
				if err != nil || len(list.Containers) != 1 {
					t.Fatalf("containers: %v, %v; want one", list, err)
				}
				if err := w.remove(list.Containers[0].Id); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
