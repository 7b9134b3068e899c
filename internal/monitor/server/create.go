package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/monitor/stdio"
	"github.com/davit-runtime/davit/internal/ociruntime"
)

// create makes a container, or returns the pid of the one there is.
func (s *server) create(by caller, want monitor.Container, throwaway bool) (int, error) {
	if err := checkID(want.ID); err != nil {
		return 0, err
	}
	if !filepath.IsAbs(want.Bundle) || !filepath.IsAbs(want.Runtime.Path) {
		return 0, fault.New(fault.Invalid, "monitor.Create", "bundle %q and runtime %q must be absolute paths", want.Bundle, want.Runtime.Path)
	}
	c := s.takeOrAdd(want.ID)
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
	err := c.save(func(r *record) { *r = record{Container: want, Throwaway: throwaway} })
	if err == nil {
		err = s.spawn(c)
	}
	if err != nil {
		return 0, errors.Join(err, s.abandon(c))
	}
	s.oom.add(c)
	return c.get().Pid, nil
}

// refuseGone refuses to make what nobody waits for any more. Requests are
// taken up in any order, most of all those that piled up while no monitor ran:
// a caller that gives up a create closes its connection before it sends the
// remove, which may have been answered already. From here on the remove waits
// for c.op, which must be held.
func (s *server) refuseGone(by caller, c *container) error {
	if !by.gone() {
		return nil
	}
	if c.get().Container.ID == "" { // new
		s.drop(c)
	}
	return fault.New(fault.Unavailable, "monitor.Create", "the caller has gone")
}

// spawn takes a container from its record to its first process, which waits
// for start. c.op must be held.
func (s *server) spawn(c *container) error {
	want := c.get().Container
	if err := s.keeper.expect(c.id); err != nil {
		return err
	}
	if err := s.runCreate(c, want); err != nil {
		return err
	}
	pid, err := readPid(c.path("pid"))
	if err != nil {
		return err
	}
	if err := s.keeper.claim(c.id, pid, true); err != nil {
		return err
	}
	if s.protected {
		if err := s.resetOOMScore(pid, want.Bundle); err != nil {
			return err
		}
	}
	if err := context.Cause(s.work.calls); err != nil {
		return err // nobody may be there to use or remove it
	}
	known := c.knownOOM()
	if err := c.save(func(r *record) { r.Phase, r.Pid, r.OOMOthers = created, pid, known }); err != nil {
		return err
	}
	c.output().Run()
	close(c.made)
	return nil
}

// runCreate makes the pipes and runs `create`.
func (s *server) runCreate(c *container, want monitor.Container) error {
	if want.TTY {
		return s.createWithConsole(c, want)
	}
	if err := s.openStdio(c, -1, -1); err != nil {
		return err
	}
	ends, err := c.output().ContainerEnds(inputOf(want))
	if err != nil {
		return err
	}
	defer stdio.CloseAll(ends[:])
	if err := giveStreams(want, ends); err != nil {
		return err
	}
	return s.runtime(want.Runtime, "create", c.path("create.log"), ends,
		func(errorLog string) []string {
			return want.Runtime.Create(errorLog, c.id, want.Bundle, c.path("pid"), "")
		})
}

// createWithConsole runs `create` and takes the terminal that it makes.
func (s *server) createWithConsole(c *container, want monitor.Container) error {
	socket, err := listenConsole(c.dir, "console.sock")
	if err != nil {
		return err
	}
	defer socket.close()
	err = s.runtime(want.Runtime, "create", c.path("create.log"), [3]*os.File{}, func(errorLog string) []string {
		return want.Runtime.Create(errorLog, c.id, want.Bundle, c.path("pid"), ociruntime.Console(socket.path))
	})
	if err != nil {
		return err
	}
	master, err := socket.receive()
	if err != nil {
		return err
	}
	// From here on it outlives us: its close would hang up the container.
	if err := s.keeper.hold(false, []string{c.id + "/console"}, []int{master}); err != nil {
		closeFD(master)
		return err
	}
	return s.openStdio(c, master, -1)
}

func (s *server) openStdio(c *container, console, logFD int) error {
	o, err := stdio.Open(stdio.Config{
		ID: c.id, Dir: c.dir, LogPath: c.get().Container.LogPath,
		Console: console, Log: logFD, Keep: s.keeper.hold, Report: c.report,
	})
	if err == nil {
		c.setOutput(o)
	}
	return err
}

func inputOf(c monitor.Container) stdio.Input {
	switch {
	case !c.Stdin:
		return stdio.Null
	case c.StdinOnce:
		return stdio.Once
	}
	return stdio.Kept
}

