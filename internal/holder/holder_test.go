package holder

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The file is one that other programs can read, too.
func TestBuild(t *testing.T) {
	image, err := build()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || len(f.Progs) != 2 || len(image) > 1024 {
		t.Errorf("%v, %d segments, %d bytes", f.Type, len(f.Progs), len(image))
	}
	for _, p := range f.Progs {
		if p.Flags&(elf.PF_W|elf.PF_X) == elf.PF_W|elf.PF_X {
			t.Errorf("%v can be written and run", p.Type)
		}
	}
}

// It is called pause, ends on SIGTERM alone, reaps, and costs next to nothing.
func TestProgram(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0}, 0); err == nil {
		t.Error("the program can be changed")
	}
	// The shell's child becomes the program's, which takes the shell's place.
	cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep 0.1 & exec /proc/%d/fd/%d hold", os.Getpid(), f.Fd()))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	await(t, "name", func() bool { name, _ := os.ReadFile(proc + "comm"); return string(name) == "pause\n" })
	children := proc + fmt.Sprintf("task/%d/children", cmd.Process.Pid)
	await(t, "reaping", func() bool { left, err := os.ReadFile(children); return err == nil && len(left) == 0 })
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGCHLD} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	rollup, err := os.ReadFile(proc + "smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	var kB int
	for line := range strings.Lines(string(rollup)) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kB); err == nil {
			break
		}
	}
	if t.Logf("PSS %d kB", kB); kB > 100 {
		t.Errorf("PSS %d kB", kB)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}
