package trial

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/disk"
	"github.com/davit-runtime/davit/test/images/layout"
)

// The machine's disk: a file system, and behind it the marks.
const (
	fileSystemBytes = 320 << 20
	markBytes       = 32 << 20
)

// TestPowerCuts: davitd pulls and removes images in a virtual machine, and the
// power fails at random writes to its disk. Of the writes that the disk had
// not been told to write out, some or all may be lost. Whatever davitd lists
// when it starts on that disk is whole, what PullImage had answered is there,
// the pulls are repeated and succeed, and in the end nothing is left.
func TestPowerCuts(t *testing.T) {
	kernel := os.Getenv("DAVIT_TRIAL_KERNEL")
	if kernel == "" {
		t.Skip("needs a kernel for a virtual machine: make trial-power")
	}
	testkit.Root(t)
	testkit.Leftovers(t)
	seed, cuts, pulls := seed(t), setting(t, "DAVIT_TRIAL_CUTS", 50), setting(t, "DAVIT_TRIAL_PULLS", 40)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	images, work := layout.Dir(t.TempDir()), t.TempDir()
	made := samples(t, images, 2)
	registry, err := layout.Serve(images, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(registry.Close)
	var refs []string
	for _, s := range made {
		refs = append(refs, s.ref())
	}
	_, port, _ := strings.Cut(registry.Host, ":")
	m := &machine{kernel: kernel, dir: work, disk: filepath.Join(work, "disk"), log: filepath.Join(work, "log"), variables: map[string]string{
		"TRIAL_REFS": strings.Join(refs, ","), "TRIAL_PULLS": fmt.Sprint(pulls), "TRIAL_SEED": fmt.Sprint(seed), "TRIAL_MARKS": fmt.Sprint(fileSystemBytes),
	}}
	base := filepath.Join(work, "base")
	makeDisk(t, base)
	copyFile(t, base, m.disk)
	if err := os.WriteFile(m.log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.makeInitrd(configuration("http://10.0.2.2:" + port)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := m.run(ctx, t); err != nil {
		t.Fatal(err)
	}
	t.Logf("the machine ran for %.0f s", time.Since(start).Seconds())
	c := &cutter{t: t, dir: work, base: base, samples: made, config: configuration("http://" + registry.Host), random: rand.New(rand.NewPCG(seed, 3))}
	c.baseline(ctx)
	c.cut(ctx, m.log, cuts)
	t.Logf("figure: %d cuts among %d writes, %d of them with writes lost; %d pulls had been answered, %d images were there; %d images compared",
		c.done, c.writes, c.lossy, c.answered, c.whole, c.compared)
}

func makeDisk(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(fileSystemBytes+markBytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", file, fmt.Sprint(fileSystemBytes/4096)).CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// A cutter judges disks as they were at moments of a log.
type cutter struct {
	t       *testing.T
	dir     string
	base    string // the disk as it was at the flush last passed
	samples []sample
	config  string
	random  *rand.Rand
	clean   inventory

	done, writes, lossy, answered, whole, compared int
}

// A logged write is one entry of the log.
type loggedWrite struct {
	sector, sectors, flags uint64
	data                   []byte
}

// kernel: drivers/md/dm-log-writes.c
const (
	logMagic   = 0x6a736677736872
	logFlush   = 1 << 0
	logDiscard = 1 << 2
)

// A logReader reads what QEMU's blklogwrites wrote.
type logReader struct {
	file       *os.File
	sectorSize uint64
	left       uint64 // entries
}

func openLog(file string) (*logReader, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	var super struct {
		Magic, Version, Entries uint64
		SectorSize              uint32
	}
	if err := binary.Read(f, binary.LittleEndian, &super); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if super.Magic != logMagic || super.SectorSize == 0 {
		return nil, errors.Join(fmt.Errorf("%s is not a log of writes: %x", file, super), f.Close())
	}
	_, err = f.Seek(int64(super.SectorSize), io.SeekStart)
	return &logReader{f, uint64(super.SectorSize), super.Entries}, err
}

// next returns the next entry, or io.EOF.
func (r *logReader) next() (w loggedWrite, err error) {
	if r.left == 0 {
		return w, io.EOF
	}
	r.left--
	header := make([]byte, r.sectorSize)
	if _, err := io.ReadFull(r.file, header); err != nil {
		return w, err
	}
	w.sector, w.sectors, w.flags = binary.LittleEndian.Uint64(header), binary.LittleEndian.Uint64(header[8:]), binary.LittleEndian.Uint64(header[16:])
	if w.flags&logDiscard != 0 {
		return w, nil
	}
	w.data = make([]byte, w.sectors*r.sectorSize)
	_, err = io.ReadFull(r.file, w.data)
	return w, err
}

// cut goes through the log and judges the disk at randomly chosen writes.
func (c *cutter) cut(ctx context.Context, log string, cuts int) {
	c.t.Helper()
	writes, err := count(log)
	if err != nil {
		c.t.Fatal(err)
	}
	c.writes = writes
	var chosen []int
	for range cuts {
		chosen = append(chosen, c.random.IntN(writes))
	}
	slices.Sort(chosen)
	r, err := openLog(log)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.file.Close()
	present := map[string]bool{} // what a pull was answered for, and nobody wanted removed yet
	var pending []loggedWrite    // since the last flush
	for n := 0; len(chosen) > 0; n++ {
		w, err := r.next()
		if err != nil {
			c.t.Fatalf("entry %d of the log: %v", n, err)
		}
		pending = append(pending, w)
		if event, ref, ok := mark(w, r.sectorSize); ok {
			present[ref] = event == "pulled"
		}
		if w.flags&logFlush != 0 {
			if err := apply(c.base, pending, r.sectorSize); err != nil {
				c.t.Fatal(err)
			}
			pending = nil
		}
		for len(chosen) > 0 && chosen[0] == n {
			chosen = chosen[1:]
			c.judge(ctx, n, pending, r.sectorSize, present)
		}
	}
}

func count(log string) (int, error) {
	r, err := openLog(log)
	if err != nil {
		return 0, err
	}
	defer r.file.Close()
	return int(r.left), nil
}

// mark reads what program guest wrote behind the file system.
func mark(w loggedWrite, sectorSize uint64) (event, ref string, ok bool) {
	if w.sector*sectorSize < fileSystemBytes || len(w.data) == 0 {
		return "", "", false
	}
	text, _, _ := strings.Cut(string(w.data), "\x00")
	return strings.Cut(text, " ")
}

func apply(file string, writes []loggedWrite, sectorSize uint64) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, w := range writes {
		if _, err := f.WriteAt(w.data, int64(w.sector*sectorSize)); err != nil {
			return err
		}
	}
	return nil
}

// judge cuts the power after write n. What is pending is on the disk, or was
// in its cache and is lost, in part or wholly.
func (c *cutter) judge(ctx context.Context, n int, pending []loggedWrite, sectorSize uint64, present map[string]bool) {
	c.t.Helper()
	file := filepath.Join(c.dir, "cut")
	copyFile(c.t, c.base, file)
	if c.done%3 != 0 && len(pending) > 0 {
		c.lossy++
		share := []float64{0.5, 1}[c.done%3-1]
		pending = slices.DeleteFunc(slices.Clone(pending), func(loggedWrite) bool { return c.random.Float64() < share })
	}
	if err := apply(file, pending, sectorSize); err != nil {
		c.t.Fatal(err)
	}
	c.with(file, func(w *world) {
		listed := w.check(ctx)
		c.whole += len(listed)
		for _, s := range c.samples {
			if !present[s.ref()] {
				continue
			}
			c.answered++
			if !slices.ContainsFunc(listed, func(l sample) bool { return l.id == s.id }) {
				c.t.Errorf("the pull of %s was answered, and it is not there", s.tag)
			}
		}
		w.pullAll(ctx)
		if len(w.check(ctx)) != len(c.samples) {
			c.t.Error("images are missing after a repeated pull")
		}
		w.removeImages(ctx)
		w.mustBe(c.clean)
		c.compared += w.checked
	})
	c.done++
	if c.t.Failed() {
		c.t.Fatalf("at write %d of %d, cut %d", n, c.writes, c.done)
	}
}

// baseline notes what davitd leaves on a disk that nothing happened to.
func (c *cutter) baseline(ctx context.Context) {
	c.t.Helper()
	file := filepath.Join(c.dir, "cut")
	copyFile(c.t, c.base, file)
	c.with(file, func(w *world) {
		w.pullAll(ctx)
		if len(w.check(ctx)) != len(c.samples) {
			c.t.Fatal("images are missing")
		}
		w.removeImages(ctx)
		c.clean = w.settled()
	})
}

// with runs davitd on a disk, which it removes.
func (c *cutter) with(file string, judge func(*world)) {
	c.t.Helper()
	d, err := disk.Open(file, filepath.Join(c.dir, "mounted"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			c.t.Error(err)
		}
	}()
	daemon, err := testkit.StartDaemon(d.Dir, c.config)
	if err != nil {
		c.t.Error(err)
	}
	if daemon == nil {
		return
	}
	defer func() {
		if c.t.Failed() {
			c.t.Logf("davitd's log:\n%s", daemon.Log())
		}
		if err := daemon.Close(); err != nil {
			c.t.Error(err)
		}
	}()
	if err != nil {
		return
	}
	client, err := testkit.Dial("unix://" + daemon.Socket)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer client.Close()
	judge(&world{t: c.t, d: daemon, c: client, samples: c.samples})
}
