package testkit

import (
	"io"
	"sync"
	"testing"
)

// Output is t.Output until the cleanups that are registered after it have run,
// and takes nothing from then on: a goroutine that a library leaves behind may
// log at any time, and a test's own output panics once the test has ended.
func Output(t testing.TB) io.Writer {
	o := &output{to: t.Output()}
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.to = io.Discard
	})
	return o
}

type output struct {
	mu sync.Mutex
	to io.Writer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.to.Write(p)
}
