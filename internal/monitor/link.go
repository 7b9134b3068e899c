package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Link is the keeper's and the monitor's common socket: SOCK_SEQPACKET, one
// JSON message a packet, descriptors beside it. Send is safe for concurrent
// use; Receive is for one goroutine.
type Link struct {
	conn *net.UnixConn
	mu   sync.Mutex // one Send at a time
	buf  []byte
	oob  []byte
}

// Limits of one message.
const (
	maxPacket = 32 << 10
	maxFDs    = 32
)

// A KeeperRequest goes from monitor to keeper; each is answered by a
// KeeperEvent "reply" of the same Seq.
type KeeperRequest struct {
	Seq uint64 `json:"seq"`
	// Op is one of
	//   expect  a process of ID will be claimed: keep what dies unknown until then
	//   claim   Pid is ID's process; an exit event follows when it has ended
	//   cancel  nothing will be claimed for ID
	//   forget  drop ID's claim, its exit record and the descriptors named ID/…
	//   kill    send Signal to ID's process; fails if it has ended
	//   hold    keep the descriptors that come along, under Names
	//   drop    close the descriptors of Names
	// and on keeper.sock, with one answer once it is done or has failed,
	//   replace become the davit-monitor at Path, in place
	//   restart kill the monitor, which does not answer, and start it again
	Op     string   `json:"op"`
	ID     string   `json:"id,omitempty"`
	Pid    int      `json:"pid,omitempty"`
	Signal int      `json:"signal,omitempty"`
	Record bool     `json:"record,omitempty"` // claim: write exits/ID
	Names  []string `json:"names,omitempty"`
	Silent bool     `json:"silent,omitempty"` // hold: the next monitor does not want it back
	Path   string   `json:"path,omitempty"`   // replace
}

// A KeeperEvent goes from keeper to monitor.
type KeeperEvent struct {
	// Op is "reply", "exit", or at the start of a monitor: "claim" (for each
	// one, with its exit if it has ended), "expect", "fd" (with one
	// descriptor), and "ready" after the last of these. "end" asks the monitor
	// to end, once, leaving nothing half made.
	Op     string `json:"op"`
	Seq    uint64 `json:"seq,omitempty"`
	Error  string `json:"error,omitempty"`
	ID     string `json:"id,omitempty"`
	Pid    int    `json:"pid,omitempty"`
	Record bool   `json:"record,omitempty"`
	Name   string `json:"name,omitempty"`
	Ended  *Ended `json:"ended,omitempty"`
	// BaseOOM is the oom_score_adj that the keeper was started with ("ready").
	BaseOOM int `json:"base_oom,omitempty"`
}

// Ended is how a process ended; the keeper writes it to exits/ID.
type Ended struct {
	Pid     int       `json:"pid"`
	Code    int       `json:"code"` // 128+n for signal n
	Signal  int       `json:"signal,omitempty"`
	At      time.Time `json:"at"`
	Unknown bool      `json:"unknown,omitempty"` // nobody saw it end; Code is 255
}

// Gone is the error text of a "kill" whose process has ended.
const Gone = "process has ended"

// NewLink makes a Link of an inherited or paired socket, and owns fd from then on.
func NewLink(fd int) (*Link, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return LinkOf(c)
}

// LinkOf makes a Link of a connection, and owns it from then on.
func LinkOf(c net.Conn) (*Link, error) {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("control socket is not a unix socket")
	}
	return &Link{conn: conn, buf: make([]byte, maxPacket), oob: make([]byte, unix.CmsgSpace(maxFDs*4))}, nil
}

// Close ends a Receive under way.
func (l *Link) Close() error { return l.conn.Close() }

// File returns a copy of the socket's descriptor.
func (l *Link) File() (*os.File, error) { return l.conn.File() }

// Send blocks while the socket's buffer is full.
func (l *Link) Send(message any, fds ...int) error {
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(data) > maxPacket || len(fds) > maxFDs {
		return fmt.Errorf("control message of %d bytes and %d descriptors is too large", len(data), len(fds))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, err = l.conn.WriteMsgUnix(data, oob, nil)
	return err
}

// Receive waits for one message. The descriptors are close-on-exec and the
// caller's. It returns io.EOF once the other end has gone.
func (l *Link) Receive(message any) (fds []int, err error) {
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(l.buf, l.oob)
	if err != nil {
		return nil, err
	}
	if oobn > 0 {
		if fds, err = rights(l.oob[:oobn]); err != nil {
			return nil, err
		}
	}
	switch {
	case n == 0:
		err = io.EOF
	case flags&unix.MSG_TRUNC != 0:
		err = errors.New("control message was cut short")
	default:
		err = json.Unmarshal(l.buf[:n], message)
	}
	if err != nil || flags&unix.MSG_CTRUNC != 0 {
		CloseAll(fds)
		fds = nil // at the limit of open files: the request fails, not the link
	}
	return fds, err
}

// ReceiveWithin is Receive with a limit.
func (l *Link) ReceiveWithin(limit time.Duration, message any) (fds []int, err error) {
	if err := l.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.conn.SetReadDeadline(time.Time{})) }()
	return l.Receive(message)
}

func rights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			CloseAll(fds)
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
