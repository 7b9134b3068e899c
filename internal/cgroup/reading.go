package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// Unlimited is the limit of what has none.
const Unlimited = math.MaxUint64

// A Reading is what a cgroup, with all below it, used so far or uses now.
type Reading struct {
	At       time.Time
	CPU      CPU
	Memory   Memory
	Swap     Swap
	Pressure Pressures
}

// CPU is what was used since the cgroup was made.
type CPU struct {
	UsageNanos uint64
	Known      bool // false without a CPU controller
}

// Memory is in bytes. What a v1 and a v2 kernel call differently has one name here.
type Memory struct {
	Usage, Limit             uint64
	Anon, File, Mapped       uint64 // Anon is what a process calls its RSS
	ActiveFile, InactiveFile uint64
	Kernel                   uint64 // v2 only; on v1 it is a file of its own
	Faults, MajorFaults      uint64
	Known                    bool // false without a memory controller
}

// WorkingSet is what cannot be had back without pain, as the kubelet counts it.
func (m *Memory) WorkingSet() uint64 { return m.Usage - min(m.Usage, m.InactiveFile) }

// Swap is in bytes.
type Swap struct {
	Usage, Limit uint64
	Known        bool // false where the kernel does not account for swap
}

// Pressures are nil where the kernel has none.
//
// kernel: accounting/psi.rst
type Pressures struct {
	CPU, Memory, IO *Pressure
}

// A Pressure is for how long some, or all, processes waited for one resource.
type Pressure struct{ Some, Full Stall }

// A Stall has percentages over 10, 60 and 300 seconds, and the sum of all.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	TotalMicros          uint64
}

// Read reads the figures of p: six to nine small files, without a lock of
// davit's. It returns NotFound for a cgroup that is gone.
//
// kernel: cgroup-v2.rst, cgroup-v1/cpuacct.rst, cgroup-v1/memory.rst
func (h *Host) Read(p Place) (Reading, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	r := Reading{At: time.Now()}
	var err error
	if h.layout == V2 {
		err = h.readV2(s, p, &r)
	} else {
		err = h.readV1(s, p, &r)
	}
	if err != nil {
		return Reading{}, err
	}
	if dir, ok := h.unified(p); ok {
		r.Pressure = Pressures{
			CPU: s.pressure(dir, "cpu.pressure"), Memory: s.pressure(dir, "memory.pressure"), IO: s.pressure(dir, "io.pressure"),
		}
	}
	return r, nil
}

func (h *Host) readV2(s *scratch, p Place, r *Reading) error {
	dir, ok := h.dirOf(p, "")
	if !ok {
		return fault.New(fault.NotFound, "cgroup.Read", "no control group for %s", p.ID)
	}
	text, err := s.read(dir, "cpu.stat")
	if err != nil {
		return gone(err) // cpu.stat is there without any controller
	}
	each(text, func(key, value []byte) {
		if string(key) == "usage_usec" {
			r.CPU = CPU{UsageNanos: number(value) * 1000, Known: true}
		}
	})
	if r.Memory.Usage, err = s.number(dir, "memory.current"); err != nil {
		return absent(err)
	}
	if text, err = s.read(dir, "memory.stat"); err != nil {
		return gone(err)
	}
	r.Memory.takeV2(text)
	if r.Memory.Limit, err = s.number(dir, "memory.max"); err != nil {
		return gone(err)
	}
	r.Memory.Known = true
	if r.Swap.Usage, err = s.number(dir, "memory.swap.current"); err != nil {
		return absent(err)
	}
	if r.Swap.Limit, err = s.number(dir, "memory.swap.max"); err != nil {
		return absent(err)
	}
	r.Swap.Known = true
	return nil
}

func (h *Host) readV1(s *scratch, p Place, r *Reading) error {
	found := false
	if dir, ok := h.dirOf(p, "cpuacct"); ok {
		n, err := s.number(dir, "cpuacct.usage")
		if err != nil {
			return gone(err)
		}
		r.CPU, found = CPU{UsageNanos: n, Known: true}, true
	}
	dir, ok := h.dirOf(p, "memory")
	if !ok {
		if !found {
			return fault.New(fault.NotFound, "cgroup.Read", "no control group for %s", p.ID)
		}
		return nil
	}
	var err error
	if r.Memory.Usage, err = s.number(dir, "memory.usage_in_bytes"); err != nil {
		return gone(err)
	}
	text, err := s.read(dir, "memory.stat")
	if err != nil {
		return gone(err)
	}
	both := r.Memory.takeV1(text, &r.Swap)
	r.Memory.Known = true
	// Above says whether here or anywhere above there is a limit at all.
	if r.Memory.Limit < Unlimited {
		if r.Memory.Limit, err = s.limitV1(dir, "memory.limit_in_bytes"); err != nil {
			return gone(err)
		}
	}
	r.Swap.Limit = Unlimited
	if r.Swap.Known && both < Unlimited && r.Memory.Limit < Unlimited {
		if both, err = s.limitV1(dir, "memory.memsw.limit_in_bytes"); err != nil {
			return gone(err)
		}
		if both < Unlimited {
			r.Swap.Limit = both - min(both, r.Memory.Limit)
		}
	}
	return nil
}

