package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/holder"
	"github.com/davit-runtime/davit/internal/monitor"
)

// hold starts a pod's holder, or returns the pid of the one there is.
func (s *server) hold(by caller, h monitor.Holder) (int, error) {
	if err := checkID(h.ID); err != nil {
		return 0, err
	}
	c := s.takeOrAdd(h.ID)
	defer c.op.Unlock()
	if rec := c.get(); rec.Phase >= created {
		return rec.Pid, nil
	}
	if err := s.refuseGone(by, c); err != nil {
		return 0, err
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		s.drop(c)
		return 0, err
	}
	err := c.save(func(r *record) { *r = record{Container: monitor.Container{ID: h.ID}, Holder: true} })
	if err == nil {
		err = s.spawnHolder(c, h)
	}
	if err != nil {
		return 0, errors.Join(fault.New(fault.Unavailable, "monitor.Hold", "%w", err), s.abandon(c))
	}
	return c.get().Pid, nil
}

func (s *server) spawnHolder(c *container, h monitor.Holder) error {
	if err := s.keeper.expect(c.id); err != nil {
		return err
	}
	pid, err := forkHolder(h)
	if err != nil {
		return err
	}
	text := []byte(strconv.Itoa(pid))
	// As an OCI runtime leaves it: a successor finds it.
	if err := os.WriteFile(c.path("pid"), text, 0o600); err != nil {
		return err
	}
	if err := s.keeper.claim(c.id, pid, true); err != nil {
		return err
	}
	for _, dir := range h.Cgroup {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), text, 0); err != nil {
			return err
		}
	}
	if err := c.save(func(r *record) { r.Phase, r.Pid = started, pid }); err != nil {
		return err
	}
	close(c.made)
	return nil
}

// holderProgram is the program of holders, made once.
var holderProgram = sync.OnceValues(holder.Open)

// forkHolder starts a holder as the keeper's child, in namespaces and in a PID
// namespace of its own.
func forkHolder(h monitor.Holder) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread has changed its namespaces and must end.
		runtime.LockOSThread()
		for _, path := range h.Namespaces {
			if err = enter(path); err != nil {
				return
			}
		}
		attr := &os.ProcAttr{
			Dir: "/", Env: []string{"DAVIT_POD=" + h.ID}, // ofRuntimes counts on some environment
			Sys: &unix.SysProcAttr{Cloneflags: unix.CLONE_PARENT, Setsid: true},
		}
		if h.Users != "" {
			pid, err = execMappedHolder(attr, h.Users)
			return
		}
		attr.Sys.Cloneflags |= unix.CLONE_NEWPID
		var p *os.Process
		if p, err = execHolder(attr); err == nil {
			pid = p.Pid
			err = p.Release()
		}
	}()
	<-done
	return pid, err
}

// execMappedHolder starts a holder whose PID namespace belongs to the user
// namespace that is pinned at users.
func execMappedHolder(attr *os.ProcAttr, users string) (int, error) {
	namespace, err := os.Open(users)
	if err != nil {
		return 0, err
	}
	defer namespace.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	attr.Files = []*os.File{nil, nil, nil, namespace, writer}
	p, err := execHolder(attr, "users")
	_ = writer.Close()
	if err != nil {
		return 0, err
	}
	_ = p.Release() // the keeper's
	var pid [8]byte
	if _, err := io.ReadFull(reader, pid[:]); err != nil {
		return 0, fmt.Errorf("a holder in user namespace %s: %w", users, err)
	}
	return int(binary.NativeEndian.Uint64(pid[:])), nil
}

func execHolder(attr *os.ProcAttr, more ...string) (*os.Process, error) {
	args := append([]string{"davit-monitor", "hold"}, more...)
	if f, err := holderProgram(); err == nil {
		if p, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), args, attr); err == nil {
			return p, nil
		}
	}
	if len(more) > 0 {
		return nil, errors.New("the kernel runs no programs in memory (vm.memfd_noexec)")
	}
	return os.StartProcess("/proc/self/exe", args, attr)
}

func enter(namespace string) error {
	fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, 0)
		closeFD(fd)
	}
	if err != nil {
		return &os.PathError{Op: "setns", Path: namespace, Err: err}
	}
	return nil
}
