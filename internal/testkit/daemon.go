package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Daemon is a davitd with directories of its own.
type Daemon struct {
	Bin     string // directory of davitd, davit-monitor and davit
	Root    string
	State   string // a tmpfs, as /run is
	Config  string // file
	Socket  string
	LogFile string
	Logs    string // a directory for the pods' logs
	cmd     *exec.Cmd
	ended   chan error
}

// NewDaemon starts davitd for one test, with the given configuration (TOML,
// may be empty). At the test's end it removes all pods and stops everything;
// if the test failed it prints davitd's log.
func NewDaemon(t testing.TB, config string) *Daemon {
	t.Helper()
	d, err := StartDaemon(t.TempDir(), config)
	if d != nil {
		t.Cleanup(func() {
			failed, log := t.Failed(), d.Log()
			if err := d.Close(); err != nil {
				t.Errorf("end davitd: %v", err)
			}
			if failed {
				t.Logf("davitd's log:\n%s", log)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// StartDaemon starts davitd with all its directories below dir and waits until
// it serves. If it returns a Daemon, also beside an error, Close must be called.
func StartDaemon(dir, config string) (*Daemon, error) {
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Bin:  bin,
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"),
		Config: filepath.Join(dir, "config.toml"), LogFile: filepath.Join(dir, "davitd.log"),
		Socket: filepath.Join(dir, "state", "davit.sock"), Logs: filepath.Join(dir, "logs"),
	}
	for _, made := range []string{d.Root, d.State, d.Logs} {
		if err := os.MkdirAll(made, 0o755); err != nil {
			return nil, err
		}
	}
	// Temporary directories are closed to the root of a user namespace.
	for at := dir; strings.HasPrefix(at, os.TempDir()+"/"); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o711); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(d.Config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if err := unix.Mount("davit-state", d.State, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs for the state: %w", err)
	}
	return d, d.Start()
}

// Start starts davitd, after Stop or Kill with what it left, and waits until
// it answers.
func (d *Daemon) Start() error {
	logFile, err := os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	d.cmd = exec.Command(filepath.Join(d.Bin, "davitd"), "--root", d.Root, "--state", d.State, "--config", d.Config)
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(d.cmd, d.ended)
	if err := d.await(time.Minute); err != nil {
		return fmt.Errorf("%w; its log ends\n%s", err, tail(d.Log(), 20))
	}
	return nil
}

// await returns once davitd answers Version, if only that it has no v1.
func (d *Daemon) await(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := Dial("unix://" + d.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		_, err := c.Version(ctx, &versionRequest)
		if err == nil || status.Code(err) == codes.Unimplemented {
			return nil
		}
		select {
		case ended := <-d.ended:
			d.ended <- ended
			return fmt.Errorf("davitd ended (%v)", ended)
		case <-ctx.Done():
			return fmt.Errorf("davitd does not answer: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop ends davitd alone, by SIGTERM, and waits for it.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case err := <-d.ended:
		d.cmd = nil
		if err != nil {
			return fmt.Errorf("davitd after SIGTERM: %w", err)
		}
		return nil
	case <-time.After(20 * time.Second):
		d.Kill()
		return errors.New("davitd did not end within 20 s of SIGTERM")
	}
}

// Kill ends davitd alone, by SIGKILL.
func (d *Daemon) Kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.ended
	d.cmd = nil
}

// Pids returns the processes of davit that belong to this daemon, by their
// mode: "davitd", "keep", "serve", "hold". Those of containers are not among them.
func (d *Daemon) Pids() map[string][]int {
	pids := map[string][]int{}
	if d.cmd != nil {
		pids["davitd"] = []int{d.cmd.Process.Pid}
	}
	for _, p := range descendants(outermost()) {
		if p.program != "davit-monitor" || !d.owns(p) {
			continue
		}
		for _, mode := range []string{"keep", "serve", "hold"} {
			if slices.Contains(p.args, mode) {
				pids[mode] = append(pids[mode], p.pid)
			}
		}
	}
	return pids
}

// owns reports whether a process names this daemon's state directory, or has
// a parent that does.
func (d *Daemon) owns(p process) bool {
	for p.pid > 1 {
		if strings.Contains(strings.Join(p.args, "\x00"), d.State) {
			return true
		}
		parent, err := readProcess(fmt.Sprintf("/proc/%d", p.parent))
		if err != nil || parent.pid == outermost() {
			return false
		}
		p = parent
	}
	return false
}

// Close removes all pods and ends all processes of davit.
func (d *Daemon) Close() error {
	var errs []error
	if d.cmd == nil {
		errs = append(errs, d.Start())
	}
	if d.cmd != nil {
		errs = append(errs, d.clear())
	}
	errs = append(errs, d.Stop(), d.EndMonitor())
	if err := unix.Unmount(d.State, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("unmount the state directory: %w", err))
	}
	return errors.Join(errs...)
}

func (d *Daemon) clear() error {
	c, err := Dial("unix://" + d.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	return c.RemoveAll(ctx)
}

// EndMonitor ends the keeper, and the monitor with it, once no process of a
// container is below the keeper: ending, too, takes a moment.
func (d *Daemon) EndMonitor() error {
	for deadline := time.Now().Add(3 * time.Second); d.busy() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pids := d.Pids()
		left := slices.Concat(pids["keep"], pids["serve"])
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			for _, pid := range left {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			return fmt.Errorf("davit-monitor did not end within 10 s of SIGTERM: %v", pids)
		}
		for _, pid := range pids["keep"] {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}
}

// busy reports whether the keeper has anything below it but davit's own processes.
func (d *Daemon) busy() bool {
	for _, keeper := range d.Pids()["keep"] {
		for _, p := range descendants(keeper) {
			// Of the program at its root is a throwaway container of the monitor's.
			if p.program != "davit-monitor" || len(p.args) > 0 && p.args[0] == "/davit-monitor" {
				return true
			}
		}
	}
	return false
}

// Log returns what davitd and davit-monitor wrote.
func (d *Daemon) Log() string {
	text, err := os.ReadFile(d.LogFile)
	if err != nil {
		return err.Error()
	}
	monitor, err := os.ReadFile(filepath.Join(d.State, "monitor.log"))
	if err == nil && len(monitor) > 0 {
		text = append(append(text, "--- monitor.log\n"...), monitor...)
	}
	return string(text)
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// MemoryBytes returns the proportional set size of all processes of davit
// that belong to this daemon, holders included.
func (d *Daemon) MemoryBytes() (int64, error) {
	var sum int64
	for _, pids := range d.Pids() {
		for _, pid := range pids {
			pss, err := PSS(pid)
			if err != nil {
				return 0, err
			}
			sum += pss
		}
	}
	return sum, nil
}

// PSS returns a process's proportional set size in bytes. kernel: proc.rst,
// smaps_rollup.
func PSS(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			return kib * 1024, nil
		}
	}
	return 0, fmt.Errorf("smaps_rollup of %d has no Pss", pid)
}
