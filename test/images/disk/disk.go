// Package disk makes file systems of their own, in sparse files behind loop
// devices, whose space, writes and caches are nobody else's.
package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Disk is an ext4 file system in a file, mounted at Dir. Its loop device
// passes by the page cache: what is read after Cold comes from the file.
type Disk struct {
	Dir    string
	file   string
	device *os.File // open, else the loop device goes with the last mount
}

// Make makes a disk of bytes in a new file, and mounts it at dir.
func Make(file, dir string, bytes int64) (*Disk, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, err
	}
	// Nothing is left for the kernel to initialize later: it would be counted.
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", file).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return Open(file, dir)
}

// Open mounts a disk image at dir, which it makes.
func Open(file, dir string) (*Disk, error) {
	return open(file, dir, unix.LO_FLAGS_AUTOCLEAR|unix.LO_FLAGS_DIRECT_IO)
}

// OpenSerial is Open, but the file sees one request at a time, which not every
// file's server can do without.
func OpenSerial(file, dir string) (*Disk, error) { return open(file, dir, unix.LO_FLAGS_AUTOCLEAR) }

func open(file, dir string, flags uint32) (*Disk, error) {
	d := &Disk{Dir: dir, file: file}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := d.attach(flags); err != nil {
		return nil, err
	}
	if err := d.mount(); err != nil {
		return nil, errors.Join(err, d.device.Close())
	}
	return d, nil
}

// attach finds a free loop device for the file. The device goes by itself with
// its last user.
func (d *Disk) attach(flags uint32) error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	backing, err := os.OpenFile(d.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer backing.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Flags = flags
	for range 50 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			d.device = device
			return nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) { // busy: somebody was quicker
			return fmt.Errorf("attach %s: %w", d.file, err)
		}
	}
	return errors.New("no loop device stays free")
}

func (d *Disk) mount() error {
	if err := unix.Mount(d.device.Name(), d.Dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", d.file, err)
	}
	return os.Chmod(d.Dir, 0o755)
}

// unmount waits a while for those who are about to let go.
func (d *Disk) unmount() error {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = unix.Unmount(d.Dir, 0); err == nil || errors.Is(err, unix.EINVAL) {
			return nil
		}
	}
	return fmt.Errorf("unmount %s: %w", d.Dir, err)
}

// Cold unmounts it and mounts it again: nothing of it is cached then.
func (d *Disk) Cold() error {
	if err := d.unmount(); err != nil {
		return err
	}
	return d.mount()
}

// Sync writes everything to the file.
func (d *Disk) Sync() error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Used returns how many bytes of the file system are not free.
func (d *Disk) Used() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize, nil
}

// Written returns how many bytes were written to the device.
func (d *Disk) Written() (int64, error) {
	sectors, err := d.count(6)
	return sectors * 512, err
}

// Reads returns how many requests to read the device got.
func (d *Disk) Reads() (int64, error) { return d.count(0) }

// count returns one of the device's counters.
//
// kernel: Documentation/block/stat.rst; "read I/Os" is the first, "write sectors" the seventh.
func (d *Disk) count(field int) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.device.Name()), "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if len(fields) <= field {
		return 0, fmt.Errorf("short statistics of %s", d.device.Name())
	}
	return strconv.ParseInt(fields[field], 10, 64)
}

// Device returns the loop device's file.
func (d *Disk) Device() string { return d.device.Name() }

// Close unmounts it, lets go of the loop device, and removes the file.
func (d *Disk) Close() error { return errors.Join(d.Detach(), os.Remove(d.file)) }

// Detach is Close, but the file stays.
func (d *Disk) Detach() error {
	err := d.unmount()
	if err != nil {
		err = errors.Join(err, unix.Unmount(d.Dir, unix.MNT_DETACH))
	}
	return errors.Join(err, d.device.Close())
}
