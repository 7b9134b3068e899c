package server

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A kill is what the kernel's log has of an OOM kill.
type kill struct {
	limited string // the cgroup whose limit was hit; empty: the node had no memory
	of      string // the victim's cgroup
	victim  string
	pid     int
}

// parseRecord reads a record of /dev/kmsg, "priority,sequence,time,flags;text\n"
// and more lines. From 8 on, priorities are of what programs have written there.
func parseRecord(record string) (kill, bool) {
	head, text, _ := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	if n, err := strconv.Atoi(priority); err != nil || n > 7 {
		return kill{}, false
	}
	text, _, _ = strings.Cut(text, "\n")
	return parseKill(text)
}

// parseKill reads a line of the kernel's log; not ok if it is no OOM kill.
// kernel: mm/oom_kill.c, dump_oom_summary, and mem_cgroup_print_oom_context:
//
//	oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=C,mems_allowed=0,oom_memcg=/p,task_memcg=/p/c,task=sh,pid=7,uid=0
//	oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=C,mems_allowed=0,global_oom,task_memcg=/p/c,task=sh,pid=7,uid=0
func parseKill(text string) (k kill, ok bool) {
	if !strings.HasPrefix(text, "oom-kill:") {
		return k, false
	}
	before, pid, ok := cutLast(text, ",pid=")
	if !ok {
		return k, false
	}
	pid, _, _ = strings.Cut(pid, ",")
	if k.pid, _ = strconv.Atoi(strings.TrimSpace(pid)); k.pid <= 0 {
		return k, false
	}
	if before, k.victim, ok = cutLast(before, ",task="); !ok {
		return k, false
	}
	if before, k.of, ok = cutLast(before, ",task_memcg="); !ok {
		return k, false
	}
	_, k.limited, _ = cutLast(before, ",oom_memcg=")
	return k, true
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

// A kernelLog has the OOM kills of the kernel's log.
type kernelLog struct {
	path  string
	tried bool
	fd    int // -1: it cannot be read
	kills []kill
}

const maxKills = 64

// find returns the last kill in the cgroup whose name has id, or in one below it.
func (l *kernelLog) find(id string) (kill, bool) {
	l.read()
	for _, k := range slices.Backward(l.kills) {
		if strings.Contains(k.of, id) {
			return k, true
		}
	}
	return kill{}, false
}

// read takes in what is new; at first all that is there.
func (l *kernelLog) read() {
	if !l.tried {
		l.tried = true
		var err error
		if l.fd, err = unix.Open(l.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			l.fd = -1
		}
	}
	if l.fd < 0 {
		return
	}
	// kernel: ABI/testing/dev-kmsg: a record a read, EPIPE where some were overwritten.
	for buf := make([]byte, 8<<10); ; {
		n, err := unix.Read(l.fd, buf)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		if k, ok := parseRecord(string(buf[:n])); ok {
			l.kills = append(l.kills, k)
			l.kills = l.kills[max(0, len(l.kills)-maxKills):]
		}
	}
}

// oomCause says whose want of memory ended a process of c, as far as the
// kernel's log and the files of cgroups tell by now; nil if they tell nothing.
// w.counting must be held.
func (w *oomWatch) oomCause(c *container) *monitor.OOM {
	events := c.get().Container.OOMEvents
	own, v2 := filepath.Dir(events), filepath.Base(events) == memoryEvents
	k, ok := w.kernel.find(c.id)
	if !ok {
		return causeByCounters(own, v2)
	}
	cause := &monitor.OOM{Victim: k.victim, VictimPid: k.pid}
	if k.limited == "" {
		cause.Scope = monitor.OOMOfNode
		cause.Limit = nodeMemory()
		_, cause.Peak = readMemory(own, v2)
		return cause
	}
	// The kernel names cgroups from the root of the hierarchy, which may be
	// mounted anywhere: what counts is where they are to one another.
	mine, _, _ := strings.Cut(k.of[strings.Index(k.of, c.id):], "/")
	mine = k.of[:strings.Index(k.of, c.id)] + mine
	dir := own
	switch relative, err := filepath.Rel(mine, k.limited); {
	case err != nil:
	case relative == "." || !strings.HasPrefix(relative, ".."):
		cause.Scope, dir = monitor.OOMOfContainer, filepath.Join(own, relative)
	case relative == "..":
		cause.Scope, cause.Cgroup, dir = monitor.OOMOfPod, k.limited, filepath.Dir(own)
	default:
		cause.Scope, cause.Cgroup, dir = monitor.OOMAbove, k.limited, filepath.Join(own, relative)
	}
	cause.Limit, cause.Peak = readMemory(dir, v2)
	return cause
}

// causeByCounters is oomCause where the kernel's log does not tell.
func causeByCounters(own string, v2 bool) *monitor.OOM {
	for i, scope := range []string{monitor.OOMOfContainer, monitor.OOMOfPod} {
		dir := own
		if i > 0 {
			dir = filepath.Dir(own)
		}
		limit, peak := readMemory(dir, v2)
		hit := limit > 0 && peak >= limit // v1 counts nothing that says more
		if v2 {
			// kernel: cgroup-v2.rst, memory.events.local, "oom": the limit of this
			// cgroup itself was hit.
			data, _ := os.ReadFile(filepath.Join(dir, memoryEvents+".local"))
			hit = counter(data, "oom") > 0
		}
		if hit {
			return &monitor.OOM{Scope: scope, Limit: limit, Peak: peak}
		}
	}
	return nil
}

// readMemory returns the limit of a cgroup and the most that it has used, in
// bytes; 0 is none, or unknown.
func readMemory(dir string, v2 bool) (limit, peak int64) {
	names := [2]string{"memory.limit_in_bytes", "memory.max_usage_in_bytes"}
	if v2 {
		names = [2]string{"memory.max", "memory.peak"} // peak: Linux 5.19
	}
	var values [2]int64
	for i, name := range names {
		data, _ := os.ReadFile(filepath.Join(dir, name))
		values[i], _ = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // "max" is none
	}
	if values[0] > 1<<60 { // v1 has no other word for none
		values[0] = 0
	}
	return values[0], values[1]
}

// nodeMemory returns the node's memory in bytes, 0 if that is unknown.
func nodeMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}
