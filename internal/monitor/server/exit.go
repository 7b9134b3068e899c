package server

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// end is called once, when the keeper has said that c's process ended.
func (c *container) end(ended monitor.Ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hasEnded() {
		return
	}
	close(c.ended)
	go c.finish(ended)
}

// finish completes the log, decides what kind of end it was, and tells.
func (c *container) finish(ended monitor.Ended) {
	<-c.made
	if c.get().Phase == creating {
		return // abandon takes care
	}
	kills := c.countOOM() // before anybody deletes the cgroup
	if o := c.output(); o != nil {
		o.Finish()
	}
	rec := c.get()
	exit := rec.Exit
	if exit == nil {
		exit = &monitor.Exit{
			ID: c.id, Code: ended.Code, Signal: ended.Signal, At: ended.At,
			OOMKilled: max(kills, rec.OOMKills) > 0 && ended.Code == 128+int(unix.SIGKILL) && !rec.Killed,
		}
	}
	err := c.save(func(r *record) { r.Phase, r.Exit = complete, exit })
	if err != nil {
		c.s.log.Error("exit not saved", "id", c.id, "error", err)
		c.mu.Lock()
		c.rec.Phase, c.rec.Exit = complete, exit
		c.mu.Unlock()
	}
	c.setOutput(nil)
	if err := c.s.keeper.drop(c.id+"/stdout", c.id+"/stdout.stage", c.id+"/stderr", c.id+"/stderr.stage",
		c.id+"/log", c.id+"/console", c.id+"/stdin"); err != nil {
		c.s.log.Error("descriptors not dropped", "id", c.id, "error", err)
	}
	close(c.complete)
	c.s.announce(c)
}

// countOOM reads how many processes of the container's cgroup the OOM killer has ended.
func (c *container) countOOM() int {
	path := c.get().Container.OOMEvents
	if path == "" {
		return 0
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0 // gone with the cgroup: what was seen before counts
	}
	return oomKills(data)
}

// oomKills finds the counter in memory.events (cgroup v2) or memory.oom_control (v1).
func oomKills(data []byte) int {
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// An oomWatch notes OOM kills when they happen, since systemd may remove a
// cgroup as soon as it is empty. Only cgroup v2's memory.events can be watched.
type oomWatch struct {
	s  *server
	f  *os.File // inotify; nil if it cannot be had
	fd int

	mu      sync.Mutex
	watched map[int32]*container
}

func newOOMWatch(s *server) *oomWatch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		s.log.Warn("OOM kills are only counted at exit", "error", err)
		return &oomWatch{s: s}
	}
	w := &oomWatch{s: s, f: os.NewFile(uintptr(fd), "inotify"), fd: fd, watched: map[int32]*container{}}
	go w.run()
	return w
}

func (w *oomWatch) add(c *container) {
	path := c.get().Container.OOMEvents
	if w.f == nil || filepath.Base(path) != "memory.events" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := unix.InotifyAddWatch(w.fd, path, unix.IN_MODIFY)
	if err != nil {
		w.s.log.Warn("OOM kills are only counted at exit", "id", c.id, "error", err)
		return
	}
	w.watched[int32(wd)] = c
}

func (w *oomWatch) remove(c *container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wd, other := range w.watched {
		if other == c {
			delete(w.watched, wd)
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // gone with its file
		}
	}
}

func (w *oomWatch) run() {
	var buf [4096]byte
	for {
		n, err := w.f.Read(buf[:])
		if err != nil {
			w.s.log.Error("OOM kills are only counted at exit", "error", err)
			return
		}
		for from := 0; from+unix.SizeofInotifyEvent <= n; {
			wd, nameLen := inotifyEvent(buf[from:])
			from += unix.SizeofInotifyEvent + nameLen
			w.mu.Lock()
			c := w.watched[wd]
			w.mu.Unlock()
			if c == nil {
				continue
			}
			if kills := c.countOOM(); kills > c.get().OOMKills {
				if err := c.save(func(r *record) { r.OOMKills = kills }); err != nil {
					w.s.log.Error("OOM kill not saved", "id", c.id, "error", err)
				}
			}
		}
	}
}

// kernel: inotify(7), struct inotify_event.
func inotifyEvent(b []byte) (wd int32, nameLen int) {
	return int32(binary.NativeEndian.Uint32(b)), int(binary.NativeEndian.Uint32(b[12:]))
}
