package stdio

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// An Input is what a container has for standard input.
type Input int

const (
	Null Input = iota // /dev/null
	Kept              // a FIFO that never ends
	Once              // a FIFO that ends when the keeper drops ID/stdin
)

// ContainerEnds opens standard input, output and error as a container without
// a terminal gets them: blocking, and output both ways, so that it outlives
// every reader.
func (o *Streams) ContainerEnds(in Input) (ends [3]*os.File, err error) {
	defer func() {
		if err != nil {
			CloseAll(ends[:])
		}
	}()
	if ends[0], err = o.containerInput(in); err != nil {
		return ends, err
	}
	for i, s := range o.streams {
		if ends[i+1], err = o.containerEnd(s.name); err != nil {
			return ends, err
		}
	}
	return ends, nil
}

// CloseAll closes those that are not nil.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// containerInput opens what the container reads. A Kept FIFO is open both
// ways, so that it sees no end before an attachment, which will write to it,
// ends. Of a Once FIFO the keeper has the end that is written to.
func (o *Streams) containerInput(in Input) (*os.File, error) {
	if in == Null {
		return os.Open(os.DevNull)
	}
	both, err := openPipe(filepath.Join(o.dir, "stdin"))
	if err != nil {
		return nil, err
	}
	defer unix.Close(both)
	if in == Kept {
		return o.containerEnd("stdin")
	}
	write, err := openAt(o.dir, "stdin", unix.O_WRONLY)
	if err != nil {
		return nil, err
	}
	defer write.Close()
	if err := o.keep(true, []string{o.id + "/stdin"}, []int{int(write.Fd())}); err != nil {
		return nil, err
	}
	return openAt(o.dir, "stdin", unix.O_RDONLY)
}

func (o *Streams) containerEnd(name string) (*os.File, error) {
	return openAt(o.dir, name, unix.O_RDWR)
}

func openAt(dir, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Open(filepath.Join(dir, name), flags|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// openInput opens what the container's input is written to. o.mu must be held.
func (o *Streams) openInput() (*os.File, error) {
	if s := o.streams[0]; s.tty {
		fd, err := unix.FcntlInt(uintptr(s.src), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), "terminal"), nil // non-blocking, as src is
	}
	// ENXIO once nobody reads any more.
	return openAt(o.dir, "stdin", unix.O_WRONLY|unix.O_NONBLOCK)
}

// EndInput ends what those who are attached write, and what is read from a
// terminal.
func (o *Streams) EndInput() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	for _, a := range o.attached {
		a.stopFeed()
	}
	if s := o.streams[0]; s.tty {
		monitor.TypeEnd(s.src)
	}
}

// Resize sets the size of the terminal, if there is one.
func (o *Streams) Resize(size monitor.Size) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || !o.streams[0].tty {
		return nil
	}
	return monitor.SetSize(o.streams[0].src, size)
}
