package pod

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

func withVolume(c *runtimeapi.ContainerConfig, subPath string) *runtimeapi.ContainerConfig {
	c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/host", HostPath: "/srv"}, &runtimeapi.Mount{
		ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "model:1"}, ImageSubPath: subPath,
		Readonly: true, Propagation: 1, MountOptions: []string{"noexec"},
	})
	return c
}

func TestImagesAsVolumes(t *testing.T) {
	n := newNode(t)
	n.image.Volumes = map[string]struct{}{"/model": {}, "/other": {}} // the first is covered
	d := n.open()
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	asked := withVolume(containerConfig("main"), "a/b")
	id, err := d.CreateContainer(t.Context(), podID, asked)
	must(t, err)
	var model *runtimeapi.Mount
	for _, m := range n.input.Container.Mounts {
		if m.ContainerPath == "/model" && model != nil {
			t.Error("mounted twice")
		} else if m.ContainerPath == "/model" {
			model = m
		}
	}
	want := &runtimeapi.Mount{
		ContainerPath: "/model", HostPath: "/nonexistent/volumes/" + id + "/1", Readonly: true, Propagation: 1, MountOptions: []string{"noexec"},
	}
	if !proto.Equal(model, want) {
		t.Errorf("%v", model)
	}
	for range 2 { // also after a restart
		c, err := d.Container(id)
		must(t, err)
		m := c.Config.Mounts[1]
		if m.Image.ImageRef != "sha256:1234" || m.Image.Image != "model:1" || m.HostPath != "" || m.ImageSubPath != "a/b" || c.Config.Mounts[0].Image != nil {
			t.Errorf("%v", c.Config.Mounts)
		}
		d.stop()
		d = n.open()
	}
	if asked.Mounts[1].Image.ImageRef != "" {
		t.Error("the caller's config was changed")
	}
	absent := withVolume(containerConfig("absent"), "")
	absent.Mounts[1].Image.Image = "absent"
	for _, bad := range []*runtimeapi.ContainerConfig{absent, withVolume(containerConfig("part"), "absent")} {
		_, err = d.CreateContainer(t.Context(), podID, bad)
		wantKind(t, err, fault.NotFound)
		if !strings.Contains(err.Error(), "ImageVolumeMountFailed: config.mounts[1] at /model: image ") {
			t.Errorf("%v", err)
		}
	}
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}

// The mounts of a pod's own, in a mount namespace that ends with the test.
func TestKernelMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with its mount namespace
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		tryMounts(t, dir)
	}()
	<-done
}

func tryMounts(t *testing.T, dir string) {
	m := kernelMounts{}
	shm, pid := filepath.Join(dir, "shm"), filepath.Join(dir, "pid")
	for range 2 { // nothing is there
		if err := m.unmount(shm); err != nil {
			t.Error(err)
		}
	}
	if err := m.shm(shm); err != nil {
		t.Error(err)
	}
	if err := m.pin(os.Getpid(), pid); err != nil {
		t.Error(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 64<<20 {
		t.Errorf("shm: %+v, %v", fs, err)
	}
	if info, err := os.Stat(shm); err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("shm: %v, %v", info, err)
	}
	var pinned, own unix.Stat_t
	if err := unix.Stat(pid, &pinned); err != nil {
		t.Error(err)
	}
	if err := unix.Stat("/proc/self/ns/pid", &own); err != nil || pinned.Ino != own.Ino {
		t.Errorf("pinned %d, want %d, %v", pinned.Ino, own.Ino, err)
	}
	for _, path := range []string{shm, pid, shm, pid} {
		if err := m.unmount(path); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
