package server_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

func TestHold(t *testing.T) {
	n := newNode(t)
	id := newID()
	cgroup := "/sys/fs/cgroup/pids/" + cgroups
	must(t, os.MkdirAll(cgroup, 0o755))
	h := monitor.Holder{ID: id, Namespaces: []string{"/proc/self/ns/net", "/proc/self/ns/uts"}, Cgroup: []string{cgroup}}
	for i, ns := range h.Namespaces { // of this process, not of the one that opens them
		h.Namespaces[i] = strings.Replace(ns, "self", fmt.Sprint(os.Getpid()), 1)
	}
	pid, err := n.Hold(n.ctx(), h)
	must(t, err)
	again, err := n.Hold(n.ctx(), h)
	must(t, err)
	if again != pid {
		t.Errorf("pids %d and %d", pid, again)
	}
	if procs, err := os.ReadFile(cgroup + "/cgroup.procs"); err != nil || strings.TrimSpace(string(procs)) != fmt.Sprint(pid) {
		t.Errorf("cgroup.procs %q %v", procs, err)
	}
	for _, ns := range []string{"net", "pid"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		must(t, err)
		if (own == its) != (ns == "net") {
			t.Errorf("%s: %s and %s", ns, own, its)
		}
	}
	// A container in it: what it leaves behind becomes the holder's.
	c := n.container("crun", "sh", "-c", "(sleep 0.2; exit 3) & exit 0")
	s := spec(n.rootfs, c.ID, []string{"sh", "-c", "sleep 0.2 & exit 0"})
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.PIDNamespace {
			s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", pid)
		}
	}
	n.writeSpec(c, s)
	n.run(c)
	n.killMonitor()
	if exit := n.exit(c.ID); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	await(t, "holder reaps", func() bool { return len(children(pid)) == 0 })
	n.remove(c.ID)
	again, err = n.Hold(n.ctx(), h)
	must(t, err)
	if again != pid || unix.Kill(pid, 0) != nil {
		t.Errorf("after a kill of the monitor: pids %d and %d", pid, again)
	}
	n.remove(id)
	n.remove(id)
	if err := unix.Kill(pid, 0); err == nil {
		t.Error("the holder lives")
	}
}

// The end of a holder is told like that of a container: its pod is dead.
func TestHolderEnds(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(n.ctx())
	exits, done := make(chan monitor.Exit, 10), make(chan error, 1)
	go func() { done <- n.Watch(ctx, func(e monitor.Exit) { exits <- e }) }()
	h := monitor.Holder{ID: newID()}
	pid, err := n.Hold(n.ctx(), h)
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL))
	select {
	case e := <-exits:
		if e.ID != h.ID || e.Code != 137 {
			t.Errorf("%+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("its end was not told")
	}
	n.killMonitor() // it is told again
	select {
	case e := <-exits:
		if e.ID != h.ID || e.Code != 137 {
			t.Errorf("%+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("its end was not told again")
	}
	n.remove(h.ID)
	cancel()
	<-done
}

func TestSeccomp(t *testing.T) {
	n := newNode(t)
	c := n.container("crun", "true")
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}},
	}
	program, err := n.Seccomp(n.ctx(), c.Runtime, profile)
	must(t, err)
	if len(program) == 0 || len(program)%8 != 0 {
		t.Fatalf("program of %d bytes", len(program))
	}
	if left := n.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	s := spec(n.rootfs, c.ID, []string{"sh", "-c", "mkdir /tmp/x; echo $?; sleep 1000"})
	s.Annotations = map[string]string{"run.oci.seccomp_bpf_data": base64.StdEncoding.EncodeToString(program)}
	n.writeSpec(c, s)
	n.run(c)
	await(t, "output", func() bool { return len(lines(t, c.LogPath)["stdout"]) > 0 })
	if got := lines(t, c.LogPath); got["stdout"][0] != "1" || !strings.Contains(strings.Join(got["stderr"], ""), "Operation not permitted") {
		t.Errorf("the filter is not in force: %q", got)
	}
	r, err := n.Exec(n.ctx(), monitor.Exec{ContainerID: c.ID, Args: []string{"mkdir", "/tmp/x"}})
	must(t, err)
	if r.Code == 0 {
		t.Error("the filter is not in force in an exec")
	}
	n.remove(c.ID)
}
