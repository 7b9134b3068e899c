package trial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/disk"
	"github.com/davit-runtime/davit/test/images/layout"
	"github.com/davit-runtime/davit/test/trial/load"
)

// The disk: a file system, and behind it the marks.
const (
	fileSystemBytes = 320 << 20
	markBytes       = 32 << 20
)

// A logged disk is one whose every write is logged.
type logged struct {
	disk, log string // files
	dir       string // for what else is needed
	port      string // of the registry
	refs      []string
	seed      uint64
	pulls     int
}

// TestPowerCuts: davitd pulls and removes images, and the power fails at random
// writes to its disk. Of the writes that the disk had not been told to write
// out, some or all may be lost. Whatever davitd lists when it starts on that
// disk is whole, what PullImage had answered is there, the pulls are repeated
// and succeed, and in the end nothing is left.
func TestPowerCuts(t *testing.T) {
	if os.Getenv("DAVIT_TRIAL_KERNEL") == "" {
		t.Skip("only with make trial-power")
	}
	powerCuts(t, onThisKernel)
}

// TestPowerCutsInMachine is TestPowerCuts in a virtual machine, on a kernel that
// mounts layers by loop devices.
func TestPowerCutsInMachine(t *testing.T) {
	if os.Getenv("DAVIT_TRIAL_KERNEL") == "" {
		t.Skip("needs a kernel for a virtual machine: make trial-power")
	}
	powerCuts(t, inMachine)
}

func powerCuts(t *testing.T, work func(context.Context, *testing.T, logged)) {
	testkit.Root(t)
	testkit.Leftovers(t)
	seed, cuts, pulls := seed(t), setting(t, "DAVIT_TRIAL_CUTS", 50), setting(t, "DAVIT_TRIAL_PULLS", 40)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	images, dir := layout.Dir(t.TempDir()), t.TempDir()
	made := samples(t, images, 2)
	registry, err := layout.Serve(images, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(registry.Close)
	l := logged{disk: filepath.Join(dir, "disk"), log: filepath.Join(dir, "log"), dir: dir, seed: seed, pulls: pulls}
	_, l.port, _ = strings.Cut(registry.Host, ":")
	for _, s := range made {
		l.refs = append(l.refs, s.ref())
	}
	base := filepath.Join(dir, "base")
	makeDisk(t, base)
	copyFile(t, base, l.disk)
	if err := os.WriteFile(l.log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	work(ctx, t, l)
	t.Logf("%d pulls took %.0f s", pulls, time.Since(start).Seconds())
	c := &cutter{t: t, dir: dir, base: base, samples: made, config: configuration("http://" + registry.Host), random: rand.New(rand.NewPCG(seed, 3))}
	c.baseline(ctx)
	c.cut(ctx, l.log, cuts)
	t.Logf("figure: %d cuts among %d writes, %d of them with writes lost; %d pulls had been answered, %d images were there; %d images compared",
		c.done, c.writes, c.lossy, c.answered, c.whole, c.compared)
}

// blockdevs are QEMU's options for a node "disk" that logs its writes, flushes
// among them, as dm-log-writes does.
func (l logged) blockdevs(option string) []string {
	return []string{
		option, "driver=file,node-name=file,cache.no-flush=on,filename=" + l.disk,
		option, "driver=file,node-name=log,cache.no-flush=on,filename=" + l.log,
		option, "driver=blklogwrites,node-name=disk,file=file,log=log",
	}
}

// inMachine works in a virtual machine, whose 10.0.2.2 is this one's loopback.
func inMachine(ctx context.Context, t *testing.T, l logged) {
	m := &machine{kernel: os.Getenv("DAVIT_TRIAL_KERNEL"), dir: l.dir, blockdevs: l.blockdevs("-blockdev"), variables: map[string]string{
		"TRIAL_REFS": strings.Join(l.refs, ","), "TRIAL_PULLS": fmt.Sprint(l.pulls), "TRIAL_SEED": fmt.Sprint(l.seed), "TRIAL_MARKS": fmt.Sprint(fileSystemBytes),
	}}
	if err := m.makeInitrd(configuration("http://10.0.2.2:" + l.port)); err != nil {
		t.Fatal(err)
	}
	if err := m.run(ctx, t); err != nil {
		t.Fatal(err)
	}
}

// onThisKernel works on a loop device, behind which QEMU logs what FUSE hands it.
func onThisKernel(ctx context.Context, t *testing.T, l logged) {
	exported := filepath.Join(l.dir, "exported")
	if err := os.WriteFile(exported, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-storage-daemon", append(l.blockdevs("--blockdev"), "--export", "type=fuse,id=export,node-name=disk,writable=on,mountpoint="+exported)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // it completes its log
		if err := cmd.Wait(); err != nil {
			t.Errorf("qemu-storage-daemon: %v", err)
		}
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if info, err := os.Stat(exported); err == nil && info.Size() > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("qemu-storage-daemon exports nothing")
		}
	}
	// QEMU before 10.1 reads the next request into the buffer of one that it has not written yet.
	d, err := disk.OpenSerial(exported, filepath.Join(l.dir, "mounted"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}()
	withDaemon(t, d.Dir, configuration("http://127.0.0.1:"+l.port), func(_ *testkit.Daemon, c *testkit.Client) {
		if err := load.Run(ctx, c, load.Marks{Device: d.Device(), Offset: fileSystemBytes}, l.refs, l.pulls, l.seed); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// withDaemon runs davitd below dir.
func withDaemon(t *testing.T, dir, config string, use func(*testkit.Daemon, *testkit.Client)) {
	t.Helper()
	daemon, err := testkit.StartDaemon(dir, config)
	if err != nil {
		t.Error(err)
	}
	if daemon == nil {
		return
	}
	defer func() {
		if t.Failed() {
			t.Logf("davitd's log:\n%s", daemon.Log())
		}
		if err := daemon.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		return
	}
	client, err := testkit.Dial("unix://" + daemon.Socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	use(daemon, client)
}

func makeDisk(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(fileSystemBytes+markBytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", file, fmt.Sprint(fileSystemBytes/4096)).CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}
