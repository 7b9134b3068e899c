package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/store"
)

var (
	imagesBucket = []byte("images")
	layersBucket = []byte("layers")
)

// A database is content on disk, and copies of what it says of images. One
// process at a time has it.
type database struct {
	bolt   *bbolt.DB
	copies copies
	fresh  bool // it did not exist before
}

// openDatabase opens a database and reads it whole. One that is damaged is
// moved aside, and a fresh one takes its place.
func openDatabase(path, damaged string, log *slog.Logger) (*database, content, error) {
	d, c, err := openOrReplace(path, damaged, log)
	if err != nil {
		return nil, content{}, err
	}
	d.copies = copies{filepath.Join(filepath.Dir(path), "records")}
	return d, c, classify(os.MkdirAll(d.copies.dir, 0o700))
}

func openOrReplace(path, damaged string, log *slog.Logger) (*database, content, error) {
	aside := filepath.Join(damaged, filepath.Base(path))
	if info, err := os.Lstat(path); (errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0) && hasLayers(path) {
		noted := errors.Join(os.MkdirAll(damaged, 0o700), os.WriteFile(aside+".gone", nil, 0o600))
		log.Error("the image database is gone: it is made again of its copies", "database", path, "error", noted)
	}
	d, c, err := tryDatabase(path)
	var broken *damage
	if !errors.As(err, &broken) {
		return d, c, err
	}
	if err := store.SetAside(path, aside); err != nil {
		return nil, content{}, err
	}
	log.Error("the image database is damaged: it was moved aside, and is made again of its copies", "moved to", aside, "error", broken.err)
	return tryDatabase(path)
}

// hasLayers reports whether there are layers beside a database.
func hasLayers(path string) bool {
	all, err := filepath.Glob(filepath.Join(filepath.Dir(path), "layers", "sha256-*"))
	return err == nil && len(all) > 0
}

// A damage is what no retry mends.
type damage struct{ err error }

func (d *damage) Error() string { return d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

func tryDatabase(path string) (d *database, c content, err error) {
	bolt, err := openBolt(path)
	if err != nil {
		return nil, content{}, err
	}
	d = &database{bolt: bolt}
	if c, err = d.read(); err != nil {
		return nil, content{}, errors.Join(&damage{err}, bolt.Close())
	}
	return d, c, nil
}

func openBolt(path string) (db *bbolt.DB, err error) {
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fault.New(fault.Precondition, "image.Open", "%s is in use by another process", path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO), errors.Is(err, unix.EMFILE):
		return nil, classify(err)
	}
	return nil, &damage{err}
}

// guard turns a panic, which is how bbolt meets some kinds of damage, and a
// fault in its mapped memory into an error. To be deferred.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = &damage{fmt.Errorf("database: %v", p)}
	}
}

func (d *database) read() (c content, err error) {
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	c = content{images: map[string]*record{}, layers: map[string]layer.Info{}}
	err = d.bolt.View(func(tx *bbolt.Tx) error {
		// Before anything touches pages that are not there.
		if info, err := os.Stat(d.bolt.Path()); err != nil || info.Size() < tx.Size() {
			return errors.Join(err, errors.New("the file is too short"))
		}
		var first error
		for err := range tx.Check() { // to its end, or it goes on without the transaction
			if first == nil {
				first = err
			}
		}
		if first != nil {
			return first
		}
		b := tx.Bucket(imagesBucket)
		d.fresh = b == nil
		if b != nil {
			if err := b.ForEach(func(id, value []byte) error {
				r := &record{}
				c.images[string(id)] = r
				return json.Unmarshal(value, r)
			}); err != nil {
				return err
			}
		}
		if b := tx.Bucket(layersBucket); b != nil {
			return b.ForEach(func(id, value []byte) error {
				var info layer.Info
				err := json.Unmarshal(value, &info)
				c.layers[string(id)] = info
				return err
			})
		}
		return nil
	})
	return c, err
}

// apply makes a change durable, all or nothing. The copies come before the
// database where images are added, and after it where they go: what they have
// too much is put right when the store runs next.
func (d *database) apply(c changes) error {
	for id, r := range c.images {
		if err := d.copies.save(id, r); err != nil {
			return errors.Join(classify(err), d.undo(c))
		}
	}
	if err := d.update(c); err != nil {
		return errors.Join(err, d.undo(c))
	}
	var errs []error
	for _, id := range c.dropImages {
		errs = append(errs, d.copies.drop(id))
	}
	for id, l := range c.lost {
		errs = append(errs, d.copies.saveLost(id, l))
	}
	return classify(errors.Join(errs...))
}

// undo drops the copies of images that were to come. Those of images that were
// there are put right by reconcile.
func (d *database) undo(c changes) error {
	return d.bolt.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(imagesBucket)
		var errs []error
		for id := range c.images {
			if b == nil || b.Get([]byte(id)) == nil {
				errs = append(errs, d.copies.drop(id))
			}
		}
		return errors.Join(errs...)
	})
}

