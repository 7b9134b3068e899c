package pod

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/label"
)

// withUsers gives a pod a user namespace whose root is 65536 on the host.
func withUsers(p *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
	p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	return p
}

// Everything of a pod with a user namespace goes by its map, and what mounts
// are made of is there only while a container is made.
func TestUserNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := newNode(t)
	d := n.open()
	podID, err := d.Run(t.Context(), withUsers(podConfig("web", private)), "")
	must(t, err)
	p, err := d.Pod(podID)
	must(t, err)
	dir := filepath.Join(n.state, "pods", podID)
	for _, name := range []string{"resolv.conf", "hostname"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Uid != 65536 || st.Gid != 65536 {
			t.Errorf("%s belongs to %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}
	d.stop() // the map is known after a restart, too
	d = n.open()
	own, other := p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids, []*runtimeapi.IDMapping{{Length: 1}}
	config := containerConfig("main")
	config.Mounts = []*runtimeapi.Mount{
		{HostPath: "/usr", ContainerPath: "/a", UidMappings: own, GidMappings: own, Readonly: true, RecursiveReadOnly: true},
		{HostPath: "/proc/self/root", ContainerPath: "/b"},
		{HostPath: "/", ContainerPath: "/c", UidMappings: other, GidMappings: other, Readonly: true},
	}
	id, err := d.CreateContainer(t.Context(), podID, config)
	must(t, err)
	users := &idmap.Users{Map: (&podState{Snapshot: *p}).users(), Path: filepath.Join(dir, "user")}
	trees := []idmap.Tree{
		{Source: "/usr", Users: users, ReadOnly: true}, {Source: "/"}, {Source: "/", Users: &idmap.Users{Map: n.trees[2].Users.Map}},
	}
	if !reflect.DeepEqual(n.trees, trees) || n.trees[2].Users.UIDs[0].Length != 1 {
		t.Errorf("trees %+v", n.trees)
	}
	if !reflect.DeepEqual(n.users, users) || n.input.Namespaces.User != users.Path || !n.input.Namespaces.Users.Equal(users.Map) {
		t.Errorf("users %+v, in the spec %q %+v", n.users, n.input.Namespaces.User, n.input.Namespaces.Users)
	}
	if n.owner != [2]uint32{65536 + 7, 65536} {
		t.Errorf("the streams belong to %v", n.owner)
	}
	for i, m := range n.input.Container.Mounts {
		want := &runtimeapi.Mount{HostPath: filepath.Join(n.state, "trees", id, strconv.Itoa(i)), ContainerPath: config.Mounts[i].ContainerPath, Readonly: config.Mounts[i].Readonly}
		if !proto.Equal(m, want) {
			t.Errorf("mount %v, want %v", m, want)
		}
	}
	if n.have["tree "+id] {
		t.Error("the trees stayed after the container was made")
	}
	c, err := d.Container(id)
	must(t, err)
	if !proto.Equal(c.Config, config) {
		t.Errorf("the status shows other mounts: %v", c.Config.Mounts)
	}
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}

// On the host's network the pod gets the host's /sys, since it owns none.
func TestUserNamespaceOnHostNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := newNode(t)
	d := n.open()
	pod := withUsers(podConfig("web", private))
	pod.Hostname = ""
	pod.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	podID, err := d.Run(t.Context(), pod, "")
	must(t, err)
	id, err := d.CreateContainer(t.Context(), podID, containerConfig("main"))
	must(t, err)
	if len(n.trees) != 1 || n.trees[0] != (idmap.Tree{Source: "/sys", ReadOnly: true}) || n.input.Files.Sys != filepath.Join(n.state, "trees", id, "sys") {
		t.Errorf("trees %+v, /sys is %q", n.trees, n.input.Files.Sys)
	}
	must(t, d.Remove(t.Context(), podID))
	d.stop()
	n.clean()
}

// A policy has one set of categories to give.
type policy struct {
	reserved string
	files    map[string]string
}

func (p *policy) Init([]string) (process, mount string, err error) {
	p.reserved = "u:r:container_t:s0:c1,c2"
	return p.reserved, "u:object_r:file_t:s0:c1,c2", nil
}
func (p *policy) Reserve(label string) error       { p.reserved = label; return nil }
func (p *policy) Release(string)                   { p.reserved = "" }
func (p *policy) Of(path string) (string, error)   { return p.files[path], nil }
func (p *policy) Relabel(path, label string) error { p.files[path] = label; return nil }

// Labels are chosen once for a pod, kept over restarts, on all that its
// containers see, and given back.
func TestSELinuxLabels(t *testing.T) {
	n := newNode(t)
	open := func(p *policy) *daemon {
		options := n.options()
		options.Host.Labels = label.With(p)
		return n.openWith(options)
	}
	first := &policy{files: map[string]string{}}
	d := open(first)
	podID, err := d.Run(t.Context(), podConfig("web", private), "")
	must(t, err)
	mount := "u:object_r:file_t:s0:c1,c2"
	if got := first.files[filepath.Join(n.state, "pods", podID, "resolv.conf")]; got != mount {
		t.Errorf("resolv.conf has label %q", got)
	}
	if !strings.HasSuffix(n.world.shm, `,context="`+mount+`"`) {
		t.Errorf("shm has options %q", n.world.shm)
	}
	d.stop()
	again := &policy{files: map[string]string{}}
	d = open(again)
	if again.reserved != "u:r:container_t:s0:c1,c2" {
		t.Errorf("after a restart %q is reserved", again.reserved)
	}
	config := containerConfig("main")
	volume := t.TempDir()
	config.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v", SelinuxRelabel: true}, {HostPath: "/", ContainerPath: "/host"}}
	_, err = d.CreateContainer(t.Context(), podID, config)
	must(t, err)
	if n.label != mount || n.spec.Linux.MountLabel != mount || n.spec.Process.SelinuxLabel != again.reserved {
		t.Errorf("root %q, spec %q and %q", n.label, n.spec.Linux.MountLabel, n.spec.Process.SelinuxLabel)
	}
	if len(again.files) != 1 || again.files[volume] != mount {
		t.Errorf("relabelled: %v", again.files)
	}
	must(t, d.Remove(t.Context(), podID))
	if again.reserved != "" {
		t.Errorf("%q stays reserved", again.reserved)
	}
	d.stop()
	n.clean()
}

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
	if err := m.shm(shm, "mode=1777,size=65536k,uid=100000,gid=100001"); err != nil {
		t.Error(err)
	}
	if err := m.pin(os.Getpid(), pid); err != nil {
		t.Error(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 64<<20 {
		t.Errorf("shm: %+v, %v", fs, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(shm, &st); err != nil || st.Uid != 100000 || st.Gid != 100001 {
		t.Errorf("shm belongs to %d:%d, %v", st.Uid, st.Gid, err)
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
