package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/mount"
)

// A Kind is how layers are kept.
type Kind string

// The kinds. Auto is EROFS where the kernel can mount it, else Directories.
const (
	Auto        Kind = "auto"
	EROFS       Kind = "erofs"
	Directories Kind = "directories"
)

// Kinds lists them.
var Kinds = []Kind{Auto, EROFS, Directories}

// A Config is what Open needs.
type Config struct {
	Root  string // of the layers
	State string // gone after a reboot: where EROFS files are mounted
	Kind  Kind   // of new layers; empty is Auto
	Limit int64  // bytes of files in one layer; Exhausted above it
	Trash *Trash // on Root's file system; its owner's to close
	Log   *slog.Logger
}

// A Store keeps layers, each in one of two kinds: those that are there stay as
// they are when the kind of new ones changes.
//
// Safe for concurrent use, but not for one ID at a time by several callers
// that make or remove it.
type Store struct {
	kind  Kind   // of new layers: EROFS or Directories
	why   string // for people
	files *files
	dirs  *dirs
	limit int64
}

// Open opens the store and finds out how this kernel mounts EROFS files that
// lie there. What was being made when the last process ended goes. With Kind
// EROFS it returns Precondition where they cannot be mounted.
func Open(c Config) (*Store, error) {
	d, err := openDirs(c.Root, c.Trash, c.Limit)
	if err != nil {
		return nil, err
	}
	f := &files{root: c.Root, staging: d.staging, mounts: c.State, limit: c.Limit, points: map[string]*point{}}
	s := &Store{kind: c.Kind, files: f, dirs: d, limit: c.Limit}
	if err := os.MkdirAll(c.State, 0o700); err != nil { // it shows programs that anybody might run
		return nil, errors.Join(err, d.close())
	}
	var why error
	if f.way, why = probe(c.Root, c.State); f.way == mount.None && c.Kind == EROFS {
		return nil, errors.Join(fault.New(fault.Precondition, "layer.Open", "layers cannot be kept as EROFS files: %w", why), d.close())
	}
	switch {
	case c.Kind != "" && c.Kind != Auto:
		s.why = "as it is configured"
	case f.way == mount.None:
		s.kind, s.why = Directories, "since EROFS files cannot be mounted: "+strings.ReplaceAll(fmt.Sprint(why), "\n", "; ")
		c.Log.Warn("image layers are kept as directories, since EROFS files cannot be mounted", "reason", why)
	default:
		s.kind = EROFS
		if why != nil {
			s.why = "since the other way fails: " + strings.ReplaceAll(fmt.Sprint(why), "\n", "; ")
		}
	}
	if err := f.adopt(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return s, nil
}

// Kind returns how new layers are kept: EROFS or Directories.
func (s *Store) Kind() Kind { return s.kind }

// Describe tells users how new layers are kept, and why so if it is not the
// usual way.
func (s *Store) Describe() string {
	text := "directories"
	if s.kind == EROFS {
		text = "EROFS files, mounted " + s.files.way.String()
	}
	if s.why != "" {
		text += ", " + s.why
	}
	return text
}

// IDs lists the layers that are there, whole or not.
func (s *Store) IDs() ([]string, error) { return IDs(s.dirs.root) }

// IDs lists the layers in the root of a store, in order.
func IDs(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, e := range entries {
		if id, ok := idOf(e.Name()); ok && (len(ids) == 0 || ids[len(ids)-1] != id) {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// suffix ends the names of files.
const suffix = ".erofs"

// idOf returns the ID of the layer that an entry of root is.
func idOf(name string) (string, bool) {
	kind, rest, ok := strings.Cut(strings.TrimSuffix(name, suffix), "-")
	return kind + ":" + rest, ok && !strings.HasPrefix(name, ".")
}

// nameOf is what a layer's file and directory are called.
func nameOf(id string) string { return strings.Replace(id, ":", "-", 1) }

// Retain removes all layers of which known returns false, and what is there
// twice.
func (s *Store) Retain(known func(id string) bool) error {
	ids, err := s.IDs()
	for _, id := range ids {
		switch {
		case err != nil:
			return err
		case !known(id):
			err = s.Remove(id)
		case s.isFile(id) && s.dirs.has(id):
			err = s.dirs.remove(id)
		}
	}
	return err
}

// isFile reports whether a layer is kept as a file. It may be both while files
// cannot be mounted: then the directory counts.
func (s *Store) isFile(id string) bool {
	return s.files.has(id) && (s.files.way != mount.None || !s.dirs.has(id))
}

// Unpack makes layer id of a tar stream, which is what blob holds. It reads
// stream to its end; an error of stream, also where io.EOF is due, undoes
// everything, so that a stream can be one that verifies itself.
func (s *Store) Unpack(ctx context.Context, id string, blob Blob, stream io.Reader) (Info, error) {
	if s.kind == EROFS {
		return s.files.unpack(ctx, id, blob, stream)
	}
	return s.dirs.unpack(ctx, id, stream)
}

// Adopt makes layer id of a stream that is an EROFS image. Otherwise it is
// as Unpack. It returns Unimplemented where such images cannot be mounted.
func (s *Store) Adopt(ctx context.Context, id string, blob Blob, stream io.Reader) (Info, error) {
	return s.files.adoptImage(ctx, id, blob, stream)
}

// Adopts reports whether EROFS images can be mounted here, as far as their
// features do not matter.
func (s *Store) Adopts() bool { return s.files.way != mount.None }

// Mend makes layer id, to go on top of stack (topmost first), if directories in
// stack hide the attributes of those below them. It returns false, and makes
// nothing, if there are none.
func (s *Store) Mend(ctx context.Context, id string, stack []Part) (Info, bool, error) {
	all := make(stacked, 0, len(stack))
	for _, part := range stack {
		l, done, err := s.open(part.ID)
		if err != nil {
			return Info{}, false, err
		}
		defer done()
		p := stackedPart{looker: l, implicit: map[string]bool{}}
		for _, name := range part.Implicit {
			p.implicit[name] = true
		}
		all = append(all, p)
	}
	mends, err := all.mends(ctx)
	if err != nil || len(mends) == 0 {
		return Info{}, false, err
	}
	stream, err := mendingTar(mends)
	if err != nil {
		return Info{}, false, err
	}
	info, err := s.Unpack(ctx, id, Blob{}, bytes.NewReader(stream))
	return info, err == nil, err
}

// open opens a layer to look things up in it.
func (s *Store) open(id string) (l looker, done func(), err error) {
	if s.isFile(id) {
		return s.files.open(id)
	}
	path, err := s.dirs.lower(id)
	return dirLooker{path}, func() {}, err
}

// Sync makes layers durable. After an error the layers must be removed: the
// kernel reports data that it lost only once, to whoever asks first.
func (s *Store) Sync(ids []string) error {
	var dirs []string
	for _, id := range ids {
		if !s.isFile(id) {
			dirs = append(dirs, id)
		}
	}
	if len(dirs) > 0 {
		return s.dirs.sync(dirs) // of the whole file system
	}
	// The files are on the disk already; their names may not be.
	if err := s.dirs.fd.Sync(); err != nil {
		return classify(err)
	}
	return nil
}

// Use returns a layer's directory, to be stacked; if it is a file it is mounted
// there. The directory stays until done is called, and afterwards as Sweep
// says; what is stacked by then does not need it any more.
//
// NotFound if there is no such layer, Unknown if it is damaged.
func (s *Store) Use(id string) (dir string, done func(), err error) {
	if s.isFile(id) {
		return s.files.use(id)
	}
	path, err := s.dirs.lower(id)
	return path, func() {}, err
}

// Inspect looks whether a layer is there and, as far as can be found out
// quickly, whole. It returns what Unpack said of it; nil if that was not
// written down, as it was not always for directories.
//
// NotFound if there is no such layer, Unknown if it is damaged, Precondition
// if this kernel cannot mount it.
func (s *Store) Inspect(id string) (*Info, error) {
	if s.isFile(id) {
		if s.files.way == mount.None {
			return nil, fault.New(fault.Precondition, "layer", "layer %s is an EROFS file, which cannot be mounted here", id)
		}
		return s.files.mountable(id)
	}
	return s.dirs.inspect(id)
}

// Verify reads a layer from the disk and compares it with what was written. It
// calls pace with how many bytes it has read, before it reads on. Of
// directories it can only tell that they are there.
//
// NotFound and Unknown as for Inspect.
func (s *Store) Verify(ctx context.Context, id string, pace func(ctx context.Context, n int) error) error {
	if s.isFile(id) {
		return s.files.verify(ctx, id, pace)
	}
	_, err := s.dirs.inspect(id)
	return err
}

// Stream writes the stream that a layer was made of: the one that its ID is
// the digest of. native tells that it is an EROFS image and no tar stream.
//
// It returns Unimplemented for a layer that was made a directory by a davit
// that did not write down how to.
func (s *Store) Stream(ctx context.Context, id string, w io.Writer) (native bool, err error) {
	if s.isFile(id) {
		return s.files.stream(ctx, id, w)
	}
	return false, s.dirs.stream(ctx, id, w)
}

// Remove takes a layer out of the store at once; a directory's files go later.
// Whatever uses it goes on. It succeeds if there is none.
func (s *Store) Remove(id string) error {
	return errors.Join(s.files.remove(id), s.dirs.remove(id))
}

// Sweep unmounts layers that nobody has used for a while, save those of which
// keep returns true.
func (s *Store) Sweep(idle time.Duration, keep func(id string) bool) error {
	return s.files.sweep(idle, keep)
}

// Close lets go of the directory. Mounts stay. The trash is its owner's to close.
func (s *Store) Close() error { return s.dirs.close() }

// classify gives an unclassified error its kind.
func classify(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Exhausted, "", "no space left for image layers: %w", err)
	}
	return err
}

// SizeOnDisk returns what the layers take on disk in all, and in how many
// files, counted now.
func (s *Store) SizeOnDisk() (bytes, inodes uint64, err error) {
	return measure(filepath.Clean(s.dirs.root))
}
