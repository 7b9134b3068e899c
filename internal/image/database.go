package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

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

// A database is content on disk. One process at a time has it.
type database struct{ bolt *bbolt.DB }

// openDatabase opens a database and reads it whole. One that is damaged is
// moved aside: images can be pulled again, a node that does not start cannot.
func openDatabase(path, damaged string, log *slog.Logger) (*database, content, error) {
	aside := filepath.Join(damaged, filepath.Base(path))
	if info, err := os.Lstat(path); (errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0) && hasLayers(path) {
		noted := errors.Join(os.MkdirAll(damaged, 0o700), os.WriteFile(aside+".gone", nil, 0o600))
		log.Error("the image database is gone: the images have to be pulled again", "database", path, "error", noted)
	}
	d, c, err := tryDatabase(path)
	var broken *damage
	if !errors.As(err, &broken) {
		return d, c, err
	}
	if err := store.SetAside(path, aside); err != nil {
		return nil, content{}, err
	}
	log.Error("the image database is damaged: it was moved aside, and the images have to be pulled again", "moved to", aside, "error", broken.err)
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
	d = &database{bolt}
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
		if b := tx.Bucket(imagesBucket); b != nil {
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

// apply makes a change durable, all or nothing.
func (d *database) apply(c changes) (err error) {
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
		for _, id := range c.dropImages {
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
