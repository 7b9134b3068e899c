package contract

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// TestContainersRun: what was asked for is what is there.
func TestContainersRun(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("run", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "net.core.somaxconn": "333"}
	})
	log := func(t *testing.T, s *runtimeapi.ContainerStatus) string {
		t.Helper()
		text, err := os.ReadFile(s.LogPath)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for line := range strings.Lines(string(text)) {
			f := strings.SplitN(line, " ", 4)
			b.WriteString(f[3])
		}
		return b.String()
	}
	sh := func(name, script string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
		c := w.config(name, "sh", "-c", script)
		for _, f := range change {
			f(c)
		}
		return c
	}
	out := func(t *testing.T, wantText string, c *runtimeapi.ContainerConfig) *runtimeapi.ContainerStatus {
		t.Helper()
		s := w.within(t).exit(podID, pod, c)
		if got := log(t, s); got != wantText {
			t.Errorf("%s: %q, want %q; %s %d", c.Metadata.Name, got, wantText, s.Reason, s.ExitCode)
		}
		return s
	}
	t.Run("codes", func(t *testing.T) {
		w := w.within(t)
		for script, wanted := range map[string]struct {
			code   int32
			reason string
		}{"exit 0": {0, "Completed"}, "exit 7": {7, "Error"}, "kill -TERM $$; sleep 1; exit 7": {7, "Error"}} { // the first process is deaf to its own
			s := w.exit(podID, pod, sh("code-"+strings.NewReplacer(" ", "-", ";", "", "$", "").Replace(script), script))
			if s.ExitCode != wanted.code {
				t.Errorf("%s: %d", script, s.ExitCode)
			}
			if s.Reason != wanted.reason {
				differs(t, "%s: %s", script, s.Reason)
			}
			if s.StartedAt == 0 || s.FinishedAt == 0 || s.StartedAt < s.CreatedAt {
				t.Errorf("%s: times %d %d %d", script, s.CreatedAt, s.StartedAt, s.FinishedAt)
			}
			if s.FinishedAt < s.StartedAt {
				differs(t, "%s: finished %d ns before it started", script, s.StartedAt-s.FinishedAt)
			}
		}
	})
	t.Run("oom", func(t *testing.T) {
		w := w.within(t)
		s := w.exit(podID, pod, sh("oom", "exec tail -c 100000000 /dev/zero", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 20 << 20}
		}))
		if s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("%v", s)
		}
		parts := []string{"the container has hit its limit of 20971520 bytes", "; the victim was "}
		if !w.bySystemd() { // it may have removed by then what tells
			parts = append(parts, "; the container has used at most ")
		}
		for _, part := range parts {
			if !strings.Contains(s.Message, part) {
				differs(t, "a message %q", s.Message)
			}
		}
	})
	t.Run("oom of the pod", func(t *testing.T) {
		w := w.within(t)
		if w.bySystemd() {
			t.Log("systemd would take the limit back")
			return
		}
		parent := fmt.Sprintf("%s/davit-test-tight-%d", w.group, os.Getpid())
		file := "/sys/fs/cgroup/memory" + parent + "/memory.limit_in_bytes"
		if onV2() {
			file = "/sys/fs/cgroup" + parent + "/memory.max"
		}
		t.Cleanup(func() { // as a kubelet does
			for _, dir := range append(glob("/sys/fs/cgroup"+parent), glob("/sys/fs/cgroup/*"+parent)...) {
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			}
		})
		podID, pod := w.pod("tight", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })
		ctr := w.run(podID, pod, sh("oompod", "while [ ! -e /go ]; do sleep 0.1; done; exec tail -c 100000000 /dev/zero"))
		if err := os.WriteFile(file, []byte("20971520"), 0); err != nil {
			t.Fatal(err)
		}
		if r, err := w.exec(ctr, 10, "touch", "/go"); err != nil || r.ExitCode != 0 {
			t.Fatal(r, err)
		}
		ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
		defer cancel()
		s, err := w.c.AwaitExit(ctx, ctr)
		if err != nil {
			t.Fatal(err)
		}
		if s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("%v", s)
		}
		for _, part := range []string{"the pod has hit its limit of 20971520 bytes (control group ", "; the container has no limit of its own; ", "; the pod has used at most ", "; the victim was "} {
			if !strings.Contains(s.Message, part) {
				differs(t, "a message %q", s.Message)
			}
		}
	})
	t.Run("oom of a child, then a stop", func(t *testing.T) {
		w := w.within(t)
		ctr := w.run(podID, pod, sh("oomchild", "tail -c 100000000 /dev/zero & trap 'exit 0' TERM; while :; do sleep 0.1; done", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 20 << 20}
		}))
		time.Sleep(700 * time.Millisecond)
		if err := w.stop(ctr, 5); err != nil {
			t.Fatal(err)
		}
		if s := w.status(ctr); s.ExitCode != 0 {
			t.Error(s)
		} else if s.Reason != "Completed" {
			differs(t, "exit code 0 with the reason %s", s.Reason)
		}
	})
	t.Run("env", func(t *testing.T) {
		c := sh("env", `echo "$A|$B|$C|$LONG"`)
		c.Envs = []*runtimeapi.KeyValue{
			{Key: "A", Value: []byte("ü \"q\" $x")}, {Key: "B", Value: []byte("")}, {Key: "C", Value: []byte("x")}, {Key: "C", Value: []byte("last")},
			{Key: "LONG", Value: bytes.Repeat([]byte("y"), 100)},
		}
		out(t, "ü \"q\" $x||last|"+strings.Repeat("y", 100)+"\n", c)
	})
	t.Run("working dir", func(t *testing.T) {
		c := sh("cwd", "pwd")
		c.WorkingDir = "/made/for/this"
		out(t, "/made/for/this\n", c)
	})
	t.Run("working dir below a symbolic link", func(t *testing.T) {
		c := sh("cwdlink", "pwd -P")
		c.WorkingDir = "/var/run/x"
		out(t, "/var/run/x\n", c)
	})
	t.Run("sysctls", func(t *testing.T) {
		out(t, "1\n1\n333\n", sh("sysctl", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn"))
	})
	t.Run("privileged", func(t *testing.T) {
		w := w.within(t)
		c := sh("priv", "grep CapEff /proc/self/status | cut -f2; test -w /proc/sys/kernel/hostname && echo rw; test -e /dev/loop-control -o -e /dev/kmsg -o -e /dev/mem && echo dev; grep Seccomp: /proc/self/status | cut -f2")
		c.Linux.SecurityContext.Privileged = true
		c.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
		id, err := w.launch(podID, pod, c)
		if err != nil && foreign && !allCapabilities(t) {
			t.Skipf("not all capabilities can be given here: %v", err)
		}
		must(t, err, codes.OK)
		s, err := w.c.AwaitExit(w.ctx, id)
		must(t, err, codes.OK)
		t.Log(log(t, s))
	})
	t.Run("capabilities", func(t *testing.T) {
		c := sh("caps", "grep -E 'Cap(Eff|Prm|Bnd|Amb)' /proc/self/status | cut -f2")
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE", "CHOWN"}}
		out(t, strings.Repeat("0000000000000401\n", 3)+"0000000000000000\n", c)
	})
	t.Run("capabilities, written otherwise", func(t *testing.T) {
		w := w.within(t)
		c := sh("caps1", "grep CapEff /proc/self/status | cut -f2")
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"net_bind_service", "CAP_CHOWN"}}
		id, err := w.launch(podID, pod, c)
		if prefer(t, err, codes.OK); err != nil {
			return
		}
		if s, err := w.c.AwaitExit(w.ctx, id); err != nil {
			t.Error(err)
		} else if got := log(t, s); got != "0000000000000401\n" {
			differs(t, "capabilities %q", got)
		}
	})
	t.Run("ambient capabilities", func(t *testing.T) {
		c := sh("caps2", "grep -E 'Cap(Eff|Prm|Bnd|Amb)' /proc/self/status | cut -f2")
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"CHOWN"}}
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		out(t, strings.Repeat("0000000000000001\n", 4), c)
	})
	t.Run("user", func(t *testing.T) {
		c := sh("user", "id -u; id -g; id -G")
		c.Linux.SecurityContext.RunAsUsername = "web"
		c.Linux.SecurityContext.SupplementalGroups = []int64{4242}
		s := out(t, "1000\n1000\n1000 2000 4242\n", c)
		u := s.User.GetLinux()
		if u.GetUid() != 1000 || u.GetGid() != 1000 || len(u.GetSupplementalGroups()) != 3 {
			t.Errorf("user in status: %v", u)
		}
		c = sh("user2", "id -u; id -g; id -G")
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 7}
		c.Linux.SecurityContext.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		out(t, "1000\n7\n7\n", c)
	})
	t.Run("mounts", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("f\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(dir, dir+"-link"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir + "-link") })
		c := sh("mounts", "cat /a/f /new/file; touch /ro/x 2>/dev/null || echo ro; touch /a/made; grep -c noexec /proc/self/mounts >/dev/null; /x/true 2>/dev/null || echo noexec")
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: dir + "-link", ContainerPath: "/a"}, {HostPath: dir, ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(dir, "f"), ContainerPath: "/new/file"},
			{HostPath: "/bin", ContainerPath: "/x", Readonly: true, MountOptions: []string{"noexec", "nodev", "nosuid"}},
		}
		s := out(t, "f\nf\nro\nnoexec\n", c)
		told(t, s.Mounts, c.Mounts)
		if _, err := os.Stat(filepath.Join(dir, "made")); err != nil {
			t.Error(err)
		}
	})
	t.Run("device", func(t *testing.T) {
		c := sh("device", "test -c /dev/other && head -c 3 /dev/other | wc -c")
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/other", Permissions: "r"}}
		out(t, "3\n", c)
	})
	t.Run("target", func(t *testing.T) {
		w := w.within(t)
		target := w.run(podID, pod, w.config("target", "sleep", "1234"))
		c := sh("joins", "ps | grep -c '[1]234'")
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
		out(t, "1\n", c)
		if err := w.stop(target, 0); err != nil {
			t.Fatal(err)
		}
		c = sh("toolate", "true")
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
		_, err := w.create(podID, pod, c)
		want(t, err, codes.FailedPrecondition, target)
	})
	t.Run("data kept", func(t *testing.T) {
		w := w.within(t)
		c := w.config(strings.Repeat("n", 63), "true")
		c.Labels, c.Annotations = texts()
		s := w.exit(podID, pod, c)
		if !proto.Equal(c.Metadata, s.Metadata) {
			t.Errorf("%v, want %v", s.Metadata, c.Metadata)
		}
		kept(t, s.Labels, c.Labels, s.Annotations, c.Annotations)
		w.restart()
		if after := w.status(s.Id); !proto.Equal(s, after) {
			t.Errorf("after a restart %v, before %v", after, s)
		}
	})
	t.Run("logs reopened", func(t *testing.T) {
		w := w.within(t)
		ctr := w.run(podID, pod, sh("reopen", "while :; do echo x; sleep 0.05; done"))
		path := w.status(ctr).LogPath
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.c.ReopenContainerLog(w.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: ctr}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		if err := w.stop(ctr, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, path+".2"); err != nil {
			t.Fatal(err)
		}
		_, err := w.c.ReopenContainerLog(w.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: ctr})
		prefer(t, err, codes.FailedPrecondition, ctr)
		if _, there := os.Stat(path); (err == nil) != (there == nil) {
			t.Errorf("reopened: %v; the log: %v", err, there)
		}
	})
}

