package contract

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// TestStateFull: with no room left where the state is, making is refused as
// such; ending works, exit codes are right, and with room it goes on.
func TestStateFull(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("roomy")
	stops := w.run(podID, pod, w.config("stops", "sleep", "1000"))
	exits := w.run(podID, pod, w.config("exits", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 9"))
	if _, err := w.exec(exits, 5, "true"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", w.d.State, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, "size=8m,nr_inodes=4k"); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(w.d.State, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1 << 20; n >= 4096; n /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, n))
		}
	}
	_ = f.Close()
	_, err = w.c.RunPod(w.ctx, testkit.PodConfig("full", w.d.Logs))
	want(t, err, codes.ResourceExhausted, "no space left")
	t.Log(err)
	_, err = w.create(podID, pod, w.config("full", "true"))
	want(t, err, codes.ResourceExhausted, "no space left")
	t.Log(err)
	_, err = w.exec(stops, 5, "true")
	t.Log("exec:", err)
	if err != nil {
		want(t, err, codes.ResourceExhausted)
	}
	w.quick()
	if err := w.stop(stops, 0); err != nil {
		t.Error(err)
	}
	rootfs, err := filepath.Glob(filepath.Join(w.d.State, "images", "rootfs", exits, "tmp"))
	if err != nil || len(rootfs) != 1 {
		t.Fatal(rootfs, err)
	}
	if err := os.WriteFile(filepath.Join(rootfs[0], "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := w.c.AwaitExit(w.ctx, exits)
	if err != nil || s.ExitCode != 9 {
		t.Errorf("%v, %v", s, err)
	}
	w.d.Kill()
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
	if s := w.status(exits); s.ExitCode != 9 {
		t.Errorf("after a restart: %v", s)
	}
	if err := w.c.RemovePod(w.ctx, podID); err != nil {
		t.Errorf("removal: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	podID, pod = w.pod("again")
	w.exit(podID, pod, w.config("c", "true"))
}

// TestTwoDaemons: two davitds on one node do not get into each other's way.
func TestTwoDaemons(t *testing.T) {
	w := newWorld(t, "")
	second := testkit.NewDaemon(t, "[network]\nbridge = \"davit1\"\nsubnets = [\"10.90.0.0/16\"]\n")
	v := &world{t: t, d: second, c: second.Client(t), ctx: w.ctx, image: w.image, logs: second.Logs, own: w.own}
	if _, err := v.c.Pull(v.ctx, v.image); err != nil {
		t.Fatal(err)
	}
	addresses := map[string]bool{}
	for i := range 3 {
		for name, x := range map[string]*world{"one": w, "two": v} {
			id, pod := x.pod(fmt.Sprintf("%s-%d", name, i))
			ctr := x.run(id, pod, x.config("c", "sleep", "1000"))
			if r, err := x.exec(ctr, 5, "ip", "-4", "addr", "show", "eth0"); err != nil || !strings.Contains(string(r.Stdout), x.address(id)) {
				t.Errorf("%v, %v: want %s", r, err, x.address(id))
			}
			if a := x.address(id); addresses[a] {
				t.Errorf("address %s is given twice", a)
			} else {
				addresses[a] = true
			}
		}
	}
	v.d.Kill()
	if err := v.d.Start(); err != nil {
		t.Fatal(err)
	}
	list, err := v.c.ListContainers(v.ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	if err := v.c.RemoveAll(v.ctx); err != nil {
		t.Error(err)
	}
	if err := v.d.Stop(); err != nil {
		t.Error(err)
	}
	defer func() { _ = v.d.Start() }() // for the removals at the end
	list, err = w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	w.exit(list.Containers[0].PodSandboxId, nil, w.config("d", "ping", "-c", "1", "-W", "2", "10.88.0.1"))
}

// TestHostNamespaces: what the pod shares with the host, its containers see.
func TestHostNamespaces(t *testing.T) {
	w := shared(t)
	self := func(kind string) string {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	for kind, set := range map[string]func(*runtimeapi.NamespaceOption){
		"net": func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE },
		"ipc": func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE },
		"pid": func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE },
	} {
		t.Run(kind, func(t *testing.T) {
			w := w.within(t)
			podID, pod := w.pod("host"+kind, func(c *runtimeapi.PodSandboxConfig) {
				set(c.Linux.SecurityContext.NamespaceOptions)
				c.Hostname = ""
			})
			config := w.config("c", "sleep", "1000")
			set(config.Linux.SecurityContext.NamespaceOptions)
			ctr := w.run(podID, pod, config)
			for _, other := range []string{"net", "ipc", "pid", "uts", "mnt"} {
				r, err := w.exec(ctr, 5, "readlink", "/proc/self/ns/"+other)
				if err != nil {
					t.Fatal(err)
				}
				shared := strings.TrimSpace(string(r.Stdout)) == self(other)
				if want := other == kind || kind == "net" && other == "uts"; shared != want && other == "uts" {
					differs(t, "%s shared with the host: %t", other, shared)
				} else if shared != want {
					t.Errorf("%s shared with the host: %t", other, shared)
				}
			}
			r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
			if err != nil {
				t.Fatal(err)
			}
			if ip := r.Status.Network.GetIp(); (ip == "") != (kind == "net") {
				t.Errorf("address %q", ip)
			}
			w.restart()
			if s := w.status(ctr); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("after a restart: %v", s)
			}
			if err := w.stop(ctr, 0); err != nil { // must not hit anybody else's processes
				t.Error(err)
			}
		})
	}
	t.Run("a container alone", func(t *testing.T) {
		w := w.within(t)
		podID, pod := w.pod("mixed")
		config := w.config("c", "true")
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		_, err := w.create(podID, pod, config)
		prefer(t, err, codes.InvalidArgument, "network")
	})
}

// TestMounts: propagation and recursive read-only as asked, or refused.
func TestMounts(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("mounts")
	// Enough to mount; not privileged, since not every machine has all that this asks for.
	mounts := &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined} // the default AppArmor profile lets nobody mount
	dir := t.TempDir()
	if err := unix.Mount("shared", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]struct {
		mode           runtimeapi.MountPropagation
		inside, onHost bool // a mount of the other's is seen
	}{
		"private": {runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		"slave":   {runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		"shared":  {runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			config := w.config(name, "sleep", "1000")
			config.Linux.SecurityContext.Capabilities, config.Linux.SecurityContext.Apparmor = mounts, unconfined
			config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/m", Propagation: p.mode}}
			ctr := w.run(podID, pod, config)
			host := filepath.Join(dir, "host-"+name)
			if err := os.MkdirAll(host, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("onhost", host, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(host, unix.MNT_DETACH) }()
			r, err := w.exec(ctr, 5, "sh", "-c", "grep -c onhost /proc/self/mounts; mkdir -p /m/in-"+name+" && mount -t tmpfs inside /m/in-"+name)
			if err != nil || r.ExitCode != 0 {
				t.Fatal(r, err)
			}
			if inside := strings.TrimSpace(string(r.Stdout)) != "0"; inside != p.inside {
				t.Errorf("the host's mount inside: %t", inside)
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				t.Fatal(err)
			}
			if onHost := strings.Contains(string(mounts), "in-"+name); onHost != p.onHost {
				t.Errorf("the container's mount on the host: %t", onHost)
			}
			_ = unix.Unmount(filepath.Join(dir, "in-"+name), unix.MNT_DETACH)
			if err := errors.Join(w.stop(ctr, 0), w.remove(ctr)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("private source", func(t *testing.T) {
		w := w.within(t)
		private := t.TempDir()
		if err := unix.Mount("private", private, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(private, unix.MNT_DETACH) }()
		if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		config := w.config("p", "true")
		config.Linux.SecurityContext.Capabilities = mounts
		config.Mounts = []*runtimeapi.Mount{{HostPath: private, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		_, err := w.create(podID, pod, config)
		want(t, err, codes.FailedPrecondition, private)
	})
	t.Run("recursive read-only", func(t *testing.T) {
		w := w.within(t)
		sub := filepath.Join(dir, "sub")
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("below", sub, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(sub, unix.MNT_DETACH) }()
		config := w.config("rro", "sh", "-c", "touch /m/x; touch /m/sub/x; test ! -e /m/sub/x -a ! -e /m/x")
		config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}}
		if !w.features().GetRecursiveReadOnlyMounts() {
			_, err := w.create(podID, pod, config)
			must(t, err, codeOf(err), "desc = RROUnsupported")
			return
		}
		if s := w.exit(podID, pod, config); s.ExitCode != 0 {
			t.Errorf("exit code %d: it can be written to", s.ExitCode)
		}
	})
}

// features are those of the default handler.
func (w *world) features() *runtimeapi.RuntimeHandlerFeatures {
	w.t.Helper()
	r, err := w.c.RuntimeServiceClient.Status(w.ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range r.RuntimeHandlers {
		if h.Name == "" {
			return h.Features
		}
	}
	return nil
}