// unified returns the directory of p in a v2 tree, which is where pressure is
// told, in a hybrid layout too.
func (h *Host) unified(p Place) (string, bool) {
	for _, t := range h.trees {
		if t.unified {
			for _, d := range p.Dirs {
				if strings.HasPrefix(d, t.mount+"/") {
					return d, true
				}
			}
		}
	}
	return "", false
}

// gone says of a file that must be there that the cgroup is not.
func gone(err error) error {
	kind := fault.Internal
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		kind = fault.NotFound
	}
	return fault.New(kind, "cgroup.Read", "%w", err)
}

// absent takes a file that is not there for a controller that is not.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return gone(err)
}

// A scratch is what one reading needs.
type scratch struct{ buf []byte }

var scratches = sync.Pool{New: func() any { return &scratch{make([]byte, 16<<10)} }}

// read returns a file's content, until the next read. The kernel shows it in
// one piece to whoever brings enough room, a list of processes excepted.
func (s *scratch) read(dir, name string) ([]byte, error) {
	path := dir + "/" + name
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for {
		got, err := unix.Read(fd, s.buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		n += got
		if got == 0 || n < len(s.buf) && name != "cgroup.procs" {
			return s.buf[:n], nil
		}
		if n == len(s.buf) {
			s.buf = append(s.buf, make([]byte, len(s.buf))...)
		}
	}
}

// number reads a file that has one number, or "max".
func (s *scratch) number(dir, name string) (uint64, error) {
	text, err := s.read(dir, name)
	if err != nil {
		return 0, err
	}
	return number(text), nil
}

// limitV1 reads a limit of v1, which shows none as a number nobody has.
func (s *scratch) limitV1(dir, name string) (uint64, error) {
	n, err := s.number(dir, name)
	return unlimited(n), err
}

func unlimited(n uint64) uint64 {
	if n >= unlimitedV1 {
		return Unlimited
	}
	return n
}

// pressure returns nil where there is none: an old kernel, one started with
// psi=0, or a cgroup that is gone or switched it off.
func (s *scratch) pressure(dir, name string) *Pressure {
	text, err := s.read(dir, name)
	if err != nil {
		return nil
	}
	return parsePressure(text)
}

// Name returns the name of p below its hierarchies, "/kubepods/…/id".
func (h *Host) Name(p Place) string {
	for _, t := range h.trees {
		for _, d := range p.Dirs {
			if name, ok := strings.CutPrefix(d, t.mount+"/"); ok {
				return "/" + name
			}
		}
	}
	return filepath.Join(p.Parent, p.ID)
}

// Above returns the parent of p as a Place that can be read, and not ended.
func (h *Host) Above(p Place) Place {
	up := Place{Parent: filepath.Dir(p.Parent)}
	for _, d := range p.Dirs {
		up.Dirs = append(up.Dirs, filepath.Dir(d))
	}
	return up
}

// Processes returns the processes in p and below.
func (h *Host) Processes(p Place) []int {
	dir, ok := h.dirOf(p, "pids")
	if !ok && len(p.Dirs) > 0 {
		dir = p.Dirs[0]
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	return s.pids(dir, nil)
}

// pids appends the processes in dir and below. What is removed meanwhile has none.
func (s *scratch) pids(dir string, all []int) []int {
	text, err := s.read(dir, "cgroup.procs")
	if err != nil {
		return all
	}
	for line := range bytes.FieldsSeq(text) {
		if pid := int(number(line)); pid > 0 { // 0: in a PID namespace not below ours
			all = append(all, pid)
		}
	}
	// A cgroup's directory has as many links as it has cgroups in it, and two.
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || st.Nlink <= 2 {
		return all
	}
	below, _ := os.ReadDir(dir)
	for _, e := range below {
		if e.IsDir() {
			all = s.pids(filepath.Join(dir, e.Name()), all)
		}
	}
	return all
}
