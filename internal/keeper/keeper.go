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
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A Keeper keeps one state directory.
type Keeper struct {
	dir      string
	binary   string
	baseOOM  int
	listener *os.File
	log      *slog.Logger
	lastExit chan unix.WaitStatus // how the monitor ended

	mu       sync.Mutex
	monitor  int // pid; 0 while there is none
	queue    *queue
	claims   map[string]*claim
	expected map[string]bool
	dead     map[int]monitor.Ended // unknown pids, while something is expected
	held     map[string]held
}

type claim struct {
	pid      int
	start    uint64 // of the process, clock ticks after boot: tells a reused pid
	record   bool
	ended    *monitor.Ended
	followed bool // no child of this keeper: watched by pidfd
}

type held struct {
	fd     int
	silent bool
}

// Run keeps dir until SIGTERM, with which it ends the monitor and itself, but
// no container: the next keeper follows those that run. (A terminal hangs up,
// though: its master is the keeper's.) Nothing half made lives on: the keeper is gone only when a monitor has ended that waited for
// the commands of OCI runtimes under way, ended execs, and took no new work,
// or when endLimit is over. binary is davit-monitor's own path.
func Run(dir, binary string, log *slog.Logger) error {
	lock, err := lockState(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	unix.Umask(0o022)
	for _, name := range ofServiceManager {
		_ = os.Unsetenv(name)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	k := &Keeper{
		dir: dir, binary: binary, log: log, baseOOM: protect(log),
		lastExit: make(chan unix.WaitStatus, 1),
		claims:   map[string]*claim{}, expected: map[string]bool{},
		dead: map[int]monitor.Ended{}, held: map[string]held{},
	}
	for _, sub := range []string{"exits", "claims", "monitor"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	if k.listener, err = listen(monitor.SocketPath(dir)); err != nil {
		return err
	}
	// Before recovery, which needs to be told of children that die meanwhile.
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := k.recoverClaims(); err != nil {
		return err
	}
	go k.reapLoop(children)
	over := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		time.Sleep(endLimit)
		close(over)
		k.endMonitor()
	})()
	return k.runMonitors(ctx, over)
}

// ofServiceManager are variables that are meant for davitd. An OCI runtime
// would pass some on: crun makes `start` wait for a container's READY=1.
var ofServiceManager = []string{
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "INVOCATION_ID",
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
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
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
// and with it a monitor has, of its own accord: what one that was killed has
// left is for the next to tidy up. It gives up at over.
func (k *Keeper) runMonitors(ctx context.Context, over <-chan struct{}) error {
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
	k.mu.Lock() // so that the reaper cannot see the pid before we do
	process, err := os.StartProcess(k.binary, []string{"davit-monitor", "serve", "--state", k.dir}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{nil, os.Stderr, os.Stderr, theirs, k.listener},
	})
	if err == nil {
		k.monitor = process.Pid
		_ = process.Release()
		k.greet(q)
		k.queue = q
	}
	k.mu.Unlock()
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
	status := <-k.lastExit
	k.mu.Lock()
	k.queue = nil
	k.mu.Unlock()
	q.close()
	return status, errors.Join(err, link.Close())
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
