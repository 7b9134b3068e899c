package cgroup

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func cpuNanos() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkRead is the figures of 100 cgroups; CPU time matters more than the
// clock's, which counts other programs' as well.
func BenchmarkRead(b *testing.B) {
	h := realHost(b)
	parent := testParent(b, h)
	var places []Place
	for i := range 100 {
		p := h.Place(parent, fmt.Sprintf("%064d", i))
		if err := h.Create(b.Context(), p); err != nil {
			b.Fatal(err)
		}
		places = append(places, p)
	}
	s := &scratch{make([]byte, 16<<10)}
	per := func(name string, f func(Place)) {
		b.Run(name, func(b *testing.B) {
			from := cpuNanos()
			for b.Loop() {
				for _, p := range places {
					f(p)
				}
			}
			b.ReportMetric(float64(cpuNanos()-from)/float64(b.N)/1e6, "cpu-ms/100")
		})
	}
	per("all", func(p Place) {
		if _, err := h.Read(p); err != nil {
			b.Fatal(err)
		}
	})
	per("place", func(p Place) { h.Place(parent, p.ID) })
	mem, _ := h.dirOf(places[0], "memory")
	_ = mem
	for _, f := range []struct{ c, name string }{{"cpuacct", "cpuacct.usage"}, {"memory", "memory.usage_in_bytes"}, {"memory", "memory.stat"}, {"", "cpu.pressure"}, {"", "memory.pressure"}, {"", "io.pressure"}} {
		per(f.name, func(p Place) {
			dir, ok := h.dirOf(p, f.c)
			if f.c == "" {
				dir, ok = h.unified(p)
			}
			if _, err := s.read(dir, f.name); err != nil || !ok {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	h := realHost(b)
	parent := testParent(b, h)
	p := h.Place(parent, fmt.Sprintf("%064d", 1))
	if err := h.Create(b.Context(), p); err != nil {
		b.Fatal(err)
	}
	dir, _ := h.unified(p)
	per := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			from := cpuNanos()
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(cpuNanos()-from)/float64(b.N)/1e3, "cpu-us")
		})
	}
	per("full", func() { fd, _ := unix.Open(dir+"/cpu.pressure", unix.O_RDONLY|unix.O_CLOEXEC, 0); unix.Close(fd) })
	per("path", func() { fd, _ := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0); unix.Close(fd) })
	d, _ := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	per("at", func() { fd, _ := unix.Openat(d, "cpu.pressure", unix.O_RDONLY|unix.O_CLOEXEC, 0); unix.Close(fd) })
	buf := make([]byte, 4096)
	per("at+read", func() {
		fd, _ := unix.Openat(d, "cpu.pressure", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		unix.Read(fd, buf)
		unix.Close(fd)
	})
	fd, _ := unix.Openat(d, "cpu.pressure", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	per("pread", func() { unix.Pread(fd, buf, 0) })
	per("getppid", func() { unix.Getppid() })
	per("getppid-raw", func() { unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0) })
}
