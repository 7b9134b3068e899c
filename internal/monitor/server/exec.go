package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
)

const (
	execPrefix = "exec-" // of the keeper's names for commands; container IDs are hexadecimal
	// maxExecBytes keeps an ExecResult below the kubelet's 16 MiB for a message.
	maxExecBytes = 15 << 20
	// execIdle is how long the output of a command without a time limit that
	// has ended must be silent to count as complete, if a child holds it open.
	execIdle = 100 * time.Millisecond
	// execKillWait is how long a command killed at its time limit may take to go.
	execKillWait = 500 * time.Millisecond
)

// errExecTimeout is the cause of a context that ends at Exec.Timeout.
var errExecTimeout = fault.New(fault.Deadline, "monitor.Exec", "the time limit is over")

// exec runs one command in a container until it, its time or ctx ends.
func (s *server) exec(ctx context.Context, e monitor.Exec) (monitor.ExecResult, error) {
	c, err := s.running(e)
	if err != nil {
		return monitor.ExecResult{}, err
	}
	if e.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, e.Timeout, errExecTimeout)
		defer cancel()
	}
	x := &execution{s: s, c: c, id: execPrefix + rand.Text(), ended: make(chan monitor.Ended, 1)}
	x.out.left = maxExecBytes
	if e.MaxBytes > 0 && e.MaxBytes < maxExecBytes {
		x.out.left = e.MaxBytes
	}
	s.mu.Lock()
	s.execs[x.id] = x.ended
	s.mu.Unlock()
	spawned := make(chan error, 1)
	go func() { spawned <- x.spawn(e.Args) }()
	select {
	case err := <-spawned:
		defer x.forget()
		if err != nil {
			return monitor.ExecResult{}, err
		}
		return x.wait(ctx, e.Timeout > 0)
	case <-ctx.Done():
	}
	// The OCI runtime's command goes on without the caller: killed, it would
	// leave its fork behind, which becomes the command and is nobody's.
	s.work.under.Add(1) // within the one of this request
	go func() {
		defer s.work.done()
		defer x.forget()
		if <-spawned == nil {
			x.kill()
		}
	}()
	return monitor.ExecResult{}, context.Cause(ctx)
}

// running returns a container in which a command can be run.
func (s *server) running(e monitor.Exec) (*container, error) {
	s.mu.Lock()
	c := s.containers[e.ContainerID]
	s.mu.Unlock()
	switch {
	case c == nil || c.get().Phase == creating:
		return nil, fault.New(fault.NotFound, "monitor.Exec", "no container %s", e.ContainerID)
	case len(e.Args) == 0:
		return nil, fault.New(fault.Invalid, "monitor.Exec", "no command")
	case c.hasEnded() || c.get().Phase != started || c.get().Holder:
		return nil, fault.New(fault.Precondition, "monitor.Exec", "container %s is not running", e.ContainerID)
	}
	return c, nil
}

// An execution is one command under way.
type execution struct {
	s       *server
	c       *container
	id      string // the keeper's name for it
	pid     int
	ended   chan monitor.Ended
	readers []*os.File
	out     capture
}

// spawn leaves the command running, claimed by the keeper, and its output read.
func (x *execution) spawn(args []string) error {
	processFile, pidFile := x.c.path(x.id+".json"), x.c.path(x.id+".pid")
	defer os.Remove(processFile)
	defer os.Remove(pidFile)
	r := x.c.get().Container
	if err := x.s.writeProcess(processFile, r.Bundle, args); err != nil {
		return err
	}
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer stdin.Close()
	var ends [2]*os.File
	for i := range ends {
		reader, writer, err := x.c.pipe()
		if err != nil {
			return err
		}
		defer writer.Close()
		x.readers, ends[i] = append(x.readers, reader), writer
	}
	if err := x.s.keeper.expect(x.id); err != nil {
		return err
	}
	err = x.s.runtime(r.Runtime, "exec", x.c.path(x.id+".log"), [3]*os.File{stdin, ends[0], ends[1]},
		func(errorLog string) []string {
			return r.Runtime.Exec(errorLog, x.c.id, processFile, pidFile)
		})
	pid, pidErr := readPid(pidFile)
	if err == nil {
		err = pidErr
	}
	if pidErr == nil { // also of a command line that was cut short
		x.pid = pid
		err = errors.Join(err, x.s.keeper.claim(x.id, pid, false))
	}
	if err != nil {
		x.kill()
		return x.explain(err)
	}
	for i, reader := range x.readers {
		x.out.open.Add(1)
		go x.out.read(reader, i)
	}
	return nil
}

