package server

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/monitor/stdio"
)

// maxExecBytes keeps an ExecResult below the kubelet's 16 MiB for a message.
const maxExecBytes = 15 << 20

// A capture is the output of a command, up to a limit for both streams together.
type capture struct {
	readers, writers [2]*os.File // the writers become the command's
	open             sync.WaitGroup

	mu   sync.Mutex
	left int
	data [2][]byte
	last time.Time // of the last bytes
}

// newCapture makes the pipes. Its limit is limit, or maxExecBytes if that is less or limit is 0.
func newCapture(limit int) (c *capture, err error) {
	c = &capture{left: maxExecBytes}
	if limit > 0 {
		c.left = min(limit, maxExecBytes)
	}
	for i := range c.readers {
		if c.readers[i], c.writers[i], err = os.Pipe(); err != nil {
			stdio.CloseAll(c.writers[:])
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// begin starts to read; close ends it.
func (c *capture) begin() {
	for i, r := range c.readers {
		c.open.Add(1)
		go c.read(r, i)
	}
}

func (c *capture) close() { stdio.CloseAll(c.readers[:]) }

func (c *capture) read(from *os.File, stream int) {
	defer c.open.Done()
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		kept := min(n, c.left)
		c.left -= kept
		c.data[stream] = append(c.data[stream], buf[:kept]...)
		c.last = time.Now()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// settle waits until the output is complete: closed or, unless only that will
// do, at its limit or silent.
func (c *capture) settle(ctx context.Context, ended time.Time, onlyClosed bool) error {
	closed := make(chan struct{})
	go func() {
		c.open.Wait()
		close(closed)
	}()
	tick := time.NewTicker(execIdle / 5)
	defer tick.Stop()
	for {
		select {
		case <-closed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			c.mu.Lock()
			quietSince := c.last
			full := c.left == 0
			c.mu.Unlock()
			if quietSince.Before(ended) {
				quietSince = ended
			}
			if !onlyClosed && (full || now.Sub(quietSince) > execIdle) {
				return nil
			}
		}
	}
}

// take returns what was captured.
func (c *capture) take() (stdout, stderr []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.data[0], c.data[1]
}
