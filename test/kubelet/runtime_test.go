package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// A runtime is what a kubelet is given: davit, or another.
type runtime struct {
	name     string
	endpoint string // unix:///…
	dir      string
	davit    *testkit.Daemon // nil if it is another
	cgroup   string          // "/" or "/…": the pods' cgroups are to be below this one
	driver   string          // cgroup driver: "systemd" or "cgroupfs"
	tells    bool            // that the runtime says so itself
	images   map[string]string
}

// cadvisorSocket is where the cAdvisor in a kubelet asks whose a control group
// is, and nowhere else.
const cadvisorSocket = "/run/containerd/containerd.sock"

// newRuntime starts a davitd, or takes the runtime that -endpoint names, and
// has everything removed at the test's end.
func newRuntime(t *testing.T, config string) *runtime {
	t.Helper()
	if *endpoint == "" {
		testkit.Leftovers(t).Ignore(`^cgroup `) // cgroupRoot sees to those
	}
	place(t)
	dir := openDir(t)
	r := &runtime{name: "other", endpoint: *endpoint, dir: dir, cgroup: cgroupRoot(t), images: images(t)}
	if *endpoint == "" {
		r.name, r.davit = "davit", testkit.NewDaemon(t, fmt.Sprintf("cadvisor_socket = %q\n", cadvisorSocket)+*configured+config)
		r.endpoint = "unix://" + r.davit.Socket
	}
	r.askDriver(t)
	return r
}

// askDriver asks the runtime for its cgroup driver, as kubelets do.
func (r *runtime) askDriver(t *testing.T) {
	t.Helper()
	c, err := r.client(t).RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	r.driver, r.tells = "cgroupfs", err == nil
	if status.Code(err) != codes.OK && status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if c.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD && err == nil {
		r.driver = "systemd"
	}
}

// openDir is a temporary directory that others can pass: the root of a user
// namespace is one of them.
func openDir(t *testing.T) string {
	dir := t.TempDir()
	for at := dir; strings.HasPrefix(at, os.TempDir()+"/"); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// client returns a client of the runtime's until the test's end.
func (r *runtime) client(t *testing.T) *testkit.Client {
	t.Helper()
	c, err := testkit.Dial(r.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// images serves what pods are made of, by the names that manifests use.
func images(t *testing.T) map[string]string {
	t.Helper()
	server, err := testkit.ServeImages()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	files, err := testkit.BusyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(target(t))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, testkit.File{Name: "target", Data: program, Mode: 0o755})
	data := []testkit.File{{Name: "greeting", Data: []byte("hello\n")}, {Name: "dir/"}, {Name: "dir/deep", Data: []byte("deep\n")}}
	names := map[string]string{}
	for name, spec := range map[string]testkit.ImageSpec{
		"target": {Layers: [][]testkit.File{files}, Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}},
		"data":   {Layers: [][]testkit.File{data}},
		// containerd has a process in each pod that does nothing.
		"pause": {Layers: [][]testkit.File{files}, Config: v1.Config{Entrypoint: []string{"/target"}}},
	} {
		spec.Compression = "none"
		img, err := testkit.NewImage(spec)
		if err != nil {
			t.Fatal(err)
		}
		names[name] = server.Host + "/kubelet/" + name + ":1"
		if err := testkit.Push(names[name], img); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// target returns the program that pods run: one that lies beside the kubelets,
// where there is no Go to build it.
func target(t *testing.T) string {
	t.Helper()
	built := filepath.Join(*kubelets, "target")
	if _, err := os.Stat(built); err == nil {
		return built
	}
	program := filepath.Join(t.TempDir(), "target")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, "github.com/davit-runtime/davit/test/kubelet/target")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the target of probes: %v\n%s", err, out)
	}
	return program
}

// preload pulls the images, so that times are without that.
func (r *runtime) preload(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), times(time.Minute))
	defer cancel()
	c := r.client(t)
	for _, image := range r.images {
		if _, err := c.Pull(ctx, image); err != nil {
			t.Fatal(err)
		}
	}
}

// empty fails the test unless the kubelet has the runtime remove all pods and
// containers; it collects those that are over once a minute.
func (r *runtime) empty(t *testing.T) {
	t.Helper()
	c := r.client(t)
	eventually(t, 150*time.Second, func() error {
		pods, err := c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		containers, err := c.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		if len(pods.Items)+len(containers.Containers) > 0 {
			return fmt.Errorf("the runtime has %d pods and %d containers, such as %v %v", len(pods.Items), len(containers.Containers), first(pods.Items), first(containers.Containers))
		}
		return nil
	})
}

// first returns the first of a list, for a message.
func first[T any](list []T) any {
	if len(list) == 0 {
		return "none"
	}
	return list[0]
}

// join runs this program again in the namespaces of the process that listens
// at a socket, unless it is in them.
func join(endpoint string) {
	conn, err := net.Dial("unix", strings.TrimPrefix(endpoint, "unix://"))
	if err != nil {
		exit(err)
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		exit(err)
	}
	var peer *unix.Ucred
	err = raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	_ = conn.Close()
	if err != nil || peer == nil {
		exit(errors.Join(errors.New("find who listens at "+endpoint), err))
	}
	there, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", peer.Pid))
	here, err2 := os.Readlink("/proc/self/ns/mnt")
	if err := errors.Join(err1, err2); err != nil {
		exit(err)
	}
	if there == here {
		return
	}
	self, err := os.Executable()
	if err != nil {
		exit(err)
	}
	enter, err := exec.LookPath("nsenter")
	if err != nil {
		exit(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		exit(err)
	}
	args := append([]string{"nsenter", "-t", strconv.Itoa(int(peer.Pid)), "-m", "-n", "/bin/sh", "-c", `cd "$0" && exec "$@"`, dir, self}, os.Args[1:]...)
	exit(unix.Exec(enter, args, os.Environ()))
}

func exit(err error) {
	fmt.Fprintln(os.Stderr, "kubelet:", err)
	os.Exit(1)
}
