package inside

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Process is one of a container's.
type Process struct {
	dir *os.File // /proc/PID: of no other process, even once the number is another's
}

// Find returns the process pid of a container. It is an error if that process
// is not, or not seen to be, of that container: so a runtime that is reached
// from another machine, whose numbers mean nothing here, does no harm.
func Find(pid int, container string) (*Process, error) {
	dir, err := os.OpenFile(fmt.Sprintf("/proc/%d", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d, which the runtime names, is not of this node, or has ended: %w", pid, err)
	}
	p := &Process{dir}
	groups, err := p.read("cgroup")
	if err == nil && (container == "" || !strings.Contains(groups, container)) {
		err = fmt.Errorf("process %d on this node is of no control group of container %.12s: its runtime is on another node", pid, container)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return p, nil
}

// Close leaves the process as it is.
func (p *Process) Close() error { return p.dir.Close() }

func (p *Process) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (p *Process) read(name string) (string, error) {
	f, err := p.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(text), err
}

// Tree returns the container's root, with its volumes, and its users. The
// caller closes it.
func (p *Process) Tree() (*Tree, error) {
	t := &Tree{how: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for name, ids := range map[string]*idMap{"uid_map": &t.users, "gid_map": &t.groups} {
		text, err := p.read(name)
		if err != nil {
			return nil, err
		}
		if *ids, err = parseIDs(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	var err error
	t.dir, err = p.open("root", unix.O_PATH|unix.O_DIRECTORY)
	return t, err
}

// LastPid is the process's number as it is seen in its own PID namespace.
//
// kernel: proc_pid_status(5), NSpid.
func (p *Process) LastPid() (string, error) {
	text, err := p.read("status")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if numbers, found := strings.CutPrefix(line, "NSpid:"); found {
			if all := strings.Fields(numbers); len(all) > 0 {
				return all[len(all)-1], nil
			}
		}
	}
	return "", errors.New("the kernel does not tell the process's number in its namespace")
}

// Run runs a program of this node's in the network, IPC, UTS and PID namespaces
// of the process, and in a mount namespace of its own, and waits for it. It has
// to call Enter.
func (p *Process) Run(cmd *exec.Cmd) error {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // and never let go: the thread ends, with its namespaces
		ended <- p.run(cmd)
	}()
	return <-ended
}

func (p *Process) run(cmd *exec.Cmd) error {
	for _, name := range []string{"net", "ipc", "uts", "pid"} {
		ns, err := p.open("ns/"+name, unix.O_RDONLY)
		if err != nil {
			return err
		}
		err = unix.Setns(int(ns.Fd()), 0)
		_ = ns.Close()
		if err != nil {
			return fmt.Errorf("join the %s namespace: %w", name, err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return cmd.Run()
}

// Enter is called in the process that Run runs: it mounts the /proc of its PID
// namespace and becomes a program, which is killed when its parent ends. It
// returns only errors.
func Enter(args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Not by SysProcAttr, which takes a parent that cannot be seen for a dead one.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

// An idMap says which IDs a user namespace has, and which they are here.
type idMap []idRange

type idRange struct{ inside, here, count int64 }

// parseIDs reads a map. kernel: user_namespaces(7), uid_map.
func parseIDs(text string) (m idMap, err error) {
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		var r idRange
		if _, err := fmt.Sscan(s.Text(), &r.inside, &r.here, &r.count); err != nil {
			return nil, fmt.Errorf("%q: %w", s.Text(), err)
		}
		m = append(m, r)
	}
	return m, nil
}

// overflow is whom the kernel shows for IDs that a namespace does not have.
const overflow = 65534

// toInside returns what id here is called inside. Without a map that is id.
func (m idMap) toInside(id int64) int64 {
	for _, r := range m {
		if id >= r.here && id < r.here+r.count {
			return id - r.here + r.inside
		}
	}
	if m == nil {
		return id
	}
	return overflow
}

// toHere returns what id inside is here, if it is anybody.
func (m idMap) toHere(id int64) (int, bool) {
	for _, r := range m {
		if id >= r.inside && id < r.inside+r.count {
			return int(id - r.inside + r.here), true
		}
	}
	return int(id), m == nil
}
