package packaging_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// over puts a writable layer over a directory of the machine, for this test.
func over(t *testing.T, dir string) {
	t.Helper()
	layers := t.TempDir()
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := "lowerdir=" + dir + ",upperdir=" + layers + "/upper,workdir=" + layers + "/work"
	mount(t, "overlay", dir, options)
}

func mount(t *testing.T, kind, dir, options string) {
	t.Helper()
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s on %s: %v", kind, dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// Where no systemd ended davit's daemons, purging the package does. Those that
// keep other directories it leaves alone.
func TestPurgeWithoutSystemd(t *testing.T) {
	testkit.Root(t)
	bin, err := testkit.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/usr/bin", "/etc", "/var/lib"} {
		over(t, dir)
	}
	mount(t, "tmpfs", "/run", "mode=0755") // where systemd would be
	if err := errors.Join(os.RemoveAll("/etc/davit"), os.Mkdir("/etc/davit", 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"davitd", "davit-monitor"} {
		run(t, nil, "cp", filepath.Join(bin, program), "/usr/bin/"+program)
	}
	other := testkit.NewDaemon(t, "network.bridge = \"davit1\"\nnetwork.subnets = [\"10.99.0.0/16\"]\n")
	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}
	other.Bin = "/usr/bin" // the keeper becomes that one, too
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	before := other.Pids()

	davitd := exec.Command("/usr/bin/davitd")
	davitd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	davitd.Stderr = testkit.Output(t)
	if err := davitd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- davitd.Wait() }()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", "/run/davit/davit.sock")
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	usual := &testkit.Daemon{State: "/run/davit"}
	if pids := usual.Pids(); len(pids["keep"]) != 1 || len(pids["serve"]) != 1 {
		t.Fatalf("processes %v", pids)
	}
	for _, program := range []string{"davitd", "davit-monitor"} { // as dpkg does before it purges
		if err := os.Remove("/usr/bin/" + program); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/kernel/security"} { // nothing of the machine's is to be removed
		if _, err := os.Stat(dir); err == nil {
			mount(t, "tmpfs", dir, "")
		}
	}
	postrm, err := filepath.Abs(filepath.Join(top, "packaging/debian/postrm"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, nil, "sh", postrm, "purge")
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("davitd runs on")
	}
	if left := usual.Pids(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, dir := range []string{"/run/davit", "/var/lib/davit", "/etc/davit"} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", dir, err)
		}
	}
	if after := other.Pids(); after["keep"] == nil || after["keep"][0] != before["keep"][0] || len(after["serve"]) != 1 {
		t.Errorf("another davitd's: %v, were %v", after, before)
	}
}
