package keeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// answerLimit is how long one caller may keep the next one waiting.
const answerLimit = 5 * time.Second

// answer serves keeper.sock, one caller after the other, until it is closed.
// It works without a monitor: one that does not start can be replaced.
func (k *Keeper) answer(door net.Listener) {
	for {
		conn, err := door.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			k.log.Error("accept", "error", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		link, err := monitor.LinkOf(conn)
		if err != nil {
			k.log.Warn("bad caller", "error", err)
			continue
		}
		s := &successor{caller: link}
		if err := k.hear(s); errors.Is(err, io.EOF) {
			_ = link.Close() // it looked who is there
		} else if err != nil {
			k.log.Error("a request was refused", "path", s.path, "error", err)
			s.tell(err)
		}
	}
}

// hear does one request. Without an error the caller is told later.
func (k *Keeper) hear(s *successor) error {
	var r monitor.KeeperRequest
	fds, err := s.caller.ReceiveWithin(answerLimit, &r)
	if err != nil {
		return err
	}
	monitor.CloseAll(fds)
	switch r.Op {
	case "replace":
	case "restart":
		k.log.Warn("monitor is killed: it does not answer")
		k.endMonitor() // runMonitors starts the next
		s.tell(nil)
		return nil
	default:
		return fmt.Errorf("unknown request %q", r.Op)
	}
	if s.path = r.Path; !filepath.IsAbs(s.path) {
		return fmt.Errorf("%q is not an absolute path", s.path)
	}
	return k.replace(s)
}
