package server

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// memoryEvents counts OOM kills on cgroup v2. Only this file can be watched,
// and counts what is in the cgroups below, too. kernel: cgroup-v2.rst, memory.events.
const memoryEvents = "memory.events"

const kmsg = "/dev/kmsg"

// readOOM returns how many processes the OOM killer has ended, of the cgroup
// whose file path is.
func readOOM(path string) (int, error) {
	data, err := os.ReadFile(path)
	return oomKills(data), err
}

// oomKills finds the counter in memory.events (cgroup v2) or memory.oom_control (v1).
func oomKills(data []byte) int { return counter(data, "oom_kill") }

// counter finds what follows a name; 0 if that is not there.
func counter(data []byte, name string) int {
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// oomAbove is the file that counts the kills of the pod that c is in, or of
// whatever c's cgroup is in; empty on cgroup v1, where nothing does.
func (c *container) oomAbove() string {
	path := c.get().Container.OOMEvents
	if filepath.Base(path) != memoryEvents {
		return ""
	}
	return filepath.Join(filepath.Dir(filepath.Dir(path)), memoryEvents)
}

// knownOOM counts the kills above c by now; nil if nothing counts them.
func (c *container) knownOOM() *int {
	kills, err := readOOM(c.oomAbove())
	if err != nil {
		return nil
	}
	return &kills
}

// An oomWatch notes OOM kills when they happen, since systemd may remove a
// cgroup as soon as it is empty.
type oomWatch struct {
	s  *server
	f  *os.File // inotify; nil if it cannot be had
	fd int

	counting sync.Mutex // one container's kills at a time; taken before server.mu
	kernel   kernelLog  // guarded by counting

	mu      sync.Mutex
	watched map[int32]*container
}

func newOOMWatch(s *server) *oomWatch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		s.log.Warn("OOM kills are only counted at exit", "error", err)
		return &oomWatch{s: s, kernel: kernelLog{path: kmsg}}
	}
	w := &oomWatch{s: s, kernel: kernelLog{path: kmsg}, f: os.NewFile(uintptr(fd), "inotify"), fd: fd, watched: map[int32]*container{}}
	go w.run()
	return w
}

// count notes and returns how many processes of c the OOM killer has ended.
// systemd may have removed the cgroup before anybody looked: a kill above it is
// c's then, unless it is known to be another's.
func (w *oomWatch) count(c *container) int {
	w.counting.Lock()
	defer w.counting.Unlock()
	rec := c.get()
	if rec.Container.OOMEvents == "" {
		return 0
	}
	kills, err := readOOM(rec.Container.OOMEvents)
	if all := c.knownOOM(); err != nil && all != nil && rec.OOMOthers != nil {
		kills = rec.OOMKills + *all - *rec.OOMOthers
	}
	more := kills - rec.OOMKills
	if more <= 0 {
		return rec.OOMKills
	}
	cause := w.oomCause(c)
	err = c.save(func(r *record) { r.OOMKills, r.OOMOthers, r.OOM = kills, plus(r.OOMOthers, more), cause })
	for _, other := range w.s.beside(c) {
		_ = other.save(func(r *record) { r.OOMOthers = plus(r.OOMOthers, more) }) // one that is being removed needs it no more
	}
	if err != nil {
		w.s.log.Error("OOM kill not saved", "id", c.id, "error", err)
	}
	return kills
}

func plus(known *int, more int) *int {
	if known == nil {
		return nil
	}
	sum := *known + more
	return &sum
}

// beside returns the other containers whose kills are counted where c's are.
func (s *server) beside(c *container) (others []*container) {
	above := c.oomAbove()
	if above == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.containers {
		if other != c && other.oomAbove() == above {
			others = append(others, other)
		}
	}
	return others
}

func (w *oomWatch) add(c *container) {
	path := c.get().Container.OOMEvents
	if w.f == nil || filepath.Base(path) != memoryEvents {
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
			if c != nil {
				w.count(c)
			}
		}
	}
}

// kernel: inotify(7), struct inotify_event.
func inotifyEvent(b []byte) (wd int32, nameLen int) {
	return int32(binary.NativeEndian.Uint32(b)), int(binary.NativeEndian.Uint32(b[12:]))
}