// TestImageVolumes: an image's VOLUMEs are the container's own, filled, and go with it.
func TestImageVolumes(t *testing.T) {
	w := shared(t)
	files, err := testkit.BusyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, testkit.File{Name: "data/", Mode: 0o1750, UID: 1000, GID: 1000}, testkit.File{Name: "data/seed", Data: []byte("seed\n"), UID: 1000, Mode: 0o640})
	spec := testkit.ImageSpec{Layers: [][]testkit.File{files}}
	spec.Config.Volumes = map[string]struct{}{"/data": {}, "/:x": {}, "relative": {}, "C:/x": {}}
	spec.Config.StopSignal = "SIGUSR1"
	spec.Config.Env = []string{"PATH=/bin"}
	img, err := testkit.NewImage(spec)
	if err != nil {
		t.Fatal(err)
	}
	image := w.push("contract/volumes:1", img)
	if _, err := w.c.Pull(w.ctx, image); err != nil {
		t.Fatal(err)
	}
	podID, pod := w.pod("volumes")
	c := w.configOf(image, "main", "sh", "-c", "cat /data/seed; stat -c %a:%u:%g /data /data/seed; echo mine >/data/seed; test -d /:x && test -d /relative && test -d /C:/x && echo all")
	s := w.exit(podID, pod, c)
	text, _ := os.ReadFile(s.LogPath)
	for _, part := range []string{"seed\n", "1750:1000:1000", "640:1000:0", "all\n"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("no %q in:\n%s", part, text)
		}
	}
	if s.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR1 {
		differs(t, "stop signal %v", s.StopSignal)
	}
}

// allCapabilities reports whether this process could have every capability that the kernel knows.
func allCapabilities(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	_, bounding, _ := strings.Cut(string(status), "CapBnd:")
	var have, highest uint64
	_, _ = fmt.Sscanf(bounding, "%x", &have)
	_, _ = fmt.Sscan(string(last), &highest)
	return have == 1<<(highest+1)-1
}

// told requires a status to name the mounts that were asked for, each from the
// path that was named or from where that leads.
func told(t *testing.T, got, asked []*runtimeapi.Mount) {
	t.Helper()
	for i, m := range asked {
		real, err := filepath.EvalSymlinks(m.HostPath)
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(got, func(g *runtimeapi.Mount) bool {
			return g.ContainerPath == m.ContainerPath && g.Readonly == m.Readonly && g.Propagation == m.Propagation &&
				(g.HostPath == m.HostPath || g.HostPath == real)
		})
		if at < 0 {
			t.Errorf("mount %v is not in the status: %v", m, got)
		} else if at != i || got[at].HostPath != m.HostPath {
			differs(t, "mount %d is told as mount %d, %v", i, at, got[at])
		}
	}
}
