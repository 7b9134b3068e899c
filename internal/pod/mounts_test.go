package pod

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/idmap"
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
	if err := m.shm(shm, 100000, 100001); err != nil {
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
