package terminal

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A shell that had the terminal and is gone leaves it to nobody; who takes it
// back is in the foreground. That needs a session of its own: this test runs
// itself a second time, in one.
func TestTakeBack(t *testing.T) {
	const inside = "DAVIT_TEST_SESSION"
	if os.Getenv(inside) != "" {
		shell := exec.Command("true")
		shell.Stdin = os.Stdin
		shell.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: 0}
		if err := shell.Run(); err != nil {
			t.Fatal(err)
		}
		if now := foreground(t); now == unix.Getpgrp() {
			t.Fatal("the shell had no terminal")
		}
		TakeBack(os.Stdin)
		if now := foreground(t); now != unix.Getpgrp() {
			t.Errorf("group %d is in the foreground, not %d", now, unix.Getpgrp())
		}
		return
	}
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer screen.Close()
	again := exec.Command(os.Args[0], "-test.run=^TestTakeBack$")
	again.Env, again.Stdin = append(os.Environ(), inside+"=1"), screen
	again.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func foreground(t *testing.T) int {
	t.Helper()
	group, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	if err != nil {
		t.Fatal(err)
	}
	return group
}
