package contract

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// dataImage pushes and pulls an image for volumes and returns its name and ID.
// One of its links leads to a file of the host's.
func (w *world) dataImage(registry *testkit.Registry, outside string) (name, id string) {
	w.t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		w.t.Fatal(err)
	}
	img, err := testkit.NewImage(testkit.ImageSpec{Layers: [][]testkit.File{
		{{Name: "model/"}, {Name: "model/weights", Data: []byte("old")}, {Name: "true", Data: program, Mode: 0o755}, {Name: "out", Linkname: outside}},
		{{Name: "model/weights", Data: []byte("new")}},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	name = registry.Push(w.t, "contract/data:1", img)
	if id, err = w.c.Pull(w.ctx, name); err != nil {
		w.t.Fatal(err)
	}
	return name, id
}

func imageMount(image, part, at string, options ...string) *runtimeapi.Mount {
	return &runtimeapi.Mount{
		ContainerPath: at, Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: part, Readonly: true, MountOptions: options,
	}
}

// TestImagesAsVolumes: an image is a volume, whole or in part, and stays one
// while davitd restarts and the image is removed.
func TestImagesAsVolumes(t *testing.T) {
	w := newWorld(t, "")
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	name, image := w.dataImage(testkit.NewRegistry(t), outside)
	for _, handler := range []string{"", "runc"} {
		config := testkit.PodConfig("volumes"+handler, w.d.Logs)
		r, err := w.c.RunPodSandbox(w.ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		c := w.config("user", "sleep", "1000")
		c.Mounts = []*runtimeapi.Mount{
			imageMount(name, "", "/all"), imageMount(image, "model", "/part", "nosuid"), imageMount(name, "true", "/bin/one-file"),
			imageMount(image, "", "/noexec", "noexec", "nodev"), imageMount(name, "model/weights", "/etc/hosts"),
		}
		c.Mounts[1].Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		ctr := w.run(r.PodSandboxId, config, c)
		if handler == "" {
			w.d.Kill()
			if err := w.d.Start(); err != nil {
				t.Fatal(err)
			}
		} else if _, err := w.c.RemoveImage(w.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
			t.Fatal(err)
		}
		got, err := w.exec(ctr, 20, "sh", "-c", `cat /all/model/weights /part/weights /etc/hosts; echo
			/all/true true && echo runs; /noexec/true true 2>&1; touch /all/x /part/x 2>&1; ls -l /bin/one-file | cut -c1-10
			for at in /all /part /noexec; do grep " $at ro" /proc/self/mountinfo | cut -d" " -f5-6; done`)
		if err != nil {
			t.Fatal(err)
		}
		text := string(got.Stdout)
		for _, want := range []string{"newnewnew\n", "\nruns\n", "noexec/true: Permission denied", "/all/x: Read-only file system", "/part/x: Read-only file system", "-rwxr-xr-x"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q: no %q in %s", handler, want, text)
			}
		}
		for at, want := range map[string][]string{"/part ro": {"nosuid"}, "/noexec ro": {"noexec", "nodev"}} {
			_, options, ok := strings.Cut(text, at)
			options, _, _ = strings.Cut(options, "\n")
			for _, o := range want {
				if !ok || !strings.Contains(options, o) {
					t.Errorf("%q: %s%s has no %s", handler, at, options, o)
				}
			}
		}
		for i, m := range w.status(ctr).Mounts {
			if m.Image.GetImageRef() != image || m.Image.Image != c.Mounts[i].Image.Image || m.HostPath != "" {
				t.Errorf("status: %v", m)
			}
		}
		if handler == "" {
			w.refuseVolumes(r.PodSandboxId, config, name)
		} else {
			c = w.config("late", "true")
			c.Mounts = []*runtimeapi.Mount{imageMount(image, "", "/all")}
			_, err = w.create(r.PodSandboxId, config, c)
			want(t, err, codes.NotFound, "desc = ImageVolumeMountFailed: config.mounts[0] at /all: image "+image)
		}
		if err := w.c.RemovePod(w.ctx, r.PodSandboxId); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{filepath.Join(w.d.State, "images", "rootfs"), filepath.Join(w.d.Root, "images", "writable")} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func (w *world) refuseVolumes(podID string, pod *runtimeapi.PodSandboxConfig, image string) {
	w.t.Helper()
	for _, c := range []struct {
		change func(*runtimeapi.Mount)
		code   codes.Code
		text   string
	}{
		{func(m *runtimeapi.Mount) { m.Readonly = false }, codes.InvalidArgument, ".readonly: "},
		{func(m *runtimeapi.Mount) { m.HostPath = "/srv" }, codes.InvalidArgument, ".host_path: "},
		{func(m *runtimeapi.Mount) { m.Image.Image = "" }, codes.InvalidArgument, ".image.image: "},
		{func(m *runtimeapi.Mount) { m.Image.Image = "no.such/image:1" }, codes.NotFound, "is not present"},
		{func(m *runtimeapi.Mount) { m.ImageSubPath = "model/../../etc" }, codes.InvalidArgument, ".image_sub_path: "},
		{func(m *runtimeapi.Mount) { m.ImageSubPath = "modle" }, codes.NotFound, `sub path "modle" is not in the image`},
		{func(m *runtimeapi.Mount) { m.ImageSubPath = "out" }, codes.NotFound, `sub path "out" is not in the image`},
		{func(m *runtimeapi.Mount) { m.MountOptions = []string{"rw"} }, codes.InvalidArgument, ".mount_options[0]: "},
	} {
		config := w.config("refused", "true")
		m := imageMount(image, "", "/all")
		c.change(m)
		config.Mounts = []*runtimeapi.Mount{{HostPath: "/", ContainerPath: "/host", Readonly: true}, m}
		_, err := w.create(podID, pod, config)
		want(w.t, err, c.code, "desc = ImageVolumeMountFailed: config.mounts[1]", c.text)
	}
}

// TestMountOptions: what a mount asks for is what the container has.
func TestMountOptions(t *testing.T) {
	w := newWorld(t, "")
	podID, pod := w.pod("mounts")
	dir := t.TempDir()
	for _, d := range []string{"real", "shm", "shared", "alone"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"real/file", "hosts", "shm/mine"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for name, flag := range map[string]uintptr{"shared": unix.MS_SHARED, "alone": unix.MS_PRIVATE} {
		at := filepath.Join(dir, name)
		if err := unix.Mount(at, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
		if err := unix.Mount("", at, "", flag, ""); err != nil {
			t.Fatal(err)
		}
	}
	slave, shared := runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	c := w.config("c", "sleep", "1000")
	c.Mounts = []*runtimeapi.Mount{
		{HostPath: dir + "/link", ContainerPath: "/link", MountOptions: []string{"noexec", "nosuid", "nodev"}},
		{HostPath: dir + "/link/file", ContainerPath: "/new/dir/file", Readonly: true},
		{HostPath: dir + "/hosts", ContainerPath: "/etc/hosts"},
		{HostPath: dir + "/hosts", ContainerPath: "/etc/resolv.conf", Readonly: true, MountOptions: []string{"nodev"}},
		{HostPath: dir + "/shm", ContainerPath: "/dev/shm"},
		{HostPath: dir + "/real", ContainerPath: "/dev/shm/inner"},
		{HostPath: dir + "/shared", ContainerPath: "/slave", Propagation: slave},
	}
	ctr := w.run(podID, pod, c)
	at := filepath.Join(dir, "shared")
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	if err := os.WriteFile(at+"/later", []byte("propagated\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := w.exec(ctr, 20, "sh", "-c", `cat /link/file /new/dir/file /etc/hosts /etc/resolv.conf /dev/shm/mine /dev/shm/inner/file /slave/later
		echo x 2>&1 >/new/dir/file; echo y >>/etc/hosts; grep -E " (/link|/etc/resolv.conf) " /proc/self/mountinfo | cut -d" " -f5-6`)
	if err != nil {
		t.Fatal(err)
	}
	text := string(got.Stdout)
	if !strings.HasPrefix(text, "real/file\nreal/file\nhosts\nhosts\nshm/mine\nreal/file\npropagated\n") ||
		!strings.Contains(text, "can't create /new/dir/file: Read-only file system") ||
		!strings.Contains(text, "/link rw,nosuid,nodev,noexec") || !strings.Contains(text, "/etc/resolv.conf ro,nodev") {
		t.Errorf("%s%s", text, got.Stderr)
	}
	for _, bad := range []struct {
		mount *runtimeapi.Mount
		code  codes.Code
		text  string
	}{
		{&runtimeapi.Mount{HostPath: dir + "/absent", ContainerPath: "/m"}, codes.FailedPrecondition, dir + "/absent"},
		{&runtimeapi.Mount{HostPath: dir + "/alone", ContainerPath: "/m", Propagation: shared}, codes.FailedPrecondition, "not on a shared mount"},
		{&runtimeapi.Mount{HostPath: dir + "/alone", ContainerPath: "/m", Propagation: slave}, codes.FailedPrecondition, "not on a shared mount"},
		{&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", MountOptions: []string{"nodev", "dev"}}, codes.InvalidArgument, "config.mounts[0].mount_options[1]: "},
	} {
		c := w.config("refused", "true")
		c.Mounts = []*runtimeapi.Mount{bad.mount}
		_, err := w.create(podID, pod, c)
		want(t, err, bad.code, bad.text)
	}
}
