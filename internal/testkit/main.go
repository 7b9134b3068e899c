package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stage is the environment variable that tells a process where it stands:
// unset outside, the keeper's pid inside the private namespaces.
const stage = "DAVIT_TESTKIT_INSIDE"

// Main runs a package's tests, and never returns. As root it runs them in a
// second process with a mount and a network namespace of its own; without
// root, in this one, where Root then skips.
func Main(m *testing.M) {
	code, inside := Inside()
	if !inside {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// Inside moves the program into private namespaces, by running it a second
// time. It returns true where the program shall go on: in the second process,
// or without root. In the first process it returns false and the exit code of
// the second, once that and every process below it has ended.
//
// The first process is the subreaper of all: what daemonizes becomes its
// child, is reaped at once, and killed in the end. Survivors make the code 1.
func Inside() (code int, inside bool) {
	if !privileged() {
		return 0, true
	}
	if os.Getenv(stage) != "" {
		if err := arrange(); err != nil {
			fmt.Fprintln(os.Stderr, "testkit:", err)
			os.Exit(1)
		}
		return 0, true
	}
	// Pdeathsig follows the thread that started the child.
	runtime.LockOSThread()
	code, err := contain()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1, false
	}
	return code, false
}

// contain runs this program again inside new namespaces and reaps all that
// comes of it.
func contain() (code int, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become subreaper: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGHUP, unix.SIGINT)
	child, err := syscall.ForkExec(exe, os.Args, &syscall.ProcAttr{
		Env:   append(os.Environ(), stage+"="+strconv.Itoa(os.Getpid())),
		Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
			Pdeathsig:  unix.SIGKILL,
		},
	})
	if err != nil {
		return 0, fmt.Errorf("run in new namespaces: %w", err)
	}
	go func() {
		for s := range signals {
			if s != unix.SIGINT { // a terminal sends it to the whole group
				_ = unix.Kill(child, s.(syscall.Signal))
			}
		}
	}()
	code, err = reapUntil(child)
	if err != nil {
		return 0, err
	}
	if left := killDescendants(); len(left) > 0 && code == 0 {
		return 0, fmt.Errorf("%d processes outlived the tests and were killed: %v", len(left), left)
	}
	return code, nil
}

// reapUntil waits for children until pid is among them and returns its code.
func reapUntil(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case got == pid:
			return ws.ExitStatus(), nil
		}
	}
}

// killDescendants kills all that is below this process and returns the names
// of what did not end by itself within a moment.
func killDescendants() []string {
	var survivors []string
	deadline := time.Now().Add(10 * time.Second)
	patience := time.Now().Add(time.Second)
	for time.Now().Before(deadline) {
		reapAll()
		left := descendants(os.Getpid())
		if len(left) == 0 {
			break
		}
		if time.Now().After(patience) {
			if survivors == nil {
				for _, p := range left {
					survivors = append(survivors, p.String())
				}
			}
			for _, p := range left {
				_ = unix.Kill(p.pid, unix.SIGKILL)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return survivors
}

func reapAll() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// privileged reports whether tests may use root's powers: DAVIT_NOROOT=1 keeps
// root from it.
func privileged() bool { return os.Geteuid() == 0 && os.Getenv("DAVIT_NOROOT") == "" }

// Root skips the test unless it runs as root, inside the namespaces of Main.
func Root(t testing.TB) {
	t.Helper()
	if !privileged() {
		t.Skip("needs root")
	}
	if os.Getenv(stage) == "" {
		t.Fatal("this package's TestMain does not call testkit.Main")
	}
}
