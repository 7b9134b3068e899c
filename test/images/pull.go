package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/disk"
	"github.com/davit-runtime/davit/test/images/layout"
)

// diskBytes is how large the file systems are; their files are sparse.
const diskBytes = 12 << 30

// The quantities of a pull.
const (
	cpu     = "CPU-seconds of a pull"
	wall    = "seconds until PullImage answers"
	written = "MB written by the daemon"
	device  = "MB written to the disk"
	used    = "MB of the disk used"
	removal = "seconds until the space is free again"
	memory  = "MB of memory at most (RSS)"
)

// comparePulls pulls the image with a tag by turns.
func (b *bench) comparePulls(ctx context.Context, dir layout.Dir, tag string) error {
	m, err := dir.Manifest(tag)
	if err != nil {
		return err
	}
	compressed := int64(0)
	for _, l := range m.Layers {
		compressed += l.Size
	}
	contestants := []contestant{b.containerd("containerd", ""), b.davitd("davit", "")}
	if b.erofs {
		contestants = append(contestants, b.containerd("containerd, EROFS", erofsSnapshotter))
	}
	t := b.report.table(fmt.Sprintf("%s: %d layers, %d MB compressed", tag, len(m.Layers), compressed>>20), []row{
		{name: cpu, limit: 0.45}, {name: wall, limit: 0.6}, {name: device, limit: 0.7}, {name: written}, // the latter without the file system's own
		{name: used, limit: 0.75}, {name: removal, limit: 0.05}, {name: memory, most: 150},
	})
	for round := range b.rounds {
		for _, c := range contestants {
			figures, err := b.pull(ctx, c, b.ref(tag))
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			say("%s, round %d, %s: %s", tag, round+1, c.name, figures)
			t.add(c.name, figures)
		}
	}
	return nil
}

// erofsSnapshotter is containerd's configuration for it.
const erofsSnapshotter = `[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'erofs'
[plugins.'io.containerd.service.v1.diff-service']
  default = ['erofs', 'walking']
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux'
  snapshotter = 'erofs'
  differ = 'erofs'
`

// pull measures one pull into an empty file system, and the removal of the
// image when nothing of it is cached any more.
func (b *bench) pull(ctx context.Context, c contestant, ref string) (f figures, err error) {
	d, err := disk.Make(filepath.Join(b.work, "disk"), filepath.Join(b.work, "mounted"), diskBytes)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	r, err := c.start(d.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()

	before, err := measure(d, c, r)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if _, err := r.Pull(ctx, ref); err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	took := time.Since(begin).Seconds()
	// Not after the measuring, which takes a while: what a daemon does later is not part of the pull.
	spent := testkit.CPUOf(c.processes).Seconds()
	after, err := measure(d, c, r)
	if err != nil {
		return nil, err
	}
	f = figures{wall: took, cpu: spent - before[cpu], memory: after[memory]}
	for _, name := range []string{written, device, used} {
		f[name] = after[name] - before[name]
	}
	if err := r.stop(); err != nil {
		return nil, err
	}
	r.stop = func() error { return nil }
	if err := d.Cold(); err != nil {
		return nil, err
	}
	again, err := c.start(d.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, again.stop()) }()
	f[removal], err = remove(ctx, again, d, ref, before[used]+0.02*f[used]+8)
	return f, err
}

// measure returns what has come together up to now.
func measure(d *disk.Disk, c contestant, r *running) (figures, error) {
	if err := d.Sync(); err != nil {
		return nil, err
	}
	onDisk, err := d.Used()
	if err != nil {
		return nil, err
	}
	toDevice, err := d.Written()
	if err != nil {
		return nil, err
	}
	byDaemon, err := field(r.pid, "io", "write_bytes:")
	if err != nil {
		return nil, err
	}
	peak, err := field(r.pid, "status", "VmHWM:") // in KiB
	return figures{
		cpu: testkit.CPUOf(c.processes).Seconds(), written: mb(byDaemon), device: mb(toDevice), used: mb(onDisk), memory: mb(peak << 10),
	}, err
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

// field reads a number from a file of /proc/PID.
func field(pid int, file, name string) (n int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			_, err := fmt.Sscan(rest, &n)
			return n, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/%s has no %s", pid, file, name)
}

// remove removes an image and waits until no more than free megabytes are used.
func remove(ctx context.Context, r *running, d *disk.Disk, ref string, free float64) (seconds float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	begin := time.Now()
	if _, err := r.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		return 0, fmt.Errorf("remove the image: %w", err)
	}
	for {
		now, err := d.Used()
		if err != nil {
			return 0, err
		}
		if mb(now) <= free {
			return time.Since(begin).Seconds(), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%.0f MB are still used, want at most %.0f: %w", mb(now), free, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}
