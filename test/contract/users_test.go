package contract

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

const firstID = 200000 // on the host, of the pods here

// withUsers gives a pod a user namespace.
func withUsers(p *runtimeapi.PodSandboxConfig) {
	p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: mapping(), Gids: mapping(),
	}
}

func mapping() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: 0, HostId: firstID, Length: 65536}}
}

// podOf runs a pod of a handler.
func (w *world) podOf(handler, name string, change ...func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	w.t.Helper()
	config := testkit.PodConfig(name, w.d.Logs)
	for _, f := range change {
		f(config)
	}
	r, err := w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := w.c.RemovePod(context.Background(), r.PodSandboxId); err != nil {
			w.t.Error(err)
		}
	})
	return r.PodSandboxId, config
}

// says requires that a command in a container prints this.
func (w *world) says(id, wanted string, command ...string) {
	w.t.Helper()
	r, err := w.exec(id, 20, command...)
	if err != nil {
		w.t.Errorf("%q: %v", command, err)
		return
	}
	if got := strings.TrimSpace(string(r.Stdout) + string(r.Stderr)); got != wanted {
		w.t.Errorf("%q: %q, want %q (code %d)", command, got, wanted, r.ExitCode)
	}
}

// A pod with a user namespace is as any other, seen from inside; on the host
// its files and processes are nobody's.
func TestUserNamespace(t *testing.T) {
	w := newWorld(t, "")
	var status *runtimeapi.StatusResponse
	w.await("trials of what the OCI runtimes can do", func() bool { // they go on after davitd began to serve
		r, err := w.c.RuntimeServiceClient.Status(w.ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		status = r
		return !slices.ContainsFunc(r.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool {
			return !h.Features.UserNamespaces || !h.Features.RecursiveReadOnlyMounts
		})
	})
	if !status.Features.UserNamespacesHostNetwork {
		t.Error("not on the host's network")
	}
	for _, handler := range []string{"crun", "runc"} {
		t.Run(handler, func(t *testing.T) {
			w := w.within(t)
			w.insideUserNamespace(handler)
			w.sharedPIDs(handler)
			w.onHostNetwork(handler)
		})
	}
	trials, err := filepath.Glob(filepath.Join(w.d.Root, "trials", "*.json"))
	if err != nil || len(trials) != 2 {
		t.Errorf("trials remembered: %q, %v", trials, err)
	}
}

func (w *world) insideUserNamespace(handler string) {
	w.t.Helper()
	podID, pod := w.podOf(handler, "users", withUsers)
	volume := w.volume()
	config := w.config("main", "sh", "-c", "echo by name > /dev/stdout; exec sleep 1000")
	config.WorkingDir = "/made/for/it"
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 500}
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/vol", HostPath: volume, UidMappings: mapping(), GidMappings: mapping()},
		{ContainerPath: "/plain", HostPath: volume},
		{ContainerPath: "/file", HostPath: volume + "/file", UidMappings: mapping(), GidMappings: mapping(), Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: w.image}, UidMappings: mapping(), GidMappings: mapping(), Readonly: true},
		{ContainerPath: "/ro", HostPath: volume, UidMappings: mapping(), GidMappings: mapping(), Readonly: true, RecursiveReadOnly: true},
	}
	id := w.run(podID, pod, config)
	w.says(id, "0     200000      65536", "cat", "/proc/self/uid_map")
	w.says(id, "0     200000      65536", "cat", "/proc/self/gid_map")
	w.says(id, "0\n0\n0\n0\n0\n0", "stat", "-c", "%u", "/", "/bin", "/image/bin", "/made", "/etc/resolv.conf", "/etc/hostname")
	w.says(id, "users", "hostname")
	w.says(id, "x", "sh", "-c", "echo x > /dev/shm/f && cat /dev/shm/f && echo nameserver 1.1.1.1 >> /etc/resolv.conf")
	w.says(id, "out\nerr", "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr")
	// Mapped, the volume has its own owners on both sides.
	w.says(id, "0 1000 0", "sh", "-c", "touch /vol/new && echo $(stat -c %u /vol/file /vol/users /vol/new)")
	w.says(id, "65534", "stat", "-c", "%u", "/plain/file")
	w.hostOwner(volume+"/new", 0)
	w.says(id, "touch: /ro/x: Read-only file system\ntouch: /ro/below/x: Read-only file system", "sh", "-c", "touch /ro/x; touch /ro/below/x")
	w.says(id, "5000 0", "sh", "-c", "chown 5000 /made && echo $(stat -c %u /made /bin)")
	w.says(id, "500", "cat", "/proc/1/oom_score_adj")
	if text, err := os.ReadFile(filepath.Join(pod.LogDirectory, config.LogPath)); err != nil || !strings.HasSuffix(string(text), " stdout F by name\n") {
		w.t.Errorf("log %q, %v", text, err)
	}
	// A user that is not root, in a container made after a restart of davitd.
	w.d.Kill()
	if err := w.d.Start(); err != nil {
		w.t.Fatal(err)
	}
	second := w.config("second", "sh", "-c", "echo $(id -u) $(id -g) $(id -G) > /dev/stdout; touch /vol/by-user; exec sleep 1000")
	second.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	second.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1001}
	second.Linux.SecurityContext.SupplementalGroups = []int64{77}
	second.Linux.SecurityContext.NamespaceOptions = pod.Linux.SecurityContext.NamespaceOptions // said again
	second.Mounts = config.Mounts[:1]
	other := w.run(podID, pod, second)
	w.says(other, w.link(id), "readlink", "/proc/self/ns/user")
	w.says(other, "exec by name", "sh", "-c", "echo exec by name > /dev/stdout")
	w.hostOwner(volume+"/by-user", 1000)
	if text, err := os.ReadFile(filepath.Join(pod.LogDirectory, second.LogPath)); err != nil || !strings.HasSuffix(string(text), " stdout F 1000 1001 1001 77 2000\n") {
		w.t.Errorf("log %q, %v", text, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.Contains(at, "/trees/") || strings.Contains(at, "/mapped/") {
			w.t.Errorf("left on the host: %s", line)
		}
	}
}

