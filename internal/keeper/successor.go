package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// The version of what a keeper and its monitor leave to those that take their
// place, another program maybe: the handover, and all that is below the state
// directory and of theirs (records, claims, commit files), and the names of
// descriptors. What older programs would misread needs a new version;
// a field that they may do without does not.
const (
	handoverVersion = 1
	handoverOldest  = 1 // that this program takes over
)

// A handover is what is in no file. It is passed on by exec, which keeps
// children, descriptors, process ID and the role of subreaper.
type handover struct {
	Version int `json:"version"`
	BaseOOM int `json:"base_oom"`
	// Descriptors. Caller is who waits for the replacement; -1: nobody.
	Lock     int `json:"lock"`
	Listener int `json:"listener"`
	Door     int `json:"door"`
	Caller   int `json:"caller"`

	Claims   map[string]claimState `json:"claims"`
	Expected []string              `json:"expected"`
	Dead     []monitor.Ended       `json:"dead"`
	Held     map[string]heldState  `json:"held"`
}

type claimState struct {
	Pid    int            `json:"pid"`
	Start  uint64         `json:"start"`
	Record bool           `json:"record"`
	Ended  *monitor.Ended `json:"ended,omitempty"`
	Pidfd  int            `json:"pidfd"` // -1: a child, or ended
}

type heldState struct {
	FD     int  `json:"fd"`
	Silent bool `json:"silent"`
}

// handoverVar is the variable that tells a successor which descriptor the
// handover is.
const handoverVar = "DAVIT_HANDOVER"

// A successor is a program that is to take this one's place.
type successor struct {
	path   string
	caller *monitor.Link // may be nil
}

// tell says to the caller how it went.
func (s *successor) tell(err error) {
	if s == nil || s.caller == nil {
		return
	}
	reply := monitor.KeeperEvent{Op: "reply"}
	if err != nil {
		reply.Error = err.Error()
	}
	_ = s.caller.Send(reply) // who has gone looks again
	_ = s.caller.Close()
}

// replace begins to put the program at s.path in this one's place: unless the
// program itself says that it cannot, the monitor is asked to end, and then
// become is called.
func (k *Keeper) replace(s *successor) error {
	k.mu.Lock()
	data, err := json.Marshal(k.state())
	k.mu.Unlock()
	if err != nil {
		return err
	}
	version, err := k.tryOut(s.path, data)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next != nil {
		return errors.New("davit-monitor is being replaced already")
	}
	k.log.Info("davit-monitor is to be replaced", "by", s.path, "version", version)
	k.next = s
	if k.endTurn != nil {
		k.endTurn()
	}
	return nil
}

func (k *Keeper) takeNext() *successor {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.next
	k.next = nil
	return s
}

// replaceOn replaces the program by what is now where it came from.
func (k *Keeper) replaceOn(hangups <-chan os.Signal) {
	for range hangups {
		path, err := os.Readlink("/proc/self/exe")
		if err == nil {
			err = k.replace(&successor{path: strings.TrimSuffix(path, " (deleted)")})
		}
		if err != nil {
			k.log.Error("davit-monitor is not replaced", "by", path, "error", err)
		}
	}
}

// tryLimit is how long a program may take to say that it can take over.
const tryLimit = 10 * time.Second

// tryOut asks a program whether it can take over, see Check, and returns its
// version.
func (k *Keeper) tryOut(path string, state []byte) (version string, err error) {
	var files [3]*os.File
	for i := range files {
		fd, err := unix.MemfdCreate("check", unix.MFD_CLOEXEC)
		if err != nil {
			return "", err
		}
		files[i] = os.NewFile(uintptr(fd), "check")
		defer files[i].Close()
	}
	if _, err := files[0].WriteAt(state, 0); err != nil {
		return "", err
	}
	var kill *time.Timer
	ended, err := k.start(path, []string{path, "check"}, files[:], func(pid int) {
		kill = time.AfterFunc(tryLimit, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.own[pid] != nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		})
	})
	if err != nil {
		return "", fmt.Errorf("%s cannot take over: %w", path, err)
	}
	status := <-ended
	kill.Stop()
	if status.ExitStatus() != 0 { // -1 of a signal
		return "", fmt.Errorf("%s cannot take over: %s: %s", path, describe(status), said(files[2]))
	}
	return said(files[1]), nil
}

func said(f *os.File) string {
	const enough = 500
	text := make([]byte, enough)
	n, _ := f.ReadAt(text, 0)
	return string(bytes.TrimSpace(text[:n]))
}

// Check reports whether a keeper of this program can take over what it reads.
func Check(r io.Reader) error {
	var h handover
	if err := json.NewDecoder(r).Decode(&h); err != nil {
		return fmt.Errorf("handover: %w", err)
	}
	if h.Version < handoverOldest || h.Version > handoverVersion {
		return fmt.Errorf("handover of version %d, this davit-monitor knows %d to %d", h.Version, handoverOldest, handoverVersion)
	}
	return nil
}

