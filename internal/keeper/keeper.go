package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A Keeper keeps one state directory.
type Keeper struct {
	dir     string
	binary  string
	baseOOM int
	files   files
	log     *slog.Logger

	mu       sync.Mutex
	next     *successor                   // what is to take this program's place
	endTurn  func()                       // makes runMonitors return
	own      map[int]chan unix.WaitStatus // how processes of davit's own ended, by pid
	monitor  int                          // its pid; 0 while there is none
	queue    *queue
	claims   map[string]*claim
	expected map[string]bool
	dead     map[int]monitor.Ended // unknown pids, while something is expected
	held     map[string]held
}

// files are what a keeper has open from its beginning to its end.
type files struct {
	lock     *os.File // keeper.lock, locked
	listener *os.File // of monitor.sock
	door     *os.File // listener of keeper.sock
}

type claim struct {
	pid      int
	start    uint64 // of the process, clock ticks after boot: tells a reused pid
	record   bool
	ended    *monitor.Ended
	followed bool // no child of this keeper: watched by pidfd
	pidfd    int  // if followed, until ended
}

type held struct {
	fd     int
	silent bool
}

// Options are how a keeper is run.
type Options struct {
	Dir     string // the state directory
	Binary  string // davit-monitor's own path
	Version string
	// Wait is whether to stand by while another keeper has the directory,
	// rather than to return an error.
	Wait bool
	Log  *slog.Logger

	hangups chan os.Signal // each asks for a replacement
}

// Run keeps a directory until SIGTERM, with which it ends the monitor and itself, but
// no container: the next keeper follows those that run. (A terminal hangs up,
// though: its master is the keeper's.) Nothing half made lives on: the keeper is gone only when a monitor has ended that waited for
// the commands of OCI runtimes under way, ended execs, and took no new work,
// or when endLimit is over.
//
// Asked to by keeper.sock, or by SIGHUP, it becomes another program in place
// (see handover); such a process calls Run, too, and keeps on.
func Run(o Options) error {
	unix.Umask(0o022)
	// Before recovery, which needs to be told of children that die meanwhile.
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	o.hangups = make(chan os.Signal, 1)
	signal.Notify(o.hangups, unix.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	tell := serviceManager(o.Log)
	k, before, err := takeOver(o)
	if err == nil && k == nil {
		k, err = begin(ctx, o, tell)
	}
	if err != nil || k == nil {
		return err
	}
	defer k.files.lock.Close()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	go k.reapLoop(children)
	door, err := net.FileListener(k.files.door)
	if err != nil {
		return err
	}
	defer door.Close()
	go k.answer(door)
	go k.replaceOn(o.hangups)
	tell("READY=1\nSTATUS=davit-monitor " + o.Version + " keeps " + o.Dir)
	before.tell(nil)
	for {
		err := k.runMonitors(ctx)
		s := k.takeNext()
		if ctx.Err() != nil {
			s.tell(errors.New("the keeper is to end"))
			return err
		}
		// A monitor that did not end in order is like one that was killed.
		err = k.become(s, o.hangups)
		o.Log.Error("davit-monitor is not replaced", "by", s.path, "error", err)
		s.tell(err)
	}
}

// begin makes a keeper of a directory, from what the one before has left. It
// returns nil if ctx ends while it stands by.
func begin(ctx context.Context, o Options, tell func(state string)) (*Keeper, error) {
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return nil, err
	}
	lock, err := lockState(o.Dir)
	if err != nil && o.Wait {
		tell("READY=1\nSTATUS=davit-monitor " + o.Version + " stands by: another keeper has " + o.Dir)
		lock, err = o.standBy(ctx)
	}
	if err != nil || lock == nil {
		return nil, err
	}
	k := newKeeper(o)
	k.files.lock, k.baseOOM = lock, protect(o.Log)
	for _, sub := range []string{"exits", "claims", "monitor"} {
		if err := os.MkdirAll(filepath.Join(k.dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	if k.files.listener, err = listen("unix", monitor.SocketPath(k.dir)); err != nil {
		return nil, err
	}
	if k.files.door, err = listen("unixpacket", monitor.KeeperPath(k.dir)); err != nil {
		return nil, err
	}
	return k, k.recoverClaims()
}

func newKeeper(o Options) *Keeper {
	return &Keeper{
		dir: o.Dir, binary: o.Binary, log: o.Log, own: map[int]chan unix.WaitStatus{},
		claims: map[string]*claim{}, expected: map[string]bool{},
		dead: map[int]monitor.Ended{}, held: map[string]held{},
	}
}

// ofServiceManager are variables that are meant for the keeper alone, whatever
// its program. An OCI runtime would pass some on: crun makes `start` wait for a
// container's READY=1.
var ofServiceManager = []string{
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "INVOCATION_ID",
	"JOURNAL_STREAM", "SYSTEMD_EXEC_PID",
}

// forOthers is the environment of the processes that the keeper starts.
func forOthers() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains(ofServiceManager, name)
	})
}

// serviceManager returns what tells the service manager how the keeper is, if
// it has asked. systemd: sd_notify(3).
func serviceManager(log *slog.Logger) (tell func(state string)) {
	address := os.Getenv("NOTIFY_SOCKET")
	return func(state string) {
		if address == "" {
			return
		}
		conn, err := net.Dial("unixgram", address)
		if err == nil {
			_, err = conn.Write([]byte(state))
			err = errors.Join(err, conn.Close())
		}
		if err != nil {
			log.Warn("the service manager was not told", "state", state, "error", err)
		}
	}
}

