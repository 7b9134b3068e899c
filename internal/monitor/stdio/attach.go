package stdio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// An Attachment is one client of a container's streams. How far it may lag
// behind before it loses some is what its pipes hold.
type Attachment struct {
	o    *Streams
	outs [2]outlet
	in   *os.File // what the client wants written; nil: nothing

	mu      sync.Mutex
	to      *os.File // what it is written to; nil: not yet, or no longer
	stopped bool
}

// An outlet is the end of a client's pipe. It is used under Streams.mu.
type outlet struct {
	fd   int // non-blocking; -1: none, or the client has closed it
	size int // of the pipe
	lost int // bytes since it was full
	crlf bool
}

// Attach connects a client to the streams from now on. What is nil is not
// connected; the others are the Attachment's, to be closed by its Close, also
// after an error.
func (o *Streams) Attach(in, stdout, stderr *os.File) (*Attachment, error) {
	a := &Attachment{o: o, outs: [2]outlet{{fd: -1}, {fd: -1}}}
	fd, err := nonblocking(in)
	if fd >= 0 {
		a.in = os.NewFile(uintptr(fd), "client")
	}
	for i, f := range []*os.File{stdout, stderr} {
		var failed error
		a.outs[i].fd, failed = nonblocking(f)
		if a.outs[i].fd >= 0 {
			a.outs[i].size, failed = unix.FcntlInt(uintptr(a.outs[i].fd), unix.F_GETPIPE_SZ, 0)
		}
		err = errors.Join(err, failed)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed && err == nil {
		err = os.ErrClosed
	}
	if err != nil {
		a.stopFeed()
		a.closeOuts()
		return nil, err
	}
	a.outs[0].crlf = o.streams[0].tty
	o.attached = append(o.attached, a)
	return a, nil
}

// nonblocking closes f and returns a descriptor in its place; -1 for nil, or
// after an error.
func nonblocking(f *os.File) (int, error) {
	if f == nil {
		return -1, nil
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// deliver gives output to all that are attached. It never waits. o.mu must be held.
func (o *Streams) deliver(index int, data []byte) {
	for _, a := range o.attached {
		a.outs[index].write(data)
	}
}

// write gives the client as much as there is room for. One that has lost
// something is told, once its pipe is half empty again.
func (w *outlet) write(data []byte) {
	if w.fd < 0 || len(data) == 0 {
		return
	}
	if w.lost > 0 {
		held, err := unix.IoctlGetInt(w.fd, unix.TIOCINQ)
		if err != nil || held > w.size/2 || w.put(w.notice()) > 0 {
			w.lost += len(data)
			return
		}
		w.lost = 0
	}
	w.lost = w.put(data)
}

// put returns how many bytes of data there was no room for.
func (w *outlet) put(data []byte) int {
	for len(data) > 0 {
		n, err := unix.Write(w.fd, data)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return len(data)
		case err != nil: // the client reads no more
			_ = unix.Close(w.fd)
			w.fd = -1
			return 0
		default:
			data = data[n:]
		}
	}
	return 0
}

// notice is short enough to be written whole or not at all.
func (w *outlet) notice() []byte {
	end := "\n"
	if w.crlf {
		end = "\r\n"
	}
	return fmt.Appendf(nil, "%s[davit: %d bytes of output are missing here; they are in the log]%s", end, w.lost, end)
}

// Feed writes what the client sends to the container until the client's end,
// EndInput, or Close. What a container does not read any more it drops.
func (a *Attachment) Feed() {
	if a.in == nil || !a.startFeed() {
		return
	}
	defer a.stopFeed()
	_, _ = io.CopyBuffer(onlyWriter{a.to}, onlyReader{a.in}, make([]byte, 16<<10))
}

// Without these, io.Copy would splice, which holds up writers to a terminal.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func (a *Attachment) startFeed() bool {
	a.o.mu.Lock()
	defer a.o.mu.Unlock()
	if a.o.closed {
		return false
	}
	to, err := a.o.openInput()
	if err != nil {
		return false // nobody reads it any more
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		_ = to.Close()
		return false
	}
	a.to = to
	return true
}

// stopFeed ends Feed, also one under way.
func (a *Attachment) stopFeed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	if a.to != nil {
		_ = a.to.Close()
	}
	if a.in != nil {
		_ = a.in.Close()
	}
}

// Detach ends the connection. What has been delivered the client can still
// read; a notice of what was lost in the end waits for room until stop closes.
func (a *Attachment) Detach(stop <-chan struct{}) {
	a.o.mu.Lock()
	a.o.attached = slices.DeleteFunc(a.o.attached, func(b *Attachment) bool { return a == b })
	a.o.mu.Unlock()
	a.stopFeed()
	for i := range a.outs {
		if w := &a.outs[i]; w.fd >= 0 && w.lost > 0 {
			w.tell(stop)
		}
	}
	a.closeOuts()
}

// tell writes the notice once there is room.
func (w *outlet) tell(stop <-chan struct{}) {
	f := os.NewFile(uintptr(w.fd), "client") // non-blocking
	w.fd = -1
	told := make(chan struct{})
	go func() {
		_, _ = f.Write(w.notice())
		close(told)
	}()
	select {
	case <-told:
	case <-stop:
	}
	_ = f.Close()
	<-told
}

func (a *Attachment) closeOuts() {
	for i := range a.outs {
		if w := &a.outs[i]; w.fd >= 0 {
			_ = unix.Close(w.fd)
			w.fd = -1
		}
	}
}