// state is what a successor needs. k.mu must be held until it has begun.
func (k *Keeper) state() handover {
	h := handover{
		Version: handoverVersion, BaseOOM: k.baseOOM, Caller: -1,
		Lock: descriptor(k.files.lock), Listener: descriptor(k.files.listener), Door: descriptor(k.files.door),
		Claims: map[string]claimState{}, Held: map[string]heldState{},
	}
	for id, c := range k.claims {
		s := claimState{Pid: c.pid, Start: c.start, Record: c.record, Ended: c.ended, Pidfd: -1}
		if c.followed && c.ended == nil {
			s.Pidfd = c.pidfd
		}
		h.Claims[id] = s
	}
	for id := range k.expected {
		h.Expected = append(h.Expected, id)
	}
	for _, ended := range k.dead {
		h.Dead = append(h.Dead, ended)
	}
	for name, held := range k.held {
		h.Held[name] = heldState{held.fd, held.silent}
	}
	return h
}

// descriptor returns f's, and unlike f.Fd leaves the mode of what it is of alone.
func descriptor(f *os.File) int {
	fd := -1
	if f == nil {
		return fd
	}
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

// descriptors are all those that h names.
func (h handover) descriptors() []int {
	fds := []int{h.Lock, h.Listener, h.Door}
	if h.Caller >= 0 {
		fds = append(fds, h.Caller)
	}
	for _, c := range h.Claims {
		if c.Pidfd >= 0 {
			fds = append(fds, c.Pidfd)
		}
	}
	for _, held := range h.Held {
		fds = append(fds, held.FD)
	}
	return fds
}

// become makes this process the successor. No monitor may live. It returns
// only if it did not work, and then all is as before.
//
// No exit is lost: what dies from here on is the successor's to reap, since
// reaping needs k.mu.
func (k *Keeper) become(s *successor, hangups chan os.Signal) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.state()
	if s.caller != nil {
		f, err := s.caller.File()
		if err != nil {
			return err
		}
		defer f.Close()
		h.Caller = descriptor(f)
	}
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	memory, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(memory), "handover")
	defer file.Close()
	if _, err := file.Write(data); err != nil {
		return err
	}
	fds := append(h.descriptors(), memory)
	setCloseOnExec(fds, false)
	defer setCloseOnExec(fds, true)
	err = turnInto(hangups, s.path, []string{"davit-monitor", "keep", "--state", k.dir},
		append(os.Environ(), handoverVar+"="+strconv.Itoa(memory)))
	return &os.PathError{Op: "exec", Path: s.path, Err: err}
}

// turnInto becomes another program, or returns why not. SIGHUP is ignored until
// that one takes it: it would end it. Those to hangups go on after an error.
//
// Go: os/signal, SIGHUP that is ignored when a program starts remains so until Notify.
func turnInto(hangups chan os.Signal, path string, args, env []string) error {
	signal.Ignore(unix.SIGHUP)
	defer signal.Notify(hangups, unix.SIGHUP)
	return syscall.Exec(path, args, env)
}

func setCloseOnExec(fds []int, on bool) {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	}
}

// takeOver makes a keeper of a handover, and who waits for that; nil if there
// is none.
func takeOver(o Options) (*Keeper, *successor, error) {
	text := os.Getenv(handoverVar)
	if text == "" {
		return nil, nil, nil
	}
	_ = os.Unsetenv(handoverVar)
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", handoverVar, err)
	}
	file := os.NewFile(uintptr(fd), "handover")
	defer file.Close()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, nil, err
	}
	var h handover
	if err := errors.Join(Check(bytes.NewReader(data)), json.Unmarshal(data, &h)); err != nil {
		return nil, nil, err
	}
	setCloseOnExec(h.descriptors(), true)
	k := newKeeper(o)
	k.baseOOM = h.BaseOOM
	k.files = files{
		lock:     os.NewFile(uintptr(h.Lock), "keeper.lock"),
		listener: os.NewFile(uintptr(h.Listener), "monitor.sock"),
		door:     os.NewFile(uintptr(h.Door), "keeper.sock"),
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, s := range h.Claims {
		c := &claim{pid: s.Pid, start: s.Start, record: s.Record, ended: s.Ended}
		k.claims[id] = c
		if s.Pidfd >= 0 {
			c.followed, c.pidfd = true, s.Pidfd
			k.watch(id, c)
		}
	}
	for _, id := range h.Expected {
		k.expected[id] = true
	}
	for _, ended := range h.Dead {
		k.dead[ended.Pid] = ended
	}
	for name, s := range h.Held {
		k.held[name] = held{s.FD, s.Silent}
	}
	before := &successor{}
	if h.Caller >= 0 {
		if before.caller, err = monitor.NewLink(h.Caller); err != nil {
			o.Log.Warn("whoever asked for the replacement is not told", "error", err)
			before.caller = nil
		}
	}
	o.Log.Info("davit-monitor took over", "version", o.Version, "claims", len(k.claims), "descriptors", len(k.held))
	return k, before, nil
}
