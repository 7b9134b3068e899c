package monitor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ociruntime"
)

// MaxFrame is the most bytes one frame may carry: an ExecResult at its 16 MiB
// in base64, and room.
const MaxFrame = 32 << 20

// Methods of a Request.
const (
	MethodCreate  = "create"  // Container → PidReply
	MethodStart   = "start"   // IDRequest
	MethodSignal  = "signal"  // SignalRequest
	MethodRemove  = "remove"  // IDRequest
	MethodList    = "list"    // → []Status
	MethodReopen  = "reopen"  // IDRequest
	MethodExec    = "exec"    // Exec → ExecResult
	MethodHold    = "hold"    // Holder → PidReply
	MethodUpdate  = "update"  // UpdateRequest
	MethodSeccomp = "seccomp" // SeccompRequest → SeccompReply
	MethodWatch   = "watch"   // → a Reply with an Exit for each, without end

	// Sessions: behind the request come the descriptors that it announces
	// (SendFiles). An empty Reply says that it has begun, for a terminal
	// followed by the descriptor of its master. The client may then send Sizes.
	// The last Reply says how it ended. Whoever closes the connection ends it.
	MethodExecStream = "exec-stream" // StreamRequest → CodeReply
	MethodAttach     = "attach"      // StreamRequest
)

// Protocol is the version of what is said on monitor.sock. davitd and
// davit-monitor may be of different versions: while one replaces the other, and
// where a replacement was refused. A message that the other side would
// misread, or whose loss it would not notice, needs a new version;
// an unknown method is told from a known one without it.
const (
	Protocol       = 1
	OldestProtocol = 0 // that davit-monitor answers; 0: from before there were versions
)

// A Request is the one frame that a client sends on a connection.
type Request struct {
	Protocol int             `json:"protocol,omitempty"`
	Method   string          `json:"method"`
	Body     json.RawMessage `json:"body,omitempty"`
}

// CheckProtocol refuses, with Unavailable, a request that this version cannot
// answer. The caller need not ask again.
func (r Request) CheckProtocol() error {
	if r.Protocol >= OldestProtocol && r.Protocol <= Protocol {
		return nil
	}
	return fault.New(fault.Unavailable, "monitor."+r.Method,
		"davit-monitor speaks versions %d to %d of its protocol, davitd version %d: one of them is to be replaced (davit-monitor replace)",
		OldestProtocol, Protocol, r.Protocol)
}

// A Reply answers a Request.
type Reply struct {
	Failure *Failure        `json:"failure,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// A Failure is an error on the wire.
type Failure struct {
	Kind fault.Kind `json:"kind"`
	Text string     `json:"text"`
	// Ran is the command line of the program that failed, if one did, and Said
	// what it wrote. Both are for people.
	Ran  string `json:"ran,omitempty"`
	Said string `json:"said,omitempty"`
}

// Bodies of requests and replies.
type (
	IDRequest struct {
		ID string `json:"id"`
	}
	SignalRequest struct {
		ID     string `json:"id"`
		Signal int    `json:"signal"`
	}
	UpdateRequest struct {
		ID        string          `json:"id"`
		Resources json.RawMessage `json:"resources"`
	}
	SeccompRequest struct {
		Runtime ociruntime.Runtime `json:"runtime"`
		Profile json.RawMessage    `json:"profile"`
	}
	SeccompReply struct {
		Program []byte `json:"program"`
	}
	StreamRequest struct {
		ContainerID string   `json:"container_id"`
		Args        []string `json:"args,omitempty"` // exec
		TTY         bool     `json:"tty,omitempty"`  // exec: no descriptors come along
		Size        Size     `json:"size"`           // exec: of the terminal
		// Which of these come along, in this order: the ends that are the container's.
		Stdin  bool `json:"stdin,omitempty"`
		Stdout bool `json:"stdout,omitempty"`
		Stderr bool `json:"stderr,omitempty"`
	}
	CodeReply struct {
		Code int `json:"code"`
	}
	PidReply struct {
		Pid int `json:"pid"`
	}
)

// SocketPath is where davit-monitor of a state directory listens.
func SocketPath(state string) string { return filepath.Join(state, "monitor.sock") }

// LockPath is the file that a living keeper has locked.
func LockPath(state string) string { return filepath.Join(state, "keeper.lock") }

// KeeperPath is where the keeper itself listens.
func KeeperPath(state string) string { return filepath.Join(state, "keeper.sock") }

// FailureOf puts err on the wire.
func FailureOf(err error) *Failure {
	f := &Failure{Kind: fault.KindOf(err), Text: err.Error()}
	if ran, ok := errors.AsType[*fault.Program](err); ok {
		f.Ran, f.Said = ran.Line, ran.Said
	}
	return f
}

// Err is what FailureOf took, of the same kind and text.
func (f *Failure) Err() error {
	err := fault.New(f.Kind, "", "%s", f.Text)
	if f.Ran == "" {
		return err
	}
	return &fault.Program{Line: f.Ran, Said: f.Said, Err: err}
}

// WriteFrame writes v as JSON with its length before it (4 bytes, big endian).
func WriteFrame(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > MaxFrame {
		return fault.New(fault.Exhausted, "monitor", "message of %d bytes is over the limit of %d", len(data), MaxFrame)
	}
	frame := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data))), data...)
	_, err = w.Write(frame)
	return err
}

// errFrame marks a frame that breaks the protocol; such a connection is closed.
var errFrame = errors.New("bad frame")

// ReadFrame reads one frame into v. It returns io.EOF at a clean end.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return fmt.Errorf("%w: %d bytes announced", errFrame, n)
	}
	// Grown as bytes arrive, so that an announced length alone costs nothing.
	data, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(data) < int(n) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}
