package keeper

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// reapLoop waits for children at each SIGCHLD.
func (k *Keeper) reapLoop(children <-chan os.Signal) {
	for {
		for k.reapOne() {
		}
		<-children
	}
}

// reapOne waits for one child and reports whether there was one.
func (k *Keeper) reapOne() bool {
	k.mu.Lock() // the pid is free from wait4 on: nobody may use it before it is noted
	defer k.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if own := k.own[pid]; own != nil {
		delete(k.own, pid)
		if pid == k.monitor {
			k.monitor = 0
		}
		own <- status
		return true
	}
	ended := endedBy(pid, status)
	for id, c := range k.claims {
		if c.pid == pid && c.ended == nil && !c.followed {
			k.end(id, c, ended)
			return true
		}
	}
	if len(k.expected) > 0 {
		k.dead[pid] = ended
	}
	return true
}

func endedBy(pid int, s unix.WaitStatus) monitor.Ended {
	e := monitor.Ended{Pid: pid, Code: s.ExitStatus(), At: time.Now()}
	if s.Signaled() {
		e.Signal = int(s.Signal())
		e.Code = 128 + e.Signal
	}
	return e
}

// end notes how a claimed process ended: on disk, then to the monitor. k.mu must be held.
func (k *Keeper) end(id string, c *claim, ended monitor.Ended) {
	c.ended = &ended
	if c.record {
		if err := writeJSON(k.exitPath(id), ended); err != nil {
			k.log.Error("exit record not written", "id", id, "code", ended.Code, "error", err)
		}
	}
	if err := remove(k.claimPath(id)); err != nil {
		k.log.Error("claim not removed", "id", id, "error", err)
	}
	if k.queue != nil {
		k.queue.put(monitor.KeeperEvent{Op: "exit", ID: id, Pid: c.pid, Ended: &ended}, -1)
	}
}
