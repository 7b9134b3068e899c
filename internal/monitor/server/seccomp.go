package server

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

// seccomp has the OCI runtime make BPF of a profile, for a throwaway
// container whose process is this program's own holder, and reads it back.
func (s *server) seccomp(by caller, q monitor.SeccompRequest) (monitor.SeccompReply, error) {
	const op = "monitor.Seccomp"
	if !strings.HasPrefix(filepath.Base(q.Runtime.Path), "crun") {
		return monitor.SeccompReply{}, fault.New(fault.Unimplemented, op, "%s takes no compiled profile", q.Runtime.Path)
	}
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(q.Profile, &profile); err != nil {
		return monitor.SeccompReply{}, fault.New(fault.Invalid, op, "%w", err)
	}
	id := "seccomp-" + strings.ToLower(rand.Text())
	bundle := filepath.Join(s.dir, id, "bundle") // goes with the container, whatever happens
	if err := writeThrowaway(bundle, &profile); err != nil {
		return monitor.SeccompReply{}, errors.Join(err, os.RemoveAll(filepath.Dir(bundle)))
	}
	r := q.Runtime
	r.NoCgroup, r.SystemdCgroup = true, false
	pid, err := s.create(by, monitor.Container{ID: id, Runtime: r, Bundle: bundle}, true)
	if err != nil {
		return monitor.SeccompReply{}, err
	}
	err = s.start(id)
	if err == nil {
		err = awaitFilter(pid)
	}
	var program []byte
	if err == nil {
		program, err = readFilter(pid)
	}
	if err = errors.Join(err, s.remove(id)); err != nil {
		return monitor.SeccompReply{}, fault.New(fault.Unimplemented, op, "%w", err)
	}
	return monitor.SeccompReply{Program: program}, nil
}

// writeThrowaway makes a bundle with nothing in it but this program.
func writeThrowaway(bundle string, profile *specs.LinuxSeccomp) error {
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs/dev"), 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	spec := specs.Spec{
		Version: "1.0.0",
		Process: &specs.Process{Cwd: "/", Args: []string{"/davit-monitor", "hold"}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/dev", Source: "tmpfs", Type: "tmpfs"},
			{Destination: "/davit-monitor", Source: self, Type: "bind", Options: []string{"bind", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Seccomp:    profile,
		},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
}

const (
	ptraceSeccompGetFilter = 0x420c // linux/ptrace.h; needs CONFIG_CHECKPOINT_RESTORE
	filterInstruction      = 8      // bytes
	maxFilter              = 4096   // instructions, BPF_MAXINSNS
)

// awaitFilter waits until a process has a seccomp filter.
func awaitFilter(pid int) error {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return err
		}
		if bytes.Contains(status, []byte("\nSeccomp:\t2\n")) {
			return nil
		}
	}
	return errors.New("the throwaway container has no filter")
}

// readFilter reads the one seccomp filter of a process.
func readFilter(pid int) (program []byte, err error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("trace the throwaway container: %w", err)
	}
	defer func() { err = errors.Join(err, unix.PtraceDetach(pid)) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, err
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || !status.Stopped() {
			return nil, errors.Join(errors.New("the throwaway container ended"), err)
		}
		break
	}
	program = make([]byte, maxFilter*filterInstruction)
	n, err := getFilter(pid, 0, program)
	if err != nil {
		return nil, fmt.Errorf("read its filter: %w", err)
	}
	if _, err := getFilter(pid, 1, nil); !errors.Is(err, unix.ENOENT) {
		return nil, errors.Join(errors.New("it has more than one filter"), err)
	}
	return program[:n*filterInstruction], nil
}

func getFilter(pid, number int, into []byte) (instructions int, err error) {
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceSeccompGetFilter, uintptr(pid), uintptr(number),
		uintptr(unsafe.Pointer(unsafe.SliceData(into))), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
