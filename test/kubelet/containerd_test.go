package kubelet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// newContainerd starts a containerd, with runc, a bridge of the usual CNI
// plugins, and everything below a directory of its own, until the test's end.
// It takes from like what is no runtime's own.
func newContainerd(t *testing.T, program string, like *runtime) *runtime {
	t.Helper()
	dir := openDir(t)
	r := &runtime{name: "containerd", endpoint: "unix://" + dir + "/containerd.sock", dir: dir, cgroup: like.cgroup, images: like.images}
	for _, wired := range []string{"/run/containerd", "/var/lib/cni"} { // shims' sockets, and what CNI plugins note
		if err := os.Mkdir(wired, 0o755); err == nil {
			t.Cleanup(func() { _ = os.Remove(wired) })
		}
		mountTmpfs(t, wired)
	}
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if err := os.Mkdir(filepath.Join(dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("net.d/10-bridge.conflist", `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "ctrd0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.96.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`)
	config := write("config.toml", strings.NewReplacer("DIR", dir, "PAUSE", like.images["pause"], "CLAMP", fmt.Sprint(!mayLower())).Replace(`
version = 2
root = "DIR/root"
state = "DIR/state"
[grpc]
address = "DIR/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "DIR/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "PAUSE"
restrict_oom_score_adj = CLAMP
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "`+cniPlugins()+`"
conf_dir = "DIR/net.d"
`))
	stop := daemon(t, filepath.Join(dir, "containerd.log"), program, "--config", config)
	t.Cleanup(func() {
		clear(t, r)
		stop()
		// What CNI plugins leave; the network namespace is the tests' own.
		_ = exec.Command("ip", "link", "delete", "ctrd0").Run()
		_ = exec.Command("nft", "delete", "table", "ip", "nat").Run()
	})
	eventually(t, 30*time.Second, func() error {
		_, err := r.client(t).Version(t.Context(), &runtimeapi.VersionRequest{})
		return err
	})
	r.askDriver(t)
	return r
}

// mayLower reports whether an oom_score_adj below 0 may be asked for, for which
// one needs CAP_SYS_RESOURCE.
func mayLower() bool {
	const file = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(file)
	if err != nil || os.WriteFile(file, []byte("-1"), 0) != nil {
		return false
	}
	_ = os.WriteFile(file, before, 0)
	return true
}

func cniPlugins() string {
	if _, err := os.Stat("/usr/lib/cni/bridge"); err == nil {
		return "/usr/lib/cni"
	}
	return "/opt/cni/bin"
}

// daemon starts a program whose log is a file, and returns how to end it.
func daemon(t *testing.T, logFile, program string, args ...string) (stop func()) {
	t.Helper()
	f, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Logf("%s: %v", program, err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(logFile)
			t.Logf("its log ends\n%s", lastLines(string(text), 20))
		}
	}
}

// clear removes all pods of a runtime.
func clear(t *testing.T, r *runtime) {
	ctx, cancel := context.WithTimeout(context.Background(), times(time.Minute))
	defer cancel()
	c, err := testkit.Dial(r.endpoint)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if err := c.RemoveAll(ctx); err != nil {
		t.Errorf("remove the pods of %s: %v", r.name, err)
	}
}
