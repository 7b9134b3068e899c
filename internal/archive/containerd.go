package archive

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/davit-runtime/davit/internal/fault"
)

// Containerd returns the images of one namespace ("k8s.io" is the CRI's) that
// are in the store in root ("/var/lib/containerd"), whether containerd runs or
// not. It needs the blobs: a containerd that was told to discard those of
// unpacked layers has none.
//
// NotFound without a store or namespace.
//
// containerd: core/metadata/buckets.go
func Containerd(root, namespace string) (*Archive, error) {
	path := filepath.Join(root, "io.containerd.metadata.v1.bolt", "meta.db")
	if _, err := os.Stat(path); err != nil {
		return nil, fault.New(fault.NotFound, "", "%s is no store of containerd's: %w", root, err)
	}
	dir, err := os.OpenRoot(filepath.Join(root, "io.containerd.content.v1.content"))
	if err != nil {
		return nil, err
	}
	found := offers{source: &blobs{tree: directory{dir}, owner: "containerd's store in " + root}}
	if err := readMetadata(path, namespace, &found); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return &Archive{Offers: found.all, close: dir.Close}, nil
}

// readMetadata reads names and digests from containerd's database. containerd
// keeps others out while it runs, so it is a copy that is read; one that was
// made while containerd wrote may not be whole, and is made again.
func readMetadata(path, namespace string, found *offers) error {
	const tries = 5
	for try := 1; ; try++ {
		err := withCopy(path, func(db *bbolt.DB) error {
			return db.View(func(tx *bbolt.Tx) error {
				var broken error
				for err := range tx.Check() { // to its end, or it goes on without the transaction
					broken = err
				}
				if broken != nil {
					return broken
				}
				return readNames(tx, namespace, found)
			})
		})
		if err == nil || fault.Is(err, fault.NotFound) {
			return err
		}
		if try == tries {
			return fault.New(fault.Unknown, "", "containerd's database %s: %w", path, err)
		}
		time.Sleep(time.Duration(try) * 100 * time.Millisecond) // until containerd has written what it writes
	}
}

// withCopy opens a copy of a database.
func withCopy(path string, f func(*bbolt.DB) error) (err error) {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.CreateTemp("", "containerd-*.db")
	if err != nil {
		return err
	}
	defer os.Remove(to.Name())
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		return classify(err)
	}
	defer func() {
		if p := recover(); p != nil { // which is how bbolt meets some kinds of damage
			err = fault.New(fault.Unknown, "", "it is damaged: %v", p)
		}
	}()
	db, err := bbolt.Open(to.Name(), 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	return errors.Join(f(db), db.Close())
}

func readNames(tx *bbolt.Tx, namespace string, found *offers) error {
	b := tx.Bucket([]byte("v1"))
	for _, name := range []string{namespace, "images"} {
		if b != nil {
			b = b.Bucket([]byte(name))
		}
	}
	if b == nil {
		return fault.New(fault.NotFound, "", "containerd has no images in the namespace %s", namespace)
	}
	found.all, found.at = nil, nil
	return b.ForEachBucket(func(key []byte) error {
		target := b.Bucket(key).Bucket([]byte("target"))
		if target == nil {
			return nil
		}
		d := digest.Digest(target.Get([]byte("digest")))
		if d.Validate() != nil {
			return nil
		}
		if name, ok := fullName(string(key)); ok && !strings.HasPrefix(string(key), "sha256:") {
			found.add(d, name, true)
		} else if base, own, ok := strings.Cut(string(key), "@"); ok && own == d.String() {
			found.add(d, nil, false)
			if name, ok := fullName(base); ok {
				found.name(found.at[d], name.Name()+"@"+own)
			}
		}
		return nil // the CRI's name for an image by its ID says nothing new
	})
}
