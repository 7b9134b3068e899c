package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/store"
)

// dirs keeps each layer as a directory of files: <root>/<id>/fs, the id with
// "-" for ":". Whiteouts are in it as overlayfs wants them: character devices
// 0:0, and trusted.overlay.opaque on directories. Beside it info.json has the
// layer's Info, and recipe what makes its tar stream again.
type dirs struct {
	root    string
	staging string
	trash   *Trash
	limit   int64
	fd      *os.File // of root, on which the kernel reports what it could not write

	mu    sync.Mutex
	lost  int            // how often sync had such an error
	since map[string]int // lost when unpack of a layer began, until sync
}

// openDirs opens the store in root. What was being unpacked when the last
// process ended goes to the trash, which must be on the same file system.
func openDirs(root string, trash *Trash, limit int64) (*dirs, error) {
	d := &dirs{root: root, staging: filepath.Join(root, "staging"), trash: trash, limit: limit, since: map[string]int{}}
	if err := os.MkdirAll(d.staging, 0o700); err != nil {
		return nil, classify(err)
	}
	err := d.discard(d.staging, func(string) bool { return true })
	if err == nil {
		err = d.discard(root, func(name string) bool { return strings.HasPrefix(name, ".probe-") })
	}
	if err == nil {
		d.fd, err = os.Open(root)
	}
	return d, err
}

// discard puts those entries of dir into the trash that f says.
func (d *dirs) discard(dir string, f func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if f(e.Name()) {
			if err := d.trash.Put(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *dirs) close() error { return d.fd.Close() }

func (d *dirs) dir(id string) string { return filepath.Join(d.root, nameOf(id)) }

func (d *dirs) has(id string) bool {
	_, err := d.lower(id)
	return err == nil
}

// lower returns the directory to stack. NotFound if there is none.
func (d *dirs) lower(id string) (string, error) {
	path := filepath.Join(d.dir(id), "fs")
	if _, err := os.Lstat(path); err != nil {
		return "", fault.New(fault.NotFound, "layer", "layer %s: %w", id, err)
	}
	return path, nil
}

// infoVersion is that of info.json.
const infoVersion = 1

// A dirInfo is what a directory tells of itself.
type dirInfo struct {
	Info
	Boot string // when it was made: without Sync it outlives no power cut
}

func (d *dirs) infoFile(dir string) string { return filepath.Join(dir, "info.json") }

// inspect implements Store.Inspect.
func (d *dirs) inspect(id string) (*Info, error) {
	if _, err := d.lower(id); err != nil {
		return nil, err
	}
	var info dirInfo
	if err := store.LoadJSON(d.infoFile(d.dir(id)), infoVersion, &info); err != nil {
		return nil, nil //nolint:nilerr // it is of no use as it is
	}
	return &info.Info, nil
}

// settled reports whether a layer that is there was made since the machine was
// started, so that it is whole, if perhaps not on the disk.
func (d *dirs) settled(id string) bool {
	var info dirInfo
	boot, err := store.BootID()
	return err == nil && store.LoadJSON(d.infoFile(d.dir(id)), infoVersion, &info) == nil && info.Boot == boot
}

func (d *dirs) unpack(ctx context.Context, id string, stream io.Reader) (Info, error) {
	return d.build(id, func(fs string) ([]string, error) {
		t, err := openTree(fs)
		if err != nil {
			return nil, err
		}
		defer t.close()
		script := newScript(stream, d.staging)
		defer script.recipe.close()
		u := unpacker{tree: t, limit: d.limit, script: script}
		if err := u.run(ctx, script); err != nil {
			return nil, err
		}
		return t.implicitDirs(), script.save(filepath.Join(filepath.Dir(fs), scriptFile))
	})
}

// build lets fill make a layer's content and puts it in its place.
func (d *dirs) build(id string, fill func(fs string) (implicit []string, err error)) (Info, error) {
	d.mu.Lock()
	d.since[id] = d.lost
	d.mu.Unlock()
	stage, err := os.MkdirTemp(d.staging, "")
	if err != nil {
		return Info{}, classify(err)
	}
	info, err := d.fill(id, stage, fill)
	if err != nil {
		return Info{}, errors.Join(classify(err), d.trash.Put(stage))
	}
	return info, nil
}

func (d *dirs) fill(id, stage string, fill func(string) ([]string, error)) (info Info, err error) {
	content := filepath.Join(stage, "fs")
	if err := os.Mkdir(content, 0o755); err != nil {
		return Info{}, err
	}
	if err := os.Chmod(content, 0o755); err != nil { // whatever the umask
		return Info{}, err
	}
	if info.Implicit, err = fill(content); err != nil {
		return Info{}, err
	}
	if info.Bytes, info.Inodes, err = measure(stage); err != nil {
		return Info{}, err
	}
	boot, err := store.BootID()
	if err != nil {
		return Info{}, err
	}
	if err := store.SaveJSON(d.infoFile(stage), infoVersion, dirInfo{info, boot}); err != nil {
		return Info{}, err
	}
	err = unix.Rename(stage, d.dir(id))
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		if d.settled(id) {
			return info, d.trash.Put(stage) // there already; of the same digest, so of the same content
		}
		// A power cut may have left it, with empty files; who had it mounted is gone.
		if err := d.trash.Put(d.dir(id)); err != nil {
			return Info{}, err
		}
		err = unix.Rename(stage, d.dir(id))
	}
	if err != nil {
		return Info{}, fmt.Errorf("rename layer %s into place: %w", id, err)
	}
	return info, nil
}

// sync makes layers durable. It waits for other dirty data of the file system,
// too: the price of a layer being many files. After an error the layers must
// be removed: the kernel reports data that it lost only once, to whoever asks
// first, which is why all layers of that time count as damaged.
func (d *dirs) sync(ids []string) error {
	err := unix.Syncfs(int(d.fd.Fd()))
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.lost++
		return classify(fmt.Errorf("write image layers to the disk: %w", err))
	}
	for _, id := range ids {
		if since, ok := d.since[id]; ok && since != d.lost {
			return fmt.Errorf("write image layers to the disk: some of it was lost while layer %s was written", id)
		}
	}
	for _, id := range ids {
		delete(d.since, id)
	}
	return nil
}

// remove takes a layer out of the store at once; its files go later. It
// succeeds if there is none.
func (d *dirs) remove(id string) error {
	d.mu.Lock()
	delete(d.since, id)
	d.mu.Unlock()
	return d.trash.Put(d.dir(id))
}

// measure returns what a tree takes on disk.
func measure(root string) (bytes, inodes uint64, err error) {
	linked := map[uint64]bool{}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no inode", path)
		}
		if st.Nlink > 1 && !info.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		inodes++
		bytes += uint64(st.Blocks) * 512
		return nil
	})
	return bytes, inodes, err
}

// A dirLooker looks things up in a directory.
type dirLooker struct{ root string }

func (l dirLooker) look(name string) (kindOfFile, attributes, error) {
	path := filepath.Join(l.root, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
		return absent, attributes{}, nil
	} else if err != nil {
		return absent, attributes{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return other, attributes{}, nil
	}
	all, err := xattrs(path)
	return directory, attributes{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, time: time.Unix(st.Mtim.Unix()), xattrs: all}, err
}

// xattrs returns a file's extended attributes.
func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		all[name] = string(value[:n])
	}
	return all, nil
}