func (c *container) path(name string) string { return filepath.Join(c.dir, name) }

// giveStreams makes pipes those of the container's user, who may open them by
// their names then. OCI runtimes cannot do it from within a user namespace.
func giveStreams(to monitor.Container, streams [3]*os.File) error {
	for _, f := range streams {
		if f == nil {
			continue
		}
		if info, err := f.Stat(); err != nil {
			return err
		} else if info.Mode()&os.ModeNamedPipe == 0 {
			continue
		}
		if err := f.Chown(int(to.UID), int(to.GID)); err != nil {
			return err
		}
	}
	return nil
}

func readPid(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err == nil && pid <= 1 {
		err = fmt.Errorf("%s: pid %d", path, pid)
	}
	return pid, err
}

// resetOOMScore gives a container whose spec is silent the score that davit
// was started with, instead of the one that protects davit.
func (s *server) resetOOMScore(pid int, bundle string) error {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return err
	}
	var spec struct {
		Process struct {
			OOMScoreAdj *int `json:"oomScoreAdj"`
		} `json:"process"`
	}
	if err := json.Unmarshal(data, &spec); err != nil || spec.Process.OOMScoreAdj != nil {
		return err
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(s.baseOOM)), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // dead already
	}
	return err
}

// abandon undoes a create that failed or was cut short, and forgets the
// container. c.op must be held.
func (s *server) abandon(c *container) error {
	rec := c.get()
	if c.inherited {
		if err := awaitCommands(c.dir + "/"); err != nil {
			c.s.log.Warn("create of the monitor before", "id", c.id, "error", err) // killed below
		}
	}
	if pid, err := readPid(c.path("pid")); err == nil && !c.hasEnded() {
		// Of use only if the process is the keeper's child, which claim checks.
		if s.keeper.claim(c.id, pid, false) == nil && s.keeper.kill(c.id, sigkill) == nil {
			_ = c.awaitEnd()
		}
	}
	if err := killStrays(c.dir, c.id); err != nil {
		return err
	}
	if err := context.Cause(s.work.commands); err != nil {
		return err // the next monitor goes on
	}
	if _, err := os.Stat(filepath.Join(rec.Container.Runtime.Root, c.id)); err == nil {
		_ = s.runtime(rec.Container.Runtime, "delete", c.path("delete.log"), [3]*os.File{}, func(errorLog string) []string {
			return rec.Container.Runtime.Delete(errorLog, c.id, true)
		})
	}
	if o := c.output(); o != nil {
		o.Close()
	}
	select {
	case <-c.made: // of a throwaway
	default:
		close(c.made)
	}
	s.drop(c)
	return errors.Join(s.keeper.forget(c.id), os.RemoveAll(c.dir))
}

// A consoleSocket takes the terminal that the OCI runtime makes.
type consoleSocket struct {
	path string // for the runtime: short, whatever the directory's path
	file string
	dir  int
	fd   int
}

func listenConsole(dir, name string) (*consoleSocket, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	s := &consoleSocket{
		// A socket's path has at most 107 bytes.
		path: fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), d, name),
		file: filepath.Join(dir, name), dir: d, fd: -1,
	}
	if s.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if err = unix.Bind(s.fd, &unix.SockaddrUnix{Name: s.path}); err == nil {
			err = unix.Listen(s.fd, 1)
		}
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("console socket: %w", err)
	}
	return s, nil
}

// consoleWait bounds what follows a `create` that has succeeded.
const consoleWait = 5 * time.Second

// receive returns the terminal's master.
func (s *consoleSocket) receive() (int, error) {
	if err := await(s.fd, consoleWait); err != nil {
		return -1, err
	}
	conn, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer closeFD(conn)
	if err := await(conn, consoleWait); err != nil {
		return -1, err
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.Join(errors.New("console socket: no terminal came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		monitor.CloseAll(fds)
		return -1, errors.Join(errors.New("console socket: no terminal came"), err)
	}
	return fds[0], nil
}

func (s *consoleSocket) close() {
	closeFD(s.dir)
	if s.fd >= 0 {
		closeFD(s.fd)
	}
	_ = os.Remove(s.file)
}

// await waits until fd can be read.
func await(fd int, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, left.Milliseconds())))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case n > 0:
			return nil
		case left <= 0:
			return fault.New(fault.Unavailable, "monitor.Create", "the OCI runtime sent no terminal within %s", limit)
		}
	}
}

func closeFD(fd int) { _ = unix.Close(fd) }
