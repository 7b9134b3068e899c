package stdio

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Lines of 100 bytes as fast as they come, through the pump alone: many in
// each write, and one.
func BenchmarkPump(b *testing.B) {
	b.Run("many", func(b *testing.B) { benchmarkPump(b, 512<<20, 64<<10) })
	b.Run("one", func(b *testing.B) { benchmarkPump(b, 64<<20, 100) })
}

func benchmarkPump(b *testing.B, bytes int64, each int) {
	for b.Loop() {
		dir := b.TempDir()
		log := filepath.Join(dir, "0.log")
		keep := func(bool, []string, []int) error { return nil }
		o, err := Open(Config{ID: "id", Dir: dir, LogPath: log, Console: -1, Log: -1, Keep: keep, Report: func(err error) { b.Error(err) }})
		if err != nil {
			b.Fatal(err)
		}
		o.Run()
		end, err := o.containerEnd("stdout")
		if err != nil {
			b.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf(
			"yes %.99s | head -c %d | dd bs=%d iflag=fullblock 2>/dev/null", strings.Repeat("0123456789", 10), bytes, each))
		cmd.Stdout = end
		begin := usage()
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		_ = end.Close()
		o.Finish()
		b.ReportMetric((usage()-begin).Seconds()*(1<<30)/float64(bytes), "cpu-s/GiB")
		if info, err := os.Stat(log); err != nil || info.Size() < bytes {
			b.Fatal(info, err)
		}
		_ = os.Remove(log)
	}
}

// usage is the processor time of this process, children excepted.
func usage() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
