package server

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A keeperLink asks the keeper and waits for its answers.
type keeperLink struct {
	link   *monitor.Link
	ending chan struct{} // closed when the keeper asks this process to end

	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan error
}

// An inventory is what the keeper has at the start of a monitor.
type inventory struct {
	claims   map[string]monitor.KeeperEvent
	expected []string
	fds      map[string]int
	baseOOM  int
}

func newKeeperLink(link *monitor.Link) *keeperLink {
	return &keeperLink{link: link, ending: make(chan struct{}), waiting: map[uint64]chan error{}}
}

// begin reads what the keeper has. It must come before run.
func (k *keeperLink) begin() (inventory, error) {
	have := inventory{claims: map[string]monitor.KeeperEvent{}, fds: map[string]int{}}
	for {
		var e monitor.KeeperEvent
		fds, err := k.link.Receive(&e)
		if err != nil {
			return have, err
		}
		switch e.Op {
		case "claim":
			have.claims[e.ID] = e
		case "expect":
			have.expected = append(have.expected, e.ID)
		case "fd":
			if len(fds) == 1 {
				have.fds[e.Name], fds = fds[0], nil
			}
		case "ready":
			have.baseOOM = e.BaseOOM
			return have, nil
		}
		monitor.CloseAll(fds)
	}
}

// run delivers answers, exits to exited, and the wish to end, until the keeper
// has gone.
func (k *keeperLink) run(exited func(id string, ended monitor.Ended)) error {
	for {
		var e monitor.KeeperEvent
		fds, err := k.link.Receive(&e)
		if err != nil {
			return err
		}
		monitor.CloseAll(fds)
		switch {
		case e.Op == "exit" && e.Ended != nil:
			exited(e.ID, *e.Ended)
		case e.Op == "end":
			close(k.ending)
		case e.Op == "reply":
			k.mu.Lock()
			reply := k.waiting[e.Seq]
			delete(k.waiting, e.Seq)
			k.mu.Unlock()
			if reply != nil {
				reply <- replyError(e.Error)
			}
		}
	}
}

var errGone = errors.New(monitor.Gone)

func replyError(text string) error {
	switch text {
	case "":
		return nil
	case monitor.Gone:
		return errGone
	}
	return errors.New("keeper: " + text)
}

// ask sends a request and waits for the answer. Once the keeper is dead it
// never returns, but this process ends then: callers ask the next one.
func (k *keeperLink) ask(r monitor.KeeperRequest, fds ...int) error {
	reply := make(chan error, 1)
	k.mu.Lock()
	k.seq++
	r.Seq = k.seq
	k.waiting[r.Seq] = reply
	k.mu.Unlock()
	err := k.link.Send(r, fds...)
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		k.mu.Lock()
		delete(k.waiting, r.Seq)
		k.mu.Unlock()
		return err
	}
	return <-reply
}

func (k *keeperLink) expect(id string) error {
	return k.ask(monitor.KeeperRequest{Op: "expect", ID: id})
}

// claim makes exit events for id follow. With record the keeper writes exits/id.
func (k *keeperLink) claim(id string, pid int, record bool) error {
	return k.ask(monitor.KeeperRequest{Op: "claim", ID: id, Pid: pid, Record: record})
}

func (k *keeperLink) cancel(id string) error {
	return k.ask(monitor.KeeperRequest{Op: "cancel", ID: id})
}

func (k *keeperLink) forget(id string) error {
	return k.ask(monitor.KeeperRequest{Op: "forget", ID: id})
}

// kill returns errGone if the process has ended.
func (k *keeperLink) kill(id string, signal unix.Signal) error {
	return k.ask(monitor.KeeperRequest{Op: "kill", ID: id, Signal: int(signal)})
}

func (k *keeperLink) hold(silent bool, names []string, fds []int) error {
	if len(fds) == 0 {
		return nil
	}
	return k.ask(monitor.KeeperRequest{Op: "hold", Names: names, Silent: silent}, fds...)
}

func (k *keeperLink) drop(names ...string) error {
	return k.ask(monitor.KeeperRequest{Op: "drop", Names: names})
}
