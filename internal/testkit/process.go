package testkit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is the kernel's USER_HZ on every architecture that davit runs on.
const ticksPerSecond = 100

// A process is one of this machine at one moment.
type process struct {
	pid, parent int
	started     uint64        // clock ticks since boot: with pid, its identity
	state       byte          // 'Z' for one that ended and was not waited for
	cpu         time.Duration // its own and that of children it waited for
	name        string
	program     string // base name of the file it runs; empty for kernel threads and zombies
	args        []string
}

func (p process) String() string {
	if len(p.args) == 0 {
		return fmt.Sprintf("%d (%s) %c", p.pid, p.name, p.state)
	}
	return fmt.Sprintf("%d %s", p.pid, strings.Join(p.args, " "))
}

// processes lists what /proc shows. Those that end meanwhile are left out.
func processes() []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var ps []process
	for _, dir := range dirs {
		if p, err := readProcess(dir); err == nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// readProcess reads one directory of /proc; proc(5), /proc/pid/stat.
func readProcess(dir string) (p process, err error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, err
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("%s/stat is unreadable", dir)
	}
	p.name = string(stat[open+1 : end])
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return p, fmt.Errorf("%s/stat is short", dir)
	}
	p.state = fields[0][0]
	p.parent, _ = strconv.Atoi(fields[1])
	for _, ticks := range fields[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(ticks, 10, 64)
		p.cpu += time.Duration(n) * (time.Second / ticksPerSecond)
	}
	p.started, _ = strconv.ParseUint(fields[19], 10, 64)
	if p.pid, err = strconv.Atoi(filepath.Base(dir)); err != nil {
		return p, err
	}
	if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		p.program = strings.TrimPrefix(filepath.Base(strings.TrimSuffix(exe, " (deleted)")), "memfd:")
	}
	cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	if len(cmdline) > 0 {
		p.args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	}
	return p, nil
}

// descendants returns every process below pid.
func descendants(pid int) []process {
	children := map[int][]process{}
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p)
	}
	var below []process
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		below = append(below, children[queue[0]]...)
		for _, p := range children[queue[0]] {
			queue = append(queue, p.pid)
		}
	}
	return below
}

// outermost returns the pid of the process above all that the tests start.
func outermost() int {
	if pid, err := strconv.Atoi(os.Getenv(stage)); err == nil {
		return pid
	}
	return os.Getpid()
}

// named returns the processes below the tests, or without Main all of the
// machine, whose programs match.
func named(pattern *regexp.Regexp) []process {
	all := processes()
	if os.Getenv(stage) != "" {
		all = descendants(outermost())
	}
	return slices.DeleteFunc(all, func(p process) bool {
		return p.pid == os.Getpid() || p.state == 'Z' || !pattern.MatchString(p.program)
	})
}

// PSSOf returns the proportional set size of all processes whose programs match,
// in bytes.
func PSSOf(pattern *regexp.Regexp) (int64, error) {
	var sum int64
	for _, p := range named(pattern) {
		pss, err := PSS(p.pid)
		if err != nil {
			return 0, err
		}
		sum += pss
	}
	return sum, nil
}

// CPUOf returns the CPU time that processes whose programs match, and those of
// their children that were waited for, have used.
func CPUOf(pattern *regexp.Regexp) time.Duration {
	var sum time.Duration
	for _, p := range named(pattern) {
		sum += p.cpu
	}
	return sum
}