// lockState takes the keeper's lock. It tries for a moment, since those who
// look whether a keeper lives hold it shared.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(monitor.LockPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || try == 20 {
			_ = f.Close()
			return nil, fmt.Errorf("%s has a keeper: %w", dir, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// protect asks the OOM killer to spare this process and its monitors. It
// returns what the score was; without CAP_SYS_RESOURCE it stays.
func protect(log *slog.Logger) int {
	const file = "/proc/self/oom_score_adj"
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	base, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || base <= -999 {
		return base
	}
	if err := os.WriteFile(file, []byte("-999"), 0); err != nil {
		log.Info("oom_score_adj stays", "value", base, "error", err)
	}
	return base
}

// listen makes the socket that connections queue on while no monitor runs.
func listen(network, path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// endLimit is how long a monitor that was asked to end may take.
const endLimit = 20 * time.Second

// runMonitors starts a monitor, and another when it has died, until ctx ends
// or a successor is known, and with that a monitor has, of its own accord: what
// one that was killed has left is for the next to tidy up. It gives up after
// endLimit.
func (k *Keeper) runMonitors(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	k.mu.Lock()
	k.endTurn = end
	if k.next != nil {
		end()
	}
	k.mu.Unlock()
	over := make(chan struct{})
	returned := make(chan struct{})
	defer close(returned)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(endLimit):
			close(over)
			k.endMonitor()
		case <-returned:
		}
	})()
	var pace pacer
	for {
		status, err := k.runMonitor(ctx)
		if ctx.Err() != nil && err == nil && status.Exited() {
			return nil
		}
		wait := pace.next(time.Now())
		k.log.Warn("monitor has ended", "status", describe(status), "error", err, "restart_in", wait)
		select {
		case <-over:
			return errors.New("no monitor ended in order")
		case <-time.After(wait):
		}
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return s.Signal().String()
	}
	return "exit " + strconv.Itoa(s.ExitStatus())
}

// A pacer delays restarts: none for a burst, then five a second.
type pacer struct {
	used float64
	last time.Time
}

const (
	restartBurst = 256
	restartRate  = 5 // a second
)

func (p *pacer) next(now time.Time) time.Duration {
	p.used = max(0, p.used-now.Sub(p.last).Seconds()*restartRate) + 1
	p.last = now
	if p.used <= restartBurst {
		return 0
	}
	return time.Second / restartRate
}

// runMonitor starts one monitor and serves it until it has ended and all that
// it sent has been heard.
func (k *Keeper) runMonitor(ctx context.Context) (unix.WaitStatus, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	link, err := monitor.NewLink(pair[0])
	if err != nil {
		return 0, errors.Join(err, theirs.Close())
	}
	q := newQueue(link)
	ended, err := k.start(k.binary, []string{"davit-monitor", "serve", "--state", k.dir},
		[]*os.File{nil, os.Stderr, os.Stderr, theirs, k.files.listener}, func(pid int) {
			k.monitor = pid
			k.greet(q)
			k.queue = q
		})
	_ = theirs.Close()
	if err != nil {
		q.close()
		return 0, errors.Join(err, link.Close())
	}
	go q.run()
	stop := context.AfterFunc(ctx, func() { q.put(monitor.KeeperEvent{Op: "end"}, -1) })
	defer stop()
	err = k.serve(link, q)
	// Its end of the socket is closed: it has died, or is of no more use.
	k.endMonitor()
	status := <-ended
	k.mu.Lock()
	k.monitor, k.queue = 0, nil
	k.mu.Unlock()
	q.close()
	return status, errors.Join(err, link.Close())
}

// start starts a process of davit's own. The reaper tells how it ended, and
// can do so once noted was called, with k.mu held.
func (k *Keeper) start(path string, args []string, files []*os.File, noted func(pid int)) (<-chan unix.WaitStatus, error) {
	k.mu.Lock() // so that the reaper cannot see the pid before we do
	defer k.mu.Unlock()
	process, err := os.StartProcess(path, args, &os.ProcAttr{Dir: "/", Env: forOthers(), Files: files})
	if err != nil {
		return nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	k.own[process.Pid] = ended
	noted(process.Pid)
	return ended, process.Release()
}

func (k *Keeper) endMonitor() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.monitor != 0 {
		_ = unix.Kill(k.monitor, unix.SIGKILL)
	}
}

// greet tells a new monitor everything. k.mu must be held.
func (k *Keeper) greet(q *queue) {
	for id, c := range k.claims {
		q.put(monitor.KeeperEvent{Op: "claim", ID: id, Pid: c.pid, Record: c.record, Ended: c.ended}, -1)
	}
	for id := range k.expected {
		q.put(monitor.KeeperEvent{Op: "expect", ID: id}, -1)
	}
	for name, h := range k.held {
		if !h.silent {
			q.put(monitor.KeeperEvent{Op: "fd", Name: name}, h.fd)
		}
	}
	q.put(monitor.KeeperEvent{Op: "ready", BaseOOM: k.baseOOM}, -1)
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
