// Package store keeps small files that survive: replaced whole, versioned,
// guarded by one lock for each directory.
//
// It never leaves a half-written file under its final name.
package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// WriteFile replaces path with data, all or nothing as far as other processes
// and a killed writer go. It does not fsync: after a power cut the file may be
// old, empty or missing.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return write(path, data, perm, false)
}

// WriteFileDurable is WriteFile that also outlives a power cut: the file and
// its directory are fsynced before it returns.
func WriteFileDurable(path string, data []byte, perm fs.FileMode) error {
	return write(path, data, perm, true)
}

func write(path string, data []byte, perm fs.FileMode, durable bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return classify(err, path)
	}
	defer func() {
		if err != nil {
			err = errors.Join(classify(err, path), f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if durable {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = replace(f.Name(), path, durable); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return classify(err, path)
	}
	if durable {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// replace renames from to path. ext4 writes a file out when it is renamed over
// another (auto_da_alloc), which costs more than all else here; exchanging the
// two and deleting the old one spares that where nothing need be durable.
func replace(from, path string, durable bool) error {
	if !durable && unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE) == nil {
		return os.Remove(from)
	}
	return os.Rename(from, path)
}

// unfinished is how write calls a file before it has its name.
var unfinished = regexp.MustCompile(`^\..+\.[0-9]+$`)

// Sweep deletes what writers left that were killed, in the directories that
// patterns match (path/filepath.Match). Nobody may be writing there.
func Sweep(patterns ...string) error {
	var errs []error
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(pattern, ".*"))
		errs = append(errs, err)
		for _, path := range paths {
			if unfinished.MatchString(filepath.Base(path)) {
				errs = append(errs, os.Remove(path))
			}
		}
	}
	return errors.Join(errs...)
}

// BootID returns what the kernel calls this boot, by which it is known whether
// the machine was off since a file was written. kernel: proc_sys_kernel(5),
// random/boot_id.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// SyncDir fsyncs a directory, so that renames in it outlive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readable is up to what size, in bytes, a file's data is laid out in lines.
const readable = 64 << 10

type envelope struct {
	Version int    `json:"version"` // stands first
	Sum     string `json:"sum"`     // of what follows before, up to the last brace; empty: not said
	Data    any    `json:"data"`    // stands last
}

// before is what stands before an envelope's data.
const before = `"data": `

// sum is a CRC-32C: it finds what a disk has lost or turned, not forgery.
func sum(data []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// SaveJSON writes v with a format version and a checksum around it, by WriteFile.
func SaveJSON(path string, version int, v any) error {
	return saveJSON(path, version, v, false)
}

// SaveJSONDurable is SaveJSON by WriteFileDurable.
func SaveJSONDurable(path string, version int, v any) error {
	return saveJSON(path, version, v, true)
}

func saveJSON(path string, version int, v any, durable bool) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	// For people to read, as long as they could: it takes twice the time.
	if len(data) <= readable {
		var lines bytes.Buffer
		if err := json.Indent(&lines, data, "", " "); err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		data = lines.Bytes()
	}
	head := fmt.Sprintf(`{"version": %d, "sum": %q, %s`, version, sum(data), before)
	return write(path, slices.Concat([]byte(head), data, []byte("}\n")), 0o600, durable)
}

// LoadJSON reads what SaveJSON wrote. It returns NotFound if the file does not
// exist, and Invalid if it is damaged or of a version other than the one given.
// One without a checksum is as good as its JSON. What v is after an error is
// not said.
func LoadJSON(path string, version int, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "store.LoadJSON", "%w", err)
	}
	if err != nil {
		return err
	}
	e := envelope{Data: v}
	damaged := json.Unmarshal(data, &e) // what is of another version may look damaged
	if e.Version != version && (damaged == nil || e.Version != 0) {
		return fault.New(fault.Invalid, "store.LoadJSON", "%s has format version %d, this program reads %d", path, e.Version, version)
	}
	if damaged == nil && e.Sum != "" {
		_, rest, _ := bytes.Cut(data, []byte(before))
		if got := sum(bytes.TrimSuffix(rest, []byte("}\n"))); got != e.Sum {
			damaged = fmt.Errorf("its checksum is %s, not %s", got, e.Sum)
		}
	}
	if damaged != nil {
		return fault.New(fault.Invalid, "store.LoadJSON", "%s is damaged: %w", path, damaged)
	}
	return nil
}

// SetAside moves what cannot be read out of the way, for somebody to look at,
// and makes the directory that it goes into. What was there goes.
func SetAside(path, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return classify(err, to)
	}
	return os.Rename(path, to)
}

// classify marks a full disk as such.
func classify(err error, path string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Exhausted, "store", "no space left for %s: %w", path, err)
	}
	return err
}

// A Lock is held on a directory until Release or the end of the process.
type Lock struct{ f *os.File }

// LockDir takes the one lock of a directory by flock on its file "lock", and
// never waits: it returns Precondition if another process has it.
func LockDir(dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.New(fault.Precondition, "store.LockDir", "%s is in use by another process: %w", dir, err)
	}
	return &Lock{f}, nil
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.f.Close() }
