package trial

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/disk"
	"github.com/davit-runtime/davit/test/trial/load"
)

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
			present[ref] = event == load.Pulled
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

// mark reads what package load wrote behind the file system.
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
	for _, w := range slices.DeleteFunc(slices.Clone(writes), func(w loggedWrite) bool { return len(w.data) == 0 }) {
		if _, err := f.WriteAt(w.data, int64(w.sector*sectorSize)); err != nil {
			return err
		}
	}
	return f.Sync() // who attaches it to a loop device passes by the page cache
}

// judge cuts the power after write n. What is pending is on the disk, or was
// in its cache and is lost, in part or wholly.
func (c *cutter) judge(ctx context.Context, n int, pending []loggedWrite, sectorSize uint64, present map[string]bool) {
	c.t.Helper()
	file := filepath.Join(c.dir, fmt.Sprint("cut", c.done))
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
	withDaemon(c.t, d.Dir, c.config, func(daemon *testkit.Daemon, client *testkit.Client) {
		judge(&world{t: c.t, d: daemon, c: client, samples: c.samples})
	})
}
