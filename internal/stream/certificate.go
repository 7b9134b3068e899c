package stream

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A certificate is read again when one of its files has changed.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	current           atomic.Pointer[tls.Certificate]
	mu                sync.Mutex // held by the one that reads
	seen              [2]version // guarded by mu
}

// A version tells one state of a file from another.
type version struct {
	info     os.FileInfo
	modified time.Time
	size     int64
}

func (v version) is(w version) bool {
	return v.modified.Equal(w.modified) && v.size == w.size && os.SameFile(v.info, w.info)
}

func readCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if _, err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

// get returns the certificate for a connection to come. Those that are open
// keep theirs. Files that cannot be used leave the one before in place.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.mu.TryLock() { // else another connection reads; none waits for it
		defer c.mu.Unlock()
		switch changed, err := c.read(); {
		case err != nil && changed:
			c.log.Error("the streaming server's certificate cannot be read again; the one before is used", "error", err)
		case changed:
			c.log.Info("the streaming server's certificate was read again", "file", c.certFile)
		}
	}
	return c.current.Load(), nil
}

// read reads the files if they are not as they were when last read.
func (c *certificate) read() (changed bool, err error) {
	var now [2]version
	for i, file := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(file)
		if err != nil {
			// Gone is a state as well: it is told of once.
			changed = c.seen[i].info != nil
			c.seen[i] = version{}
			return changed, err
		}
		now[i] = version{info, info.ModTime(), info.Size()}
	}
	if c.seen[0].info != nil && c.seen[1].info != nil && now[0].is(c.seen[0]) && now[1].is(c.seen[1]) {
		return false, nil
	}
	c.seen = now
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return true, fmt.Errorf("%s, %s: %w", c.certFile, c.keyFile, err)
	}
	c.current.Store(&pair)
	return true, nil
}