// explain gives the reason that OCI runtimes do not name: the container ended.
func (x *execution) explain(err error) error {
	if k := fault.KindOf(err); k != fault.Internal && k != fault.Exhausted { // no memory to fork is what a dying PID namespace says
		return err
	}
	select {
	case <-x.c.ended:
		return fault.New(fault.Unavailable, "monitor.Exec", "container %s has ended: %w", x.c.id, err)
	case <-time.After(execIdle):
		return err
	}
}

// writeProcess writes the process of a container's spec with other arguments.
func (s *server) writeProcess(path, bundle string, args []string) error {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return err
	}
	var spec struct {
		Process map[string]any `json:"process"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	spec.Process["args"] = args
	delete(spec.Process, "terminal")
	delete(spec.Process, "consoleSize")
	if _, ok := spec.Process["oomScoreAdj"]; !ok {
		spec.Process["oomScoreAdj"] = s.baseOOM // not that which protects davit
	}
	if data, err = json.Marshal(spec.Process); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// wait collects the result. What a command leaves behind with its output open
// ends with its time limit, and so does the call; without one it lives on.
//
// CRI: api.proto, ExecSync, timeout.
func (x *execution) wait(ctx context.Context, limited bool) (monitor.ExecResult, error) {
	var ended monitor.Ended
	select {
	case ended = <-x.ended:
	case <-ctx.Done():
		x.kill()
		return monitor.ExecResult{}, context.Cause(ctx)
	}
	if ended.Signal == int(unix.SIGKILL) {
		select { // together with its container?
		case <-x.c.ended:
			return monitor.ExecResult{}, fault.New(fault.Unavailable, "monitor.Exec", "container %s ended while the command ran", x.c.id)
		case <-time.After(execIdle):
		}
	}
	if err := x.out.settle(ctx, time.Now(), limited); err != nil {
		killTree(x.pid, x.readers...)
		return monitor.ExecResult{}, fault.New(fault.KindOf(err), "monitor.Exec",
			"the command has ended with %d, but what it left behind holds its output open: %w", ended.Code, err)
	}
	result := monitor.ExecResult{Code: ended.Code}
	result.Stdout, result.Stderr = x.out.take()
	return result, nil
}

// kill ends the command and what it started.
func (x *execution) kill() {
	if x.pid == 0 {
		return
	}
	tree := descendants(x.pid)
	if x.s.keeper.kill(x.id, sigkill) == nil {
		select {
		case <-x.ended:
		case <-time.After(execKillWait):
			x.s.log.Warn("exec outlives SIGKILL", "id", x.c.id, "pid", x.pid)
		}
	}
	for _, p := range tree {
		p.kill()
	}
	killTree(x.pid, x.readers...)
}

// forget drops all of the execution.
func (x *execution) forget() {
	x.s.mu.Lock()
	delete(x.s.execs, x.id)
	x.s.mu.Unlock()
	for _, r := range x.readers {
		_ = r.Close()
	}
	if err := x.s.keeper.forget(x.id); err != nil {
		x.s.log.Error("exec not forgotten", "id", x.id, "error", err)
	}
}

// A capture is the output of a command, up to a limit for both streams together.
type capture struct {
	open sync.WaitGroup

	mu   sync.Mutex
	left int
	data [2][]byte
	last time.Time // of the last bytes
}

func (c *capture) read(from *os.File, stream int) {
	defer c.open.Done()
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		kept := min(n, c.left)
		c.left -= kept
		c.data[stream] = append(c.data[stream], buf[:kept]...)
		c.last = time.Now()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// settle waits until the output is complete: closed or, unless only that will
// do, at its limit or silent.
func (c *capture) settle(ctx context.Context, ended time.Time, onlyClosed bool) error {
	closed := make(chan struct{})
	go func() {
		c.open.Wait()
		close(closed)
	}()
	tick := time.NewTicker(execIdle / 5)
	defer tick.Stop()
	for {
		select {
		case <-closed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			c.mu.Lock()
			quietSince := c.last
			full := c.left == 0
			c.mu.Unlock()
			if quietSince.Before(ended) {
				quietSince = ended
			}
			if !onlyClosed && (full || now.Sub(quietSince) > execIdle) {
				return nil
			}
		}
	}
}

// take returns what was captured.
func (c *capture) take() (stdout, stderr []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.data[0], c.data[1]
}

// A process is one line of /proc, as far as trees need it.
type process struct {
	pid, parent, session int
	start                string
	zombie, ownMount     bool
}

// kill sends SIGKILL unless the pid is another's by now.
func (p process) kill() {
	if now, ok := readProcess(p.pid); ok && now.start == p.start {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
}

func readProcess(pid int) (process, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// kernel: proc.rst, stat. The name may contain anything, ")" too.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 20 {
		return process{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	session, _ := strconv.Atoi(f[3])
	return process{pid: pid, parent: parent, session: session, start: f[19], zombie: f[0] == "Z"}, true
}

// descendants finds the living processes that pid started, or that are in the
// session it leads, itself excepted.
func descendants(pid int) []process {
	all := processes()
	var found []process
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		for _, p := range all {
			related := p.parent == tree[i] || p.session == pid
			if related && p.pid != pid && !slices.Contains(tree, p.pid) {
				tree = append(tree, p.pid)
				found = append(found, p)
			}
		}
	}
	return found
}

// processes reads all that live.
func processes() []process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var all []process
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			if p, ok := readProcess(n); ok && !p.zombie {
				all = append(all, p)
			}
		}
	}
	return all
}

// ofRuntimes finds the keeper's children whose environment match accepts: what
// OCI runtimes of the monitor before are or have left. unsure are those whose
// environment cannot be seen now: exec empties it for a moment, and crun and
// runc exec themselves again. Nothing that davit starts has none for good, and
// what has a mount namespace of its own is only of interest if it matches.
func ofRuntimes(match func(env []byte) bool) (found, unsure []process) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, nil
	}
	keeper := os.Getppid()
	for _, p := range processes() {
		if p.parent != keeper || p.pid == os.Getpid() {
			continue
		}
		dir := "/proc/" + strconv.Itoa(p.pid)
		env, err := os.ReadFile(dir + "/environ")
		if err != nil {
			continue
		}
		mnt, err := os.Readlink(dir + "/ns/mnt")
		p.ownMount = err == nil && mnt != own
		switch {
		case match(env):
			found = append(found, p)
		case len(env) == 0 && err == nil && mnt == own:
			unsure = append(unsure, p)
		}
	}
	return found, unsure
}

// killStrays kills, until none is left, the processes with a container's
// directory or ID in their environment, by marker or, of runc, by its state
// directory. The container itself is none of them: its environment comes from
// its spec.
func killStrays(dir, id string) error {
	return awaitNone("strays of "+id, func() []process {
		left, unsure := ofRuntimes(func(env []byte) bool {
			ofRunc := bytes.Contains(env, []byte("_LIBCONTAINER_STATEDIR=")) && bytes.Contains(env, []byte("/"+id+"\x00"))
			return ofRunc || bytes.Contains(env, []byte(marker+dir+"/"))
		})
		for _, p := range left {
			p.kill()
		}
		return append(left, unsure...)
	})
}

// awaitCommands waits until the commands of OCI runtimes that the monitor
// before ran with an error log of that prefix have ended. What they leave for
// a container has their environment, but a mount namespace of its own.
//
// None is missed: this monitor began only when the one before was reaped, so
// that they are the keeper's children, and when all its forks had come to
// their exec, which closes their copy of its lock (see awaitLock).
func awaitCommands(logPrefix string) error {
	return awaitNone("commands of the OCI runtime", func() []process {
		found, unsure := ofRuntimes(func(env []byte) bool { return bytes.Contains(env, []byte(marker+logPrefix)) })
		return append(slices.DeleteFunc(found, func(p process) bool { return p.ownMount }), unsure...)
	})
}

func awaitNone(what string, find func() []process) error {
	for end := time.Now().Add(endWait); ; time.Sleep(2 * time.Millisecond) {
		left := find()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fault.New(fault.Unavailable, "monitor", "%d %s do not end, one is %d", len(left), what, left[0].pid)
		}
	}
}

// killTree kills what a command left behind, which it started or which holds
// its output open, until a look finds nothing more.
func killTree(pid int, output ...*os.File) {
	if pid <= 1 {
		return
	}
	for range 20 {
		found := append(descendants(pid), holders(output)...)
		if len(found) == 0 {
			return
		}
		for _, p := range found {
			p.kill()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// holders finds the processes that have the other end of a pipe open.
func holders(pipes []*os.File) (found []process) {
	links := map[string]bool{}
	for _, pipe := range pipes {
		if info, err := pipe.Stat(); err == nil {
			links[fmt.Sprintf("pipe:[%d]", info.Sys().(*syscall.Stat_t).Ino)] = true
		}
	}
	for _, p := range processes() {
		fds, _ := filepath.Glob("/proc/" + strconv.Itoa(p.pid) + "/fd/*")
		if p.pid != os.Getpid() && slices.ContainsFunc(fds, func(fd string) bool { link, _ := os.Readlink(fd); return links[link] }) {
			found = append(found, p)
		}
	}
	return found
}
