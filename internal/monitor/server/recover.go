package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// recover takes over what the monitor before left, with what the keeper has.
// When it returns all containers are known and their streams are read again.
func (s *server) recover(have inventory) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err // rather try again than take containers for strays
	}
	known := map[string]bool{}
	for _, e := range entries {
		known[e.Name()] = true
		c := s.newContainer(e.Name())
		c.inherited = true
		if err := s.recoverOne(c, have); err != nil {
			s.log.Error("container not taken over", "id", c.id, "error", err)
		}
	}
	for name, fd := range have.fds { // of what is gone
		closeFD(fd)
		s.log.Warn("descriptor of nobody", "name", name)
		_ = s.keeper.drop(name)
	}
	for id, claim := range have.claims {
		if !known[id] && strings.HasPrefix(id, execPrefix) {
			s.endStray(id, claim)
		}
	}
	for _, id := range have.expected {
		if !known[id] {
			s.endHalfMade(id)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recovered = true
	for id, ended := range s.early {
		if c := s.containers[id]; c != nil {
			c.end(ended)
		}
	}
	s.early = nil
	return nil
}

func (s *server) recoverOne(c *container, have inventory) error {
	claim, claimed := have.claims[c.id]
	if err := c.load(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // and leave it: it may run
	}
	s.mu.Lock()
	s.containers[c.id] = c
	s.mu.Unlock()
	c.op.Lock()
	defer c.op.Unlock()
	switch {
	case c.rec.Phase == creating, c.rec.Throwaway:
		console := take(have.fds, c.id+"/console")
		closeIf(console)
		closeIf(take(have.fds, c.id+"/log"))
		if claimed && claim.Ended != nil {
			close(c.ended)
		}
		return s.abandon(c)
	case c.rec.Phase == complete:
		close(c.made)
		close(c.ended)
		close(c.complete)
		s.announce(c)
		return nil
	}
	ended := claim.Ended
	if !claimed {
		// The keeper lost it, and neither an exit nor a living process was found.
		ended = &monitor.Ended{Pid: c.rec.Pid, Code: 255, At: time.Now(), Unknown: true}
	}
	if err := s.recoverStdio(c, have); err != nil {
		s.log.Error("output not taken over", "id", c.id, "error", err)
	}
	if ended == nil {
		s.oom.add(c)
		if o := c.output(); o != nil {
			o.Run()
		}
	}
	close(c.made) // an exit event may have come already and wait for this
	if ended != nil {
		c.end(*ended)
	}
	return nil
}

func (s *server) recoverStdio(c *container, have inventory) error {
	if c.rec.Holder {
		return nil
	}
	console, log := take(have.fds, c.id+"/console"), take(have.fds, c.id+"/log")
	if c.rec.Container.TTY && console < 0 {
		closeIf(log)
		return errors.New("its terminal is lost with the keeper")
	}
	if c.rec.InputOver {
		if err := s.keeper.drop(c.id + "/stdin"); err != nil {
			return err
		}
	}
	return s.openStdio(c, console, log)
}

// endStray kills what was left of an exec.
func (s *server) endStray(id string, claim monitor.KeeperEvent) {
	was, lives := readProcess(claim.Pid)
	if lives = lives && claim.Ended == nil; lives {
		tree{pid: claim.Pid, brand: brandOf(claim.Pid), cgroup: cgroupOf(claim.Pid)}.kill()
	}
	err := s.keeper.kill(id, unix.SIGKILL)
	if errors.Is(err, errGone) {
		err = nil
	}
	if err == nil && lives {
		err = awaitNone("exec", func() []process {
			if now, ok := readProcess(was.pid); ok && now.start == was.start && !now.zombie {
				return []process{now}
			}
			return nil
		})
	}
	if err != nil {
		s.log.Error("exec of the monitor before lives", "id", id, "pid", claim.Pid, "error", err)
	}
	_ = s.keeper.forget(id)
}

// endHalfMade kills an exec that was not yet claimed, if its OCI runtime got
// as far as to write its pid.
func (s *server) endHalfMade(id string) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "*", id+".*"))
	for _, file := range files {
		if filepath.Ext(file) == ".json" {
			dir := filepath.Dir(file)
			if err := awaitCommands(filepath.Join(dir, id+".log")); err != nil {
				s.log.Warn("exec of the monitor before", "id", id, "error", err)
			}
		}
	}
	for _, name := range files {
		file := strings.TrimSuffix(name, filepath.Ext(name)) + ".pid" // which may be new
		if pid, err := readPid(file); err == nil {
			if s.keeper.claim(id, pid, false) == nil {
				s.endStray(id, monitor.KeeperEvent{Pid: pid})
			}
		}
		_ = os.Remove(file)
		_ = os.Remove(name)
	}
	_ = s.keeper.cancel(id)
}

// take takes a descriptor out of those the keeper has sent; -1 if it has none.
func take(fds map[string]int, name string) int {
	fd, ok := fds[name]
	if !ok {
		return -1
	}
	delete(fds, name)
	return fd
}

func closeIf(fd int) {
	if fd >= 0 {
		closeFD(fd)
	}
}
