package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// Replace makes the keeper of a state directory, and with it the monitor,
// become the program binary, in place, unless they are that one: the very file,
// not one like it. It reports whether they are now and were not before; false
// too where there is no keeper. Containers and their streams do not notice;
// sessions and execs under way end.
//
// An error means that the keeper goes on as it is: Precondition if one of the
// two programs says that binary cannot take over, or the keeper is too old to be asked.
func Replace(ctx context.Context, binary, state string) (replaced bool, err error) {
	if binary, err = filepath.Abs(binary); err != nil {
		return false, err
	}
	if !alive(state) {
		return false, nil
	}
	link, keeper, err := dialKeeper(ctx, state)
	for end := time.Now().Add(beginWait); err != nil && time.Now().Before(end) && alive(state); link, keeper, err = dialKeeper(ctx, state) {
		if pause(ctx, retryMin) != nil {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, fault.New(fault.Precondition, "monitor.Replace", "the keeper that runs is of a version that cannot be replaced: %w", err)
	}
	if err != nil {
		return false, err
	}
	defer link.Close()
	same, err := runs(keeper, binary)
	if err != nil || same {
		return false, err
	}
	err = ask(ctx, link, KeeperRequest{Op: "replace", Path: binary})
	return err == nil, err
}

// Restart has the keeper of a state directory kill davit-monitor and start it
// again: for one that answers nobody. Precondition if the keeper is too old to
// know how.
func Restart(ctx context.Context, state string) error {
	link, _, err := dialKeeper(ctx, state)
	if err != nil {
		return fault.New(fault.Unavailable, "monitor.Restart", "the keeper: %w", err)
	}
	defer link.Close()
	return ask(ctx, link, KeeperRequest{Op: "restart"})
}

// ask sends the keeper a request and waits for its answer: Precondition if that
// is a refusal.
func ask(ctx context.Context, link *Link, r KeeperRequest) error {
	defer context.AfterFunc(ctx, func() { _ = link.Close() })()
	if err := link.Send(r); err != nil {
		return fault.New(fault.Unavailable, "monitor."+r.Op, "the keeper: %w", err)
	}
	var reply KeeperEvent
	fds, err := link.Receive(&reply)
	CloseAll(fds)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return fault.New(fault.Unavailable, "monitor."+r.Op, "the keeper ended: %w", err)
	case err != nil:
		return err
	case reply.Error != "":
		return fault.New(fault.Precondition, "monitor."+r.Op, "%s", reply.Error)
	}
	return nil
}

// beginWait is how long a keeper that has just begun may take to listen.
const beginWait = time.Second

// dialKeeper connects to the keeper and returns its process ID.
func dialKeeper(ctx context.Context, state string) (*Link, int, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unixpacket", KeeperPath(state))
	if err != nil {
		return nil, 0, err
	}
	link, err := LinkOf(conn)
	if err != nil {
		return nil, 0, err
	}
	raw, err := link.conn.SyscallConn()
	if err != nil {
		return nil, 0, errors.Join(err, link.Close())
	}
	var peer *unix.Ucred
	var failed error
	// kernel: unix(7), SO_PEERCRED: of whom had called listen(2).
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || failed != nil {
		return nil, 0, errors.Join(err, failed, link.Close())
	}
	return link, int(peer.Pid), nil
}

// runs reports whether a process is of the program in a file. While it runs,
// nothing else can become of its file's inode.
func runs(pid int, binary string) (bool, error) {
	theirs, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return false, fmt.Errorf("program of the keeper: %w", err)
	}
	ours, err := os.Stat(binary)
	if err != nil {
		return false, err
	}
	return os.SameFile(theirs, ours), nil
}