// volume makes a directory of the host whose path is closed to others, with a
// mount in it.
func (w *world) volume() string {
	w.t.Helper()
	dir := w.t.TempDir()
	volume := filepath.Join(dir, "closed", "volume")
	for _, d := range []string{filepath.Dir(volume), volume, volume + "/below"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	for name, uid := range map[string]int{"file": 0, "users": 1000} {
		if err := os.WriteFile(filepath.Join(volume, name), []byte("data"), 0o600); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(volume, name), uid, uid); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.Mount("below", volume+"/below", "tmpfs", 0, "mode=777"); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		// Not detached: davit must not keep it.
		if err := unix.Unmount(volume+"/below", 0); err != nil {
			w.t.Errorf("unmount the volume: %v", err)
		}
	})
	return volume
}

func (w *world) hostOwner(path string, want uint32) {
	w.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Uid != want {
		w.t.Errorf("%s belongs to %d on the host, want %d: %v", path, st.Uid, want, err)
	}
}

// link returns a container's user namespace.
func (w *world) link(id string) string {
	w.t.Helper()
	r, err := w.exec(id, 20, "readlink", "/proc/self/ns/user")
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(r.Stdout))
}

// The holder of a shared PID namespace belongs to the user namespace.
func (w *world) sharedPIDs(handler string) {
	w.t.Helper()
	podID, pod := w.podOf(handler, "pids", withUsers, func(p *runtimeapi.PodSandboxConfig) {
		p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	config := w.config("main", "sleep", "1000")
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	id := w.run(podID, pod, config)
	w.says(id, "pause", "cat", "/proc/1/comm")
	w.says(id, "Uid:\t0\t0\t0\t0", "grep", "Uid:", "/proc/1/status")
	w.says(id, "ls: /proc/1/root/: Permission denied", "ls", "/proc/1/root/")
}

// On the host's network the pod sees the host's /sys, and can change nothing.
func (w *world) onHostNetwork(handler string) {
	w.t.Helper()
	podID, pod := w.podOf(handler, "host", withUsers, func(p *runtimeapi.PodSandboxConfig) {
		p.Hostname = ""
		p.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	id := w.run(podID, pod, w.config("main", "sleep", "1000"))
	w.says(id, "0     200000      65536", "cat", "/proc/self/uid_map")
	w.says(id, "lo", "sh", "-c", "ls /sys/class/net | grep lo")
	w.says(id, "1", "sh", "-c", "mount | grep ' /sys type' | grep -c '(ro'")
	w.says(id, "cgroup", "sh", "-c", "mount | grep -o ' on /sys/fs/cgroup type [ct]' | tail -1 | sed 's/.*/cgroup/'")
}
