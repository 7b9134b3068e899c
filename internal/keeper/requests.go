package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// serve answers a monitor until its end of the link closes.
func (k *Keeper) serve(link *monitor.Link, q *queue) error {
	for {
		var r monitor.KeeperRequest
		fds, err := link.Receive(&r)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		reply := monitor.KeeperEvent{Op: "reply", Seq: r.Seq}
		if err := k.handle(r, fds); err != nil {
			reply.Error = err.Error()
		}
		q.put(reply, -1)
	}
}

// handle does one request and owns fds.
func (k *Keeper) handle(r monitor.KeeperRequest, fds []int) error {
	if r.Op != "hold" {
		monitor.CloseAll(fds)
	}
	if strings.ContainsRune(r.ID, '/') || r.ID == "." || r.ID == ".." {
		return fmt.Errorf("bad id %q", r.ID)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r.Op {
	case "expect":
		k.expected[r.ID] = true
	case "claim":
		return k.claim(r)
	case "cancel":
		k.unexpect(r.ID)
	case "forget":
		return k.forget(r.ID)
	case "kill":
		return k.kill(r.ID, unix.Signal(r.Signal))
	case "hold":
		return k.hold(r, fds)
	case "drop":
		for _, name := range r.Names {
			k.drop(name)
		}
	default:
		return fmt.Errorf("unknown request %q", r.Op)
	}
	return nil
}

// claim ties a pid to an id: one that lives, or one that died while it was
// expected. k.mu must be held.
func (k *Keeper) claim(r monitor.KeeperRequest) error {
	if old := k.claims[r.ID]; old != nil {
		if old.pid == r.Pid {
			return nil
		}
		return fmt.Errorf("%s is claimed with pid %d", r.ID, old.pid)
	}
	c := &claim{pid: r.Pid, record: r.Record}
	if ended, ok := k.dead[r.Pid]; ok {
		delete(k.dead, r.Pid)
		k.unexpect(r.ID)
		k.claims[r.ID] = c
		k.end(r.ID, c, ended)
		return nil
	}
	p, err := readProcess(r.Pid)
	if err != nil {
		return fmt.Errorf("no process %d: %w", r.Pid, err)
	}
	if p.parent != os.Getpid() {
		return fmt.Errorf("process %d is not the keeper's child", r.Pid) // but another with a used pid
	}
	c.start = p.start
	k.claims[r.ID] = c
	k.unexpect(r.ID)
	return writeJSON(k.claimPath(r.ID), claimFile{Pid: c.pid, Start: c.start, Record: c.record})
}

// unexpect ends an expectation; unknown statuses go with the last one. k.mu
// must be held.
func (k *Keeper) unexpect(id string) {
	delete(k.expected, id)
	if len(k.expected) == 0 {
		clear(k.dead)
	}
}

// forget drops all of an id. k.mu must be held.
func (k *Keeper) forget(id string) error {
	k.unexpect(id)
	delete(k.claims, id)
	for name := range k.held {
		if owner, _, _ := strings.Cut(name, "/"); owner == id {
			k.drop(name)
		}
	}
	return errors.Join(remove(k.claimPath(id)), remove(k.exitPath(id)))
}

// kill sends a signal. The pid cannot be another's: only reaping frees it, and
// reaping holds k.mu, which must be held. One that is followed is checked.
func (k *Keeper) kill(id string, s unix.Signal) error {
	c := k.claims[id]
	if c == nil {
		return fmt.Errorf("%s is not claimed", id)
	}
	if c.ended != nil {
		return errors.New(monitor.Gone)
	}
	if c.followed {
		if p, err := readProcess(c.pid); err != nil || p.start != c.start {
			return errors.New(monitor.Gone)
		}
	}
	err := unix.Kill(c.pid, s)
	if errors.Is(err, unix.ESRCH) {
		return errors.New(monitor.Gone)
	}
	return err
}

// hold keeps descriptors, in place of older ones of the same names. k.mu must be held.
func (k *Keeper) hold(r monitor.KeeperRequest, fds []int) error {
	if len(fds) != len(r.Names) {
		monitor.CloseAll(fds)
		return fmt.Errorf("%d descriptors for %d names", len(fds), len(r.Names))
	}
	for i, name := range r.Names {
		k.drop(name)
		k.held[name] = held{fds[i], r.Silent}
	}
	return nil
}

// drop closes one held descriptor. k.mu must be held.
func (k *Keeper) drop(name string) {
	if h, ok := k.held[name]; ok {
		_ = unix.Close(h.fd)
		delete(k.held, name)
	}
}

func (k *Keeper) exitPath(id string) string  { return filepath.Join(k.dir, "exits", id) }
func (k *Keeper) claimPath(id string) string { return filepath.Join(k.dir, "claims", id) }

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
