package nri

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// commBytes is how much of a program's name the kernel keeps. kernel: TASK_COMM_LEN.
const commBytes = 15

// reap takes in, until ctx ends, plugins of these names that have died: the
// library waits only for those that it has come to end itself.
func reap(ctx context.Context, names []string) {
	if len(names) == 0 {
		<-ctx.Done()
		return
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		for _, pid := range children() {
			if zombie(pid, names) {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
		select {
		case <-died:
		case <-ctx.Done():
			return
		}
	}
}

// children returns this process's.
func children() []int {
	var pids []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// zombie reports whether a process has died and had one of these names. proc(5), stat.
func zombie(pid int, names []string) bool {
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndex(stat, []byte(") Z"))
	return open >= 0 && end > open && slices.ContainsFunc(names, func(name string) bool {
		return name[:min(len(name), commBytes)] == string(stat[open+1:end])
	})
}
