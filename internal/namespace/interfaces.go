package namespace

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// An Interface is a network interface and what went through it.
type Interface struct {
	Name   string
	Rx, Tx Traffic
}

// Traffic is in one direction, since the interface was made.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Interfaces returns the interfaces, the loopback aside, of each network
// namespace in files; nil for one that cannot be entered, being gone. A thread
// of its own enters one after the other.
//
// It takes no lock that those who set up links hold: /proc/net/dev needs no
// RTNL, which a dump over netlink does.
func Interfaces(files []string) ([][]Interface, error) {
	if len(files) == 0 {
		return nil, nil
	}
	all := make([][]Interface, len(files))
	err := onThread(func() (err error) {
		buf := make([]byte, 8<<10)
		for i, file := range files {
			if enter(file) != nil {
				continue
			}
			if all[i], err = counters(&buf); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

func enter(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// counters reads the interfaces of the calling thread's namespace.
func counters(buf *[]byte) ([]Interface, error) {
	const file = "/proc/thread-self/net/dev"
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Internal, "namespace.Interfaces", "%s: %w", file, err)
	}
	defer unix.Close(fd)
	n := 0
	for {
		if n == len(*buf) {
			*buf = append(*buf, make([]byte, len(*buf))...)
		}
		got, err := unix.Read(fd, (*buf)[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fault.New(fault.Internal, "namespace.Interfaces", "%s: %w", file, err)
		}
		if got == 0 {
			return parseInterfaces((*buf)[:n]), nil
		}
		n += got
	}
}

// parseInterfaces reads /proc/net/dev: two lines of headings, then lines of
// a name and eight numbers for each direction.
//
// kernel: net/core/net-procfs.c, dev_seq_printf_stats
func parseInterfaces(text []byte) []Interface {
	all := []Interface{}
	for line := range bytes.Lines(text) {
		before, after, _ := bytes.Cut(line, []byte(":"))
		name := strings.TrimSpace(string(before))
		fields := bytes.Fields(after)
		if len(fields) < 16 || name == "lo" || name == "" {
			continue
		}
		var n [16]uint64
		for i := range n {
			n[i], _ = strconv.ParseUint(string(fields[i]), 10, 64)
		}
		all = append(all, Interface{
			Name: name,
			Rx:   Traffic{Bytes: n[0], Packets: n[1], Errors: n[2], Dropped: n[3]},
			Tx:   Traffic{Bytes: n[8], Packets: n[9], Errors: n[10], Dropped: n[11]},
		})
	}
	return all
}
