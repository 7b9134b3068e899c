package server

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A process is one line of /proc, as far as trees need it.
type process struct {
	pid, parent, session int
	start                string
	zombie, kernel       bool // kernel: a thread of the kernel's
	ownMount             bool
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
	flags, _ := strconv.ParseUint(f[6], 10, 64)
	return process{
		pid: pid, parent: parent, session: session, start: f[19], zombie: f[0] == "Z", kernel: flags&kernelThread != 0,
	}, true
}

// kernelThread is PF_KTHREAD of sched.h, a flag in /proc/PID/stat.
const kernelThread = 0x200000

// descendants finds those of all that pid started, or that are in the session
// it leads, itself excepted.
func descendants(all []process, pid int) []process {
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

// processes reads all that live, threads of the kernel's excepted.
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
			if p, ok := readProcess(n); ok && !p.zombie && !p.kernel {
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

// A tree is a command with all that it started, however far from it by now.
type tree struct {
	pid    int
	output []string // the pipes that it writes to, as /proc names them
	brand  string
	cgroup string // that brand is to be looked for in, as /proc tells it
}

// kill kills what the command left behind: what descends from it, can write to
// its output or has its brand, until a look finds nothing more.
func (t tree) kill() {
	if t.pid <= 1 {
		return
	}
	for range 20 {
		all := processes() // once: a node has thousands
		found := slices.Concat(descendants(all, t.pid), writers(all, t.output), t.branded(all))
		for _, p := range found {
			p.kill()
		}
		if len(found) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// plainSlack is the timer slack that processes have, in nanoseconds.
const plainSlack = 50_000

// brands counts those given.
var brands atomic.Uint32

// brand gives what the calling goroutine forks, until release, a mark that its
// children inherit whatever they do, and none can take off by accident: a
// timer slack of their own, some nanoseconds above the usual.
// Processes that left their session, closed their files and lost their parent
// are found by nothing else.
//
// kernel: PR_SET_TIMERSLACK(2const); clone(2) and execve(2) keep it.
func brand() (mark string, release func()) {
	slack := plainSlack + 1 + brands.Add(1)%(plainSlack-1)
	runtime.LockOSThread() // a locked thread is no other's parent
	if unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) != nil {
		slack = plainSlack
	}
	return strconv.Itoa(int(slack)), func() {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
		runtime.UnlockOSThread()
	}
}

// brandOf returns what brand has given a process.
func brandOf(pid int) string { return procText(pid, "timerslack_ns") }

func cgroupOf(pid int) string { return procText(pid, "cgroup") }

func procText(pid int, name string) string {
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + name)
	return strings.TrimSpace(string(data))
}

// branded finds those of all with the tree's brand, in its cgroup only: others
// may have another meaning for a slack.
func (t tree) branded(all []process) (found []process) {
	if t.brand == "" || t.brand == strconv.Itoa(plainSlack) || t.cgroup == "" {
		return nil
	}
	for _, p := range all {
		if p.pid != t.pid && brandOf(p.pid) == t.brand && cgroupOf(p.pid) == t.cgroup {
			found = append(found, p)
		}
	}
	return found
}

// pipeName is what a pipe is called in /proc.
func pipeName(pipe *os.File) string {
	info, err := pipe.Stat()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("pipe:[%d]", info.Sys().(*syscall.Stat_t).Ino)
}

// writers finds those of all that have one of the pipes open for writing:
// davitd, and for a moment what it forks, only read.
func writers(all []process, pipes []string) (found []process) {
	if len(pipes) == 0 {
		return nil
	}
	for _, p := range all {
		dir := "/proc/" + strconv.Itoa(p.pid)
		fds, _ := os.ReadDir(dir + "/fd")
		if p.pid != os.Getpid() && slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
			link, _ := os.Readlink(dir + "/fd/" + fd.Name())
			return slices.Contains(pipes, link) && canWrite(dir+"/fdinfo/"+fd.Name())
		}) {
			found = append(found, p)
		}
	}
	return found
}

// canWrite tells by a descriptor's flags. kernel: proc.rst, fdinfo.
func canWrite(fdinfo string) bool {
	data, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(data, []byte("flags:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	flags, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 8, 64)
	return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
}
