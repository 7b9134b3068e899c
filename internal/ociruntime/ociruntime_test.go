package ociruntime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/fault"
)

func TestCommandLines(t *testing.T) {
	r := Runtime{Path: "/bin/crun", Root: "/run/x"}
	systemd, bare := r, r
	systemd.SystemdCgroup, bare.NoCgroup = true, true
	for _, test := range []struct {
		got  []string
		want string
	}{
		{r.Create("/l", "id", "/b", "/p", ""), "/bin/crun --root /run/x --log /l --log-format json create --bundle /b --pid-file /p id"},
		{systemd.Create("", "id", "/b", "/p", "/c"), "/bin/crun --root /run/x --systemd-cgroup create --bundle /b --pid-file /p --console-socket /c id"},
		{bare.Start("", "id"), "/bin/crun --root /run/x --cgroup-manager=disabled start id"},
		{r.Delete("", "id", true), "/bin/crun --root /run/x delete --force id"},
		{r.Exec("", "id", "/j", "/p", ""), "/bin/crun --root /run/x exec --detach --process /j --pid-file /p id"},
		{r.Exec("", "id", "/j", "/p", "/c"), "/bin/crun --root /run/x exec --detach --process /j --pid-file /p --console-socket /c id"},
		{r.Update("", "id", "/j"), "/bin/crun --root /run/x update --resources /j id"},
		{r.State("", "id"), "/bin/crun --root /run/x state id"},
	} {
		if got := strings.Join(test.got, " "); got != test.want {
			t.Errorf("%s\nwant %s", got, test.want)
		}
	}
}

// Texts are those of crun 1.8.1, runc 1.1.5 and their successors.
func TestErrors(t *testing.T) {
	r := Runtime{Path: "/usr/bin/crun"}
	for _, test := range []struct {
		log, stderr, want string
		kind              fault.Kind
	}{
		{`{"msg":"executable file ` + "`foo`" + ` not found in $PATH: No such file or directory","level":"error","time":"2026"}`, "", "executable file", fault.Invalid},
		{`{"level":"error","msg":"runc create failed: unable to start container process: exec: \"/x\": permission denied"}`, "", "/x", fault.Invalid},
		{`{"level":"warning","msg":"cannot do"}` + "\n" + `{"level":"error","msg":"container ` + "`x`" + ` does not exist"}`, "", "does not exist", fault.NotFound},
		{"", "mount `/host/file` to `tmp`: Not a directory", "/host/file", fault.Invalid},
		{"", `error mounting "/host" to rootfs at "/etc/passwd": mount /host:/etc/passwd, flags: 0x5000: not a directory`, "/host", fault.Invalid},
		{"", "writing file `cpuset.cpus`: Numerical result out of range", "cpuset", fault.Invalid},
		{"", "OOM: the memory limit could be too low: read from sync socket: Connection reset by peer", "memory", fault.Invalid},
		{"", "unable to set memory limit to 4096 (current usage: 2355200, peak usage: 2748416)", "4096", fault.Invalid},
		{"", "error setting cgroup config for procHooks process: openat2 /sys/fs/cgroup/davit.slice/davit-0.scope/cgroup.controllers: no such file or directory", "memory limit", fault.Invalid},
		{"", "error setting cgroup config for procHooks process: cannot get dir FD for /sys/fs/cgroup/davit.slice/davit-0.scope", "memory limit", fault.Invalid},
		{"", "error setting cgroup config for procHooks process: permission denied", "permission", fault.Internal},
		{"", "open executable: Operation not permitted", "executable", fault.Invalid},
		{"", "clone: Resource temporarily unavailable", "clone", fault.Exhausted},
		{"", "first\ncontainer not running: is not running\n", "is not running", fault.Precondition},
		{"garbage\n{", "no space left on device", "no space", fault.Exhausted},
		{"", "", "exit status 1", fault.Internal},
		{`{"level":"error","msg":"a\nb\u0001"}`, "", "a b", fault.Internal},
	} {
		err := r.Classify("create", errors.New("exit status 1"), Message([]byte(test.log), []byte(test.stderr)))
		if !fault.Is(err, test.kind) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v (%v), want %v", err, fault.KindOf(err), test.kind)
		}
	}
	err := r.Classify("create", os.ErrNotExist, "")
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), r.Path) {
		t.Error(err)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"x"}`), []byte("y"))
	f.Fuzz(func(t *testing.T, log, stderr []byte) {
		if m := Message(log, stderr); strings.ContainsAny(m, "\n\x00") || len(m) > 2010 {
			t.Errorf("%q", m)
		}
	})
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "crun-of-mine")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "relative:"+dir)
	for _, name := range []string{"crun-of-mine", program} {
		if got, err := Find(name); err != nil || got != program {
			t.Errorf("%s: %s %v", name, got, err)
		}
	}
	for _, name := range []string{"no-such-program", dir, filepath.Join(dir, "absent")} {
		if _, err := Find(name); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		script string
		known  bool
	}{
		"without": {`[ "$1" = --version ] && echo "crun version 1.8.1" && exit; echo unknown command features >&2; exit 1`, false},
		"with":    {`[ "$1" = --version ] && echo "crun version 1.8.1" && exit; echo '{"ociVersionMax":"1.2.0","mountOptions":["rro"],"linux":{"seccomp":{"enabled":true}}}'`, true},
		"odd":     {`[ "$1" = --version ] && echo "crun version 1.8.1" && exit; echo nonsense`, false},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := Probe(t.Context(), path)
		if err != nil || f.Version != "crun version 1.8.1" || f.Known != test.known || f.Seccomp != test.known || f.MountOptions["rro"] != test.known {
			t.Errorf("%s: %+v %v", name, f, err)
		}
	}
	if _, err := Probe(t.Context(), filepath.Join(dir, "absent")); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}
