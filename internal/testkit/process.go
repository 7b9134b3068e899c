package testkit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A process is one of this machine at one moment.
type process struct {
	pid, parent int
	started     uint64 // clock ticks since boot: with pid, its identity
	state       byte   // 'Z' for one that ended and was not waited for
	name        string
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
	p.started, _ = strconv.ParseUint(fields[19], 10, 64)
	if p.pid, err = strconv.Atoi(filepath.Base(dir)); err != nil {
		return p, err
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
