// Package stdio owns the standard streams of containers: their FIFOs or their
// terminal, the CRI log file that output goes to, and who is attached.
//
// The log comes first: no byte of output is lost from it or in it twice,
// whenever this process is killed (see commitFile), and nobody who is attached
// can hold it up. Package monitor/server calls it and knows what a container
// is; here it is a directory and a name.
package stdio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pipeBytes is what a container may write before it has to wait for the log.
const pipeBytes = 256 << 10

// A Config says what Open opens.
type Config struct {
	ID      string // of the container: stands before the names of what the keeper holds
	Dir     string // of FIFOs and commit file
	LogPath string // empty: output is dropped
	Console int    // master of the container's terminal; -1: pipes. Open owns it
	Log     int    // log file that the monitor before had open; -1: none. Open owns it
	Keep    KeepFunc
	Report  func(error) // of trouble with the log
}

// A KeepFunc gives descriptors to the keeper, under names. What is silent the
// next monitor opens by its path.
type KeepFunc func(silent bool, names []string, fds []int) error

// Streams are a container's output, one or two streams, with log file and
// commit file, and its input.
type Streams struct {
	id, dir string
	streams []*stream
	commits *commitFile // nil: output is dropped
	keep    KeepFunc
	report  func(error)

	mu       sync.Mutex // one round, or one change of the log file, at a time
	log      *logFile   // nil: output is dropped
	attached []*Attachment
	closed   bool
}

// A stream is one pipe from the container, or its terminal.
type stream struct {
	name  string // as the log says: stdout or stderr
	index int
	src   int      // non-blocking: the FIFO, or the terminal's master
	alarm *os.File // an epoll of src alone, which rings once when armed
	stage int      // staging pipe, both ends; -1 if output is dropped
	tty   bool
	last  time.Time // end of the last round
	stop  atomic.Bool
	ended chan struct{} // closed when pump has returned; nil before it runs
}

// Open opens, or opens again, a container's pipes and log.
func Open(c Config) (_ *Streams, err error) {
	o := &Streams{id: c.ID, dir: c.Dir, keep: c.Keep, report: c.Report}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	names := []string{"stdout", "stderr"}
	if c.Console >= 0 {
		names = names[:1]
	}
	var silentNames []string
	var silent []int
	for i, name := range names {
		s := &stream{name: name, index: i, src: -1, stage: -1, tty: c.Console >= 0}
		o.streams = append(o.streams, s)
		if s.tty {
			s.src = c.Console
			if err := unix.SetNonblock(c.Console, true); err != nil {
				return nil, err
			}
		} else {
			if s.src, err = openPipe(filepath.Join(c.Dir, name)); err != nil {
				return nil, err
			}
			silent, silentNames = append(silent, s.src), append(silentNames, c.ID+"/"+name)
		}
		if s.alarm, err = newAlarm(s.src); err != nil {
			return nil, err
		}
		if c.LogPath == "" {
			continue
		}
		if s.stage, err = openPipe(filepath.Join(c.Dir, name+".stage")); err != nil {
			return nil, err
		}
		silent, silentNames = append(silent, s.stage), append(silentNames, c.ID+"/"+name+".stage")
	}
	if err := c.Keep(true, silentNames, silent); err != nil {
		return nil, err
	}
	if c.LogPath != "" {
		return o, o.openLog(c.LogPath, c.Log)
	}
	return o, nil
}

// openLog opens log and commit file and brings them to a common state.
func (o *Streams) openLog(path string, fd int) (err error) {
	if o.commits, err = openCommit(filepath.Join(o.dir, "commit")); err != nil {
		return err
	}
	o.log = &logFile{path: path, fd: -1}
	if fd >= 0 {
		err = o.log.adopt(fd)
	} else if err = o.log.open(); err == nil {
		err = o.keepLog()
	}
	s := o.commits.read()
	if err != nil {
		if s.ino == 0 {
			return err // at create; later the container goes on without
		}
		o.report(err)
	}
	if err := o.log.rewind(s); err != nil {
		o.report(err)
	}
	if s.stale > 0 && int(s.stream) < len(o.streams) {
		stage := o.streams[s.stream].stage
		held, err := unix.IoctlGetInt(stage, unix.TIOCINQ)
		if err == nil {
			err = drain(stage, s.toDrain(held))
		}
		if err != nil {
			return fmt.Errorf("drain staging pipe: %w", err)
		}
		o.commits.drained()
	}
	o.commitLog()
	return nil
}

func (o *Streams) keepLog() error {
	return o.keep(false, []string{o.id + "/log"}, []int{o.log.fd})
}

// commitLog notes which file the log is. No round may be under way.
func (o *Streams) commitLog() {
	o.commit(o.streams[0], o.commits.carry(0), 0, 0)
}

// openPipe makes a FIFO where missing and opens both its ends, so that it
// never signals an end: neither to the container nor to us.
func openPipe(path string) (int, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	// Refused to the unprivileged beyond a sum; a smaller pipe does, too.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeBytes)
	return fd, nil
}

// Run starts one goroutine for each stream; Finish ends them.
func (o *Streams) Run() {
	for _, s := range o.streams {
		s.ended = make(chan struct{})
		go o.pump(s)
	}
}

// Reopen opens the log anew by its path.
func (o *Streams) Reopen() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log == nil {
		return nil
	}
	if err := o.log.open(); err != nil {
		return err
	}
	o.commitLog()
	return o.keepLog()
}

// Finish takes what the pipes hold now, writes unfinished lines as pieces, and
// closes everything. It does not wait for others that still write.
func (o *Streams) Finish() {
	for _, s := range o.streams {
		if s.ended != nil {
			s.stop.Store(true)
			_ = s.alarm.SetReadDeadline(time.Unix(1, 0))
			<-s.ended
		}
	}
	o.drainAll()
	for _, s := range o.streams {
		o.flushTail(s)
	}
	o.Close()
}

// Freeze takes what the pipes hold now to the log and lets no further round
// begin, for good: the process is about to end.
func (o *Streams) Freeze() {
	o.drainAll()
	o.mu.Lock()
}

// drainAll takes what the pipes hold now, which is all that a container wrote
// that has ended.
func (o *Streams) drainAll() {
	for _, s := range o.streams {
		for taken := 0; taken < pipeBytes; {
			n, err := o.round(s)
			if n == 0 || err != nil {
				break
			}
			taken += n
		}
	}
}

// flushTail writes a stream's unfinished line as a piece.
func (o *Streams) flushTail(s *stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log == nil {
		return
	}
	tail := o.commits.carry(s.index)
	if len(tail) == 0 {
		return
	}
	header := appendHeader(nil, time.Now(), s.name)
	if err := o.log.append(appendLine(nil, header, tail, false)); err != nil {
		o.report(err)
	}
	o.commit(s, nil, 0, 0)
}

// Close closes everything but what is attached, which gets nothing more. What
// runs, Finish closes.
func (o *Streams) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, a := range o.attached {
		a.stopFeed()
	}
	o.attached = nil
	for _, s := range o.streams {
		if s.alarm != nil {
			_ = s.alarm.Close()
		}
		if s.src >= 0 {
			_ = unix.Close(s.src)
			s.src = -1
		}
		if s.stage >= 0 {
			_ = unix.Close(s.stage)
			s.stage = -1
		}
	}
	if o.log != nil {
		if o.log.lost > 0 {
			o.report(fmt.Errorf("%d bytes of log lines were lost", o.log.lost))
		}
		o.log.close()
		o.log = nil
	}
	if o.commits != nil {
		o.commits.close()
		o.commits = nil
	}
}
