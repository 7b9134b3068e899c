package stats

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/pod"
)

// A Detail is what metrics have beside the figures of stats.
type Detail struct {
	cgroup.Detail
	Processes
	Disk Disk
}

// Processes are the processes of one container, looked at one by one.
type Processes struct {
	Count       uint64
	Descriptors uint64
	Sockets     uint64
	Looked      bool              // false if there were too many descriptors to look at
	States      map[string]uint64 // threads by state; nil if there were too many
	OpenFiles   cgroup.Count      // the first process's soft limit
	threads     uint64            // in States
}

// A Disk is the file system that a writable layer is on, whole.
type Disk struct {
	Device      string // "/dev/sda1"; of a file system without one, its numbers
	Major       uint64
	Minor       uint64
	Bytes       uint64
	Inodes      uint64
	InodesFree  uint64
	InodesKnown bool
}

// Bounds of what is looked at for one container and one question.
const (
	maxDescriptors = 20_000
	maxThreads     = 4_000
)

// Details returns the pods that are ready, with details of their containers.
func (r *Reader) Details() ([]*Pod, error) {
	var ready []*pod.Snapshot
	for _, p := range r.views.List() {
		if p.State == pod.Ready {
			ready = append(ready, p)
		}
	}
	pods, err := r.Pods(ready)
	if err != nil {
		return nil, err
	}
	var all []*Container
	for _, p := range pods {
		all = append(all, p.Containers...)
	}
	disks := map[string]Disk{}
	for _, c := range all {
		if at := c.Layer.Mountpoint; disks[at] == (Disk{}) {
			disks[at] = diskOf(at)
		}
	}
	inHalves(len(all), func(i int) {
		c := all[i]
		c.Detail = &Detail{
			Detail:    r.cgroups.Detail(c.Place),
			Processes: lookAt("/proc", r.cgroups.Processes(c.Place), c.Pid),
			Disk:      disks[c.Layer.Mountpoint],
		}
		c.Cgroup = r.cgroups.Name(c.Place)
	})
	names := map[[2]uint64]string{}
	for _, c := range all {
		for i := range c.Detail.Devices {
			d := &c.Detail.Devices[i]
			key := [2]uint64{d.Major, d.Minor}
			if names[key] == "" {
				names[key] = deviceName(d.Major, d.Minor)
			}
			d.Name = names[key]
		}
	}
	for _, p := range pods {
		p.Cgroup = r.cgroups.Name(p.Place)
	}
	return pods, nil
}

// diskOf asks the file system at path. What it cannot tell stays zero.
func diskOf(path string) Disk {
	var d Disk
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || unix.Statfs(path, &fs) != nil {
		return d
	}
	d.Major, d.Minor = uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev))
	d.Device = deviceName(d.Major, d.Minor)
	d.Bytes = fs.Blocks * uint64(fs.Bsize)
	d.Inodes, d.InodesFree, d.InodesKnown = fs.Files, fs.Ffree, fs.Files > 0 // btrfs has no fixed number
	return d
}

// deviceName returns "/dev/sda1", or "8:1" for what is not on a block device.
func deviceName(major, minor uint64) string {
	numbers := strconv.FormatUint(major, 10) + ":" + strconv.FormatUint(minor, 10)
	to, err := os.Readlink("/sys/dev/block/" + numbers)
	if err != nil {
		return numbers
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(to), "!", "/")
}

// lookAt looks at processes below proc. One that ends meanwhile counts no more.
func lookAt(proc string, pids []int, first int) Processes {
	p := Processes{Count: uint64(len(pids)), Looked: true, States: map[string]uint64{}}
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		p.descriptors(filepath.Join(dir, "fd"))
		p.states(dir)
	}
	if first > 0 {
		text, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(first), "limits"))
		if err == nil {
			p.OpenFiles = softOpenFiles(text)
		}
	}
	return p
}

func (p *Processes) descriptors(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		p.Descriptors += uint64(len(names))
		if p.Descriptors > maxDescriptors {
			p.Looked = false
		}
		for _, name := range names {
			if !p.Looked {
				break
			}
			var to [64]byte
			n, err := unix.Readlinkat(int(f.Fd()), name, to[:])
			if err == nil && bytes.HasPrefix(to[:n], []byte("socket:")) {
				p.Sockets++
			}
		}
		if err != nil {
			return
		}
	}
}

// threads counts a process's threads by state.
func (p *Processes) states(dir string) {
	if p.States == nil {
		return
	}
	state, threads, err := readStat(filepath.Join(dir, "stat"))
	if err != nil {
		return
	}
	if threads <= 1 {
		p.add(state)
		return
	}
	if p.threads+threads > maxThreads {
		p.States = nil
		return
	}
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.States = nil
		return
	}
	for _, t := range tasks {
		if state, _, err := readStat(filepath.Join(dir, "task", t.Name(), "stat")); err == nil {
			p.add(state)
		}
	}
}

// States of threads, as cAdvisor names them.
const (
	Running         = "running"
	Sleeping        = "sleeping"
	Stopped         = "stopped"
	Uninterruptible = "uninterruptible"
)

// add counts a thread in a state of /proc/PID/stat. kernel: filesystems/proc.rst
func (p *Processes) add(state byte) {
	p.threads++
	switch state {
	case 'R':
		p.States[Running]++
	case 'S', 'I', 'P':
		p.States[Sleeping]++
	case 'T', 't':
		p.States[Stopped]++
	case 'D':
		p.States[Uninterruptible]++
	}
}

func readStat(file string) (state byte, threads uint64, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, err
	}
	state, threads, ok := parseStat(text)
	if !ok {
		return 0, 0, errors.New(file + " is no status of a process")
	}
	return state, threads, nil
}

// parseStat reads the third and the twentieth field of /proc/PID/stat. The
// second one, a name in parentheses, may have anything in it.
func parseStat(text []byte) (state byte, threads uint64, ok bool) {
	at := bytes.LastIndexByte(text, ')')
	if at < 0 {
		return 0, 0, false
	}
	fields := bytes.Fields(text[at+1:])
	if len(fields) < 18 || len(fields[0]) != 1 {
		return 0, 0, false
	}
	threads, err := strconv.ParseUint(string(fields[17]), 10, 32)
	return fields[0][0], threads, err == nil
}

// softOpenFiles reads /proc/PID/limits. Known is false without a limit.
func softOpenFiles(text []byte) cgroup.Count {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("Max open files")); ok {
			f := bytes.Fields(rest)
			if len(f) == 0 {
				break
			}
			n, err := strconv.ParseUint(string(f[0]), 10, 64)
			return cgroup.Count{N: n, Known: err == nil}
		}
	}
	return cgroup.Count{}
}