func (d *database) update(c changes) (err error) {
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return classify(d.bolt.Update(func(tx *bbolt.Tx) error {
		images, err := tx.CreateBucketIfNotExists(imagesBucket)
		if err != nil {
			return err
		}
		layers, err := tx.CreateBucketIfNotExists(layersBucket)
		if err != nil {
			return err
		}
		for id, r := range c.images {
			if err := put(images, id, r); err != nil {
				return err
			}
		}
		for id, info := range c.layers {
			if err := put(layers, id, info); err != nil {
				return err
			}
		}
		for _, id := range slices.AppendSeq(slices.Clone(c.dropImages), maps.Keys(c.lost)) {
			if err := images.Delete([]byte(id)); err != nil {
				return err
			}
		}
		for _, id := range c.dropLayers {
			if err := layers.Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	}))
}

func put(b *bbolt.Bucket, id string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put([]byte(id), data)
}

func (d *database) close() error { return d.bolt.Close() }

// classify gives an unclassified error about a full disk its kind.
func classify(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Exhausted, "", "no space left for images: %w", err)
	}
	return err
}

// A saved is a copy of what the database has of an image, a file beside it.
// From these, and from what layers tell of themselves, a database that is lost
// or damaged is made again.
type saved struct {
	ID string
	// Lost tells why the image was given up; the copy, under another name, is
	// then all there is of it, until it has been fetched again.
	Lost   string    `json:",omitempty"`
	LostAt time.Time `json:",omitzero"`
	Record record
}

const savedVersion = 1

// copies are the files of one store.
type copies struct{ dir string }

const lostSuffix = ".lost.json"

func (c copies) path(id string) string {
	return filepath.Join(c.dir, strings.Replace(id, ":", "-", 1)+".json")
}

func (c copies) lostPath(id string) string {
	return strings.TrimSuffix(c.path(id), ".json") + lostSuffix
}

// save makes a copy durable.
func (c copies) save(id string, r *record) error {
	err := store.SaveJSONDurable(c.path(id), savedVersion, saved{ID: id, Record: *r})
	if err == nil {
		err = remove(c.lostPath(id))
	}
	return err
}

// saveLost makes the copy of an image durable that was given up.
func (c copies) saveLost(id string, l *loss) error {
	err := store.SaveJSONDurable(c.lostPath(id), savedVersion, saved{ID: id, Lost: l.why, LostAt: l.at, Record: *l.record})
	if err == nil {
		err = remove(c.path(id))
	}
	return err
}

// drop deletes a copy. One that a power cut brings back is of an image whose
// layers are gone.
func (c copies) drop(id string) error {
	return errors.Join(remove(c.path(id)), remove(c.lostPath(id)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// load returns the copies whose names match, of those that can be read, the
// oldest first, and deletes the others, which are of no use.
func (c copies) load(pattern string, log *slog.Logger) ([]saved, error) {
	paths, err := filepath.Glob(filepath.Join(c.dir, pattern))
	if err != nil {
		return nil, err
	}
	var all []saved
	at := map[string]time.Time{}
	for _, path := range paths {
		var one saved
		err := store.LoadJSON(path, savedVersion, &one)
		if err == nil {
			err = one.check(path, c)
		}
		if err != nil {
			log.Warn("a copy of an image's record cannot be read", "file", path, "error", err)
			_ = os.Remove(path)
			continue
		}
		if info, err := os.Stat(path); err == nil {
			at[one.ID] = info.ModTime()
		}
		all = append(all, one)
	}
	slices.SortStableFunc(all, func(a, b saved) int { return at[a.ID].Compare(at[b.ID]) })
	return all, nil
}

// check compares a copy with its name and its content.
func (s *saved) check(path string, c copies) error {
	if got := digest.Digest(s.ID); got.Validate() != nil || got != got.Algorithm().FromBytes(s.Record.identified()) {
		return fmt.Errorf("the configuration or manifest in it is not that of %.100q", s.ID)
	}
	if s.Lost == "" && c.path(s.ID) != path || s.Lost != "" && c.lostPath(s.ID) != path {
		return fmt.Errorf("it is of image %s", s.ID)
	}
	return nil
}

// restore fills the content of a database that is new from the copies. A name
// that two of them have is the younger one's.
func (s *Store) restore(c *content) error {
	all, err := s.db.copies.load("*.json", s.config.Log)
	if err != nil {
		return err
	}
	owner := map[string]*record{}
	for _, one := range all {
		if one.Lost != "" {
			continue
		}
		r := one.Record
		for _, name := range r.Names {
			if other := owner[name]; other != nil {
				other.Names = slices.DeleteFunc(other.Names, func(n string) bool { return n == name })
			}
			owner[name] = &r
		}
		c.images[one.ID] = &r
	}
	return nil
}

// reconcile makes the copies those of the database: a crash may have come
// between the two, and an earlier version had none.
func (s *Store) reconcile() error {
	release, err := s.takeCommit(s.ctx)
	if err != nil {
		return err
	}
	defer release()
	all, err := s.db.copies.load("*.json", s.config.Log)
	if err != nil {
		return err
	}
	v := s.view.Load()
	good := map[string]bool{}
	for _, one := range all {
		r := v.images[one.ID]
		switch {
		case r == nil && s.lost(one.ID) == nil:
			err = errors.Join(err, s.db.copies.drop(one.ID))
		case r != nil && one.Lost == "" && slices.Equal(one.Record.Names, r.Names) && slices.Equal(one.Record.Layers, r.Layers):
			good[one.ID] = true
		}
	}
	for id, r := range v.images {
		if !good[id] {
			err = errors.Join(err, s.db.copies.save(id, r))
		}
	}
	return err
}
