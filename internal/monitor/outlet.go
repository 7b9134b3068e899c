package monitor

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	// lingerIdle is how long the output of a command that has ended must be
	// silent to count as complete, if something holds it open.
	lingerIdle = 100 * time.Millisecond
	// lingerMax bounds that for what is never silent.
	lingerMax = time.Second
)

// An outlet copies output to the caller.
type outlet struct {
	from   *os.File // non-blocking
	to     io.Writer
	done   chan struct{} // closed when all is written
	ending chan struct{} // closed by end
	once   sync.Once
}

// end says that the command has ended: what it wrote is in the pipe.
func (o *outlet) end() {
	o.once.Do(func() {
		_ = o.from.SetReadDeadline(time.Unix(1, 0)) // wakes run, which then sets its own
		close(o.ending)
	})
}

func (o *outlet) run(cancel context.CancelCauseFunc) {
	defer close(o.done)
	buf := make([]byte, 32<<10)
	var l linger
	for {
		select {
		case <-o.ending:
			if !l.next(o.from) {
				return
			}
		default:
		}
		n, err := o.from.Read(buf)
		l.owed -= n
		if n > 0 {
			if _, err := o.to.Write(buf[:n]); err != nil {
				cancel(fault.New(fault.Canceled, "monitor", "write the output: %w", err))
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !l.waited {
			continue // it was end's
		}
		if err != nil {
			return // its end; of a terminal, EIO
		}
	}
}

// A linger is how much longer to read what something holds open.
type linger struct {
	begun  bool
	owed   int       // bytes that the command itself may have written
	until  time.Time // zero while some are owed
	waited bool      // for lingerIdle, by the deadline set
}

// next sets the deadline of the next Read, or reports that there shall be none.
func (l *linger) next(from *os.File) bool {
	if !l.begun {
		l.begun = true
		_ = control(from, func(fd int) (err error) { l.owed, err = unix.IoctlGetInt(fd, unix.TIOCINQ); return err })
	}
	if l.owed > 0 {
		return from.SetReadDeadline(time.Time{}) == nil // they are there
	}
	now := time.Now()
	if l.until.IsZero() {
		l.until = now.Add(lingerMax)
	}
	l.waited = true
	return now.Before(l.until) && from.SetReadDeadline(now.Add(lingerIdle)) == nil
}
