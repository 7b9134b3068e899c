// Package proc finds the programs that run on a node, by what /proc below a
// root directory says of their processes. Anybody may give any name to a
// process, and several nodes may be on one machine, as those of kind are: so
// only those are found that are root's or the caller's own, and in the PID and
// mount namespace of /proc/self.
//
// It only reads files. Packages kubelet and doctor call it.
package proc

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Process is one that runs, or did when it was found.
type Process struct {
	Pid  int
	Args []string // what it was called by comes first; never empty
}

// Name is what the process was called by, without folders.
func (p Process) Name() string { return filepath.Base(p.Args[0]) }

// Path returns the path of one of the process's files below the root: /proc/1/status.
func (p Process) Path(file string) string { return filepath.Join("/proc", strconv.Itoa(p.Pid), file) }

// Find returns the processes of the node below root whose arguments match, by
// Pid. What cannot be seen of one does not exclude it.
func Find(root string, match func(Process) bool) []Process {
	dirs, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*"))
	var found []Process
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(data) == 0 {
			continue // it has ended, or is the kernel's
		}
		p := Process{Args: strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")}
		p.Pid, _ = strconv.Atoi(filepath.Base(dir))
		if !match(p) || apart(root, dir) {
			continue
		}
		if status, _ := os.ReadFile(filepath.Join(dir, "status")); ofOthers(string(status)) || nested(string(status)) {
			continue
		}
		found = append(found, p)
	}
	slices.SortFunc(found, func(a, b Process) int { return a.Pid - b.Pid })
	return found
}

// apart reports whether a process is in another mount namespace.
func apart(root, dir string) bool {
	ours, err := os.Readlink(filepath.Join(root, "proc/self/ns/mnt"))
	its, itsErr := os.Readlink(filepath.Join(dir, "ns/mnt")) // root's to see
	return err == nil && itsErr == nil && ours != its
}

// ofOthers reports whether a process is neither root's nor the caller's.
// kernel: proc_pid_status(5), Uid: real, effective.
func ofOthers(status string) bool {
	ids := field(status, "Uid:")
	return len(ids) > 1 && ids[1] != "0" && ids[1] != strconv.Itoa(os.Getuid())
}

// nested reports whether a process has a PID in more than one namespace.
// kernel: proc_pid_status(5), NSpid.
func nested(status string) bool { return len(field(status, "NSpid:")) > 1 }

func field(status, name string) []string {
	for line := range strings.Lines(status) {
		if values, ok := strings.CutPrefix(line, name); ok {
			return strings.Fields(values)
		}
	}
	return nil
}
