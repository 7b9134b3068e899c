package server

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// What is asked of a dead keeper has no answer: the process ends, and a caller
// sees that and no failure of its own.
func TestDeadKeeper(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	link, err := monitor.NewLink(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(ends[1]); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() { answer <- newKeeperLink(link).expect("id") }()
	select {
	case err := <-answer:
		t.Error(err)
	case <-time.After(50 * time.Millisecond):
	}
}
