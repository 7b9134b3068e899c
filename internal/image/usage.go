package image

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/overlay"
	"github.com/davit-runtime/davit/internal/writable"
)

// A DiskUsage is what takes how much of the disk. Layers, Writable and Other
// together are all that is in the store's directory; Images tells of the same
// layers by image.
type DiskUsage struct {
	At         time.Time
	Images     []ImageUsage    // sorted by ID
	Layers     []LayerUsage    // sorted by ID
	Writable   []WritableUsage // sorted by container
	Other      []OtherUsage    // sorted by What
	FileSystem FileSystem
}

// An ImageUsage is what one image takes.
type ImageUsage struct {
	ID          string
	Names       []string // tags and digests
	Bytes       uint64   // of its layers, configuration and manifest
	SharedBytes uint64   // of that, of layers that other images have, too
	Containers  int      // that have it, also as a volume
	Pinned      bool
}

// A LayerUsage is what one layer takes, as it was counted when it was made.
type LayerUsage struct {
	ID      string
	Bytes   uint64
	Images  int    // that have it; 0 if only containers do
	Kind    string // how it is kept: "erofs" or "directory"
	Mounted bool   // as a file system of its own
}

// A WritableUsage is what a container's writable layer takes.
type WritableUsage struct {
	Container string
	Bytes     uint64
}

// An OtherUsage is what takes room besides.
type OtherUsage struct {
	What  string // "database", "records", "trash", "unfinished", "other"
	Bytes uint64
}

// A FileSystem is the one that the store is on.
type FileSystem struct {
	Path       string // of the store
	TotalBytes uint64
	UsedBytes  uint64 // by whomever
	FreeBytes  uint64 // for davitd
}

// Bytes returns all that the store takes.
func (u *DiskUsage) Bytes() uint64 {
	var sum uint64
	for _, l := range u.Layers {
		sum += l.Bytes
	}
	for _, w := range u.Writable {
		sum += w.Bytes
	}
	for _, o := range u.Other {
		sum += o.Bytes
	}
	return sum
}

// DiskUsage counts what takes how much of the disk. Everything but layers is
// walked, which may take a while where containers have many files.
func (s *Store) DiskUsage(ctx context.Context) (DiskUsage, error) {
	u := DiskUsage{At: time.Now(), FileSystem: FileSystem{Path: s.config.Root}}
	s.mu.Lock()
	v, leases := s.view.Load(), maps.Clone(s.use.leases)
	fresh := maps.Clone(s.use.fresh)
	s.mu.Unlock()
	v.usage(&u)
	for i, image := range u.Images {
		for id, l := range leases {
			if container, _, volume := strings.Cut(id, volumeMark); l.Image == image.ID && !(volume && leases[container].Image == image.ID) {
				u.Images[i].Containers++
			}
		}
	}
	for id, info := range fresh { // of pulls under way
		u.Layers = append(u.Layers, LayerUsage{ID: id, Bytes: info.Bytes})
	}
	slices.SortFunc(u.Layers, func(a, b LayerUsage) int { return strings.Compare(a.ID, b.ID) })
	if err := s.walkRoot(ctx, &u); err != nil {
		return DiskUsage{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.config.Root, &st); err != nil {
		return DiskUsage{}, &os.PathError{Op: "statfs", Path: s.config.Root, Err: err}
	}
	block := uint64(st.Bsize)
	// What a file system keeps back for root is not counted on: df and the kubelet do not either.
	u.FileSystem.TotalBytes, u.FileSystem.UsedBytes, u.FileSystem.FreeBytes = st.Blocks*block, (st.Blocks-st.Bfree)*block, st.Bavail*block
	return u, nil
}

// usage adds what images and layers take.
func (v *view) usage(u *DiskUsage) {
	images := map[string]int{}
	for _, e := range v.byID {
		for _, l := range e.layers {
			images[l]++
		}
	}
	for _, i := range v.list {
		use := ImageUsage{ID: i.ID, Names: slices.Concat(i.RepoTags, i.RepoDigests), Bytes: i.SizeBytes, Pinned: i.Pinned}
		for _, l := range v.byID[i.ID].layers {
			if images[l] > 1 {
				use.SharedBytes += v.layers[l].Bytes
			}
		}
		u.Images = append(u.Images, use)
	}
	for id, info := range v.layers {
		u.Layers = append(u.Layers, LayerUsage{ID: id, Bytes: info.Bytes, Images: images[id]})
	}
}

// walkRoot adds what is in the store's directory beside layers.
func (s *Store) walkRoot(ctx context.Context, u *DiskUsage) error {
	known := map[string]*LayerUsage{}
	for i, l := range u.Layers {
		known[strings.Replace(l.ID, ":", "-", 1)] = &u.Layers[i]
	}
	other := map[string]uint64{}
	err := s.each("", func(name, path string) error {
		switch name {
		case "layers":
			return s.each(name, func(layer, path string) error {
				name, erofs := strings.CutSuffix(layer, ".erofs")
				if l := known[name]; l != nil {
					l.Kind = "directory"
					if erofs {
						l.Kind = "erofs"
						l.Mounted, _ = overlay.IsMount(filepath.Join(s.config.State, "layers", name)) // not there: not mounted
					}
					return nil
				}
				size, _, err := writable.Measure(ctx, path)
				other["unfinished"] += size
				return err
			})
		case "writable":
			return s.each(name, func(container, path string) error {
				size, _, err := writable.Measure(ctx, path)
				if strings.Contains(container, volumeMark) {
					other["other"] += size
				} else {
					u.Writable = append(u.Writable, WritableUsage{container, size})
				}
				return err
			})
		}
		size, _, err := writable.Measure(ctx, path)
		what, ok := map[string]string{"images.db": "database", "records": "records", "trash": "trash"}[name]
		if !ok {
			what = "other"
		}
		other[what] += size
		return err
	})
	for _, dir := range []string{"", "layers", "writable"} {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(s.config.Root, dir), &st) == nil {
			other["other"] += uint64(st.Blocks) * 512
		}
	}
	for _, what := range slices.Sorted(maps.Keys(other)) {
		u.Other = append(u.Other, OtherUsage{what, other[what]})
	}
	return err
}

// each calls f for each entry of a directory below the store's.
func (s *Store) each(dir string, f func(name, path string) error) error {
	path := filepath.Join(s.config.Root, dir)
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := f(e.Name(), filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
