package image

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/turn"
	"github.com/davit-runtime/davit/internal/writable"
)

// A Store is the images of one node. Safe for concurrent use.
type Store struct {
	config   Config
	platform imagespec.Platform
	registry *registry.Client
	layers   *layer.Store
	trash    *layer.Trash
	db       *database
	turns    *turn.Queue // at unpacking

	view   atomic.Pointer[view] // replaced under mu
	commit chan struct{}        // held by the one who changes images; taken before mu

	mu  sync.Mutex
	use use

	flying
	pulls   pulls
	tally   *writable.Tally
	closers []func() error
}

// flying is what ends flights.
type flying struct {
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // flights
}

// Open opens the store and clears away what an earlier process left undone. A
// damaged database is moved aside, and the store begins empty.
func Open(config Config) (*Store, error) {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Damaged == "" {
		config.Damaged = filepath.Join(config.Root, "damaged")
	}
	if config.MaxLayerBytes == 0 {
		config.MaxLayerBytes = 64 << 30
	}
	platform, err := parsePlatform(config.Platform)
	if err != nil {
		return nil, err
	}
	if err := config.makeDirs(); err != nil {
		return nil, classify(err)
	}
	s := &Store{
		config:   config,
		platform: platform,
		registry: registry.New(config.Registry),
		turns:    turn.NewQueue(runtime.GOMAXPROCS(0)),
		commit:   make(chan struct{}, 1),
		use:      newUse(),
		pulls:    newPulls(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background()) //nolint:forbidigo // the owner is Close
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (c Config) writable(id string) string { return filepath.Join(c.Root, "writable", id) }
func (c Config) rootfs(id string) string   { return filepath.Join(c.State, "rootfs", id) }

// empty is what an image without layers has below its writable one.
func (c Config) empty() string { return filepath.Join(c.Root, "empty") }

func (c Config) makeDirs() error {
	return errors.Join(
		os.MkdirAll(c.writable(""), 0o700), // with layers/ it has set-user-ID programs that nobody patches
		os.MkdirAll(c.rootfs(""), 0o711),   // containers of other users pass through
		os.MkdirAll(c.empty(), 0o755),
		os.Chmod(c.empty(), 0o755), // whatever the umask
	)
}

func (s *Store) load() (err error) {
	var content content // first, since it keeps other processes out
	if s.db, content, err = openDatabase(filepath.Join(s.config.Root, "images.db"), s.config.Damaged, s.config.Log); err != nil {
		return err
	}
	s.closers = append(s.closers, s.db.close)
	if s.trash, err = layer.OpenTrash(filepath.Join(s.config.Root, "trash"), s.config.Log); err != nil {
		return err
	}
	if s.use.leases, err = readLeases(s.config.writable(""), filepath.Join(s.config.Root, "layers"), s.config.Log); err != nil {
		return err
	}
	s.tally = writable.NewTally(s.config.writable)
	s.closers = append(s.closers, s.tally.Close)
	for id := range s.use.leases {
		s.tally.Adopt(id)
	}
	if s.layers, err = layer.Open(layer.Config{
		Root: filepath.Join(s.config.Root, "layers"), State: filepath.Join(s.config.State, "layers"), Kind: s.config.Layers,
		Limit: s.config.MaxLayerBytes, Trash: s.trash, Log: s.config.Log,
	}); err != nil {
		return err
	}
	s.closers = append(s.closers, func() error { return errors.Join(s.sweep(0), s.layers.Close()) })
	if err := s.loadContent(&content); err != nil {
		return err
	}
	needed := s.use.needed(&content)
	if err := s.layers.Retain(func(id string) bool { return needed[id] }); err != nil {
		return err
	}
	s.view.Store(newView(content, s.config.Pinned))
	return nil
}

// loadContent completes what the database says by what else is on disk.
func (s *Store) loadContent(c *content) error {
	restored := s.db.fresh
	if restored {
		if err := s.restore(c); err != nil {
			return err
		}
	}
	if err := s.loadLosses(c); err != nil {
		return err
	}
	s.examine(c)
	if restored && len(c.images) > 0 {
		s.config.Log.Warn("the image database was made again of its copies", "images", len(c.images), "layers", len(c.layers))
		return s.db.update(changes{images: c.images, layers: c.layers})
	}
	return nil
}

// Close ends pulls and lets go of the database. Mounts of containers stay.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	s.registry.Close()
	if s.trash != nil {
		s.trash.Close()
	}
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// Layers tells, for people, how new layers are kept.
func (s *Store) Layers() string { return s.layers.Describe() }

// List returns all images, sorted by ID. The caller must not change them.
func (s *Store) List() []Image { return s.view.Load().list }

// Get finds an image by tag, by digest, by both, by ID or by a unique prefix of
// an ID. NotFound if it is not present.
func (s *Store) Get(ref string) (Image, error) {
	e, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return e.Image, nil
}

// find is Get of an entry. Short names are what they were at the last pull.
func (s *Store) find(ref string) (*entry, error) {
	names, _ := s.registry.Names(ref) // an error is of a ref that is no name
	return s.view.Load().find(ref, names...)
}

// Explain says where an image would be pulled from, and with probe what each
// endpoint answers. See registry.Client.Explain.
func (s *Store) Explain(ctx context.Context, ref string, auth Auth, probe bool) ([]registry.Explanation, error) {
	return s.registry.Explain(ctx, ref, registry.Auth(auth), probe)
}

// Config returns the ID and configuration of the image that Get finds.
func (s *Store) Config(ref string) (id string, config imagespec.ImageConfig, err error) {
	e, err := s.find(ref)
	if err != nil {
		return "", imagespec.ImageConfig{}, err
	}
	return e.ID, e.Image.Config.Config, nil
}

// Usage returns what all layers take, counted when they were unpacked.
func (s *Store) Usage() Usage {
	v := s.view.Load()
	return Usage{Mountpoint: s.config.Root, Bytes: v.bytes, Inodes: v.inodes, At: time.Now()}
}

// WritableUsage returns what a container's writable layer takes, without
// waiting: what was counted last, At then; At is zero if nothing was counted
// yet. Asking has it counted again, if it is time. NotFound without a layer.
func (s *Store) WritableUsage(id string) (Usage, error) {
	f, ok := s.tally.Of(id)
	if !ok {
		return Usage{}, fault.New(fault.NotFound, "", "container %s has no writable layer", id)
	}
	return Usage{Mountpoint: s.config.Root, Bytes: f.Bytes, Inodes: f.Inodes, At: f.At}, nil
}

// WritableUsages returns what all writable layers take together, as
// WritableUsage does; At is when the oldest part was counted.
func (s *Store) WritableUsages() Usage {
	f := s.tally.Sum()
	return Usage{Mountpoint: s.config.Root, Bytes: f.Bytes, Inodes: f.Inodes, At: f.At}
}

// takeCommit takes the right to change images; the caller gives it back.
func (s *Store) takeCommit(ctx context.Context) (release func(), err error) {
	select {
	case s.commit <- struct{}{}:
		return func() { <-s.commit }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Remove removes the image that ref finds, with all its names, whatever
// containers use it: their layers stay until they are unmounted. An unknown
// ref is no error. When it returns, no call shows the image any more; its files
// are deleted soon after.
//
// CRI: api.proto, RemoveImage, "This call is idempotent".
func (s *Store) Remove(ctx context.Context, ref string) error {
	release, err := s.takeCommit(ctx)
	if err != nil {
		return err
	}
	e, err := s.find(ref)
	if err != nil {
		release()
		if fault.Is(err, fault.NotFound) {
			return s.forgetLoss(ref)
		}
		return err
	}
	change := changes{dropImages: []string{e.ID}}
	s.publish(change)
	err = s.db.apply(change)
	release()
	collected := s.collect(e.layers)
	if err != nil && collected == nil {
		err = s.db.apply(change) // a full disk may have room now
	}
	return errors.Join(err, collected)
}

// SetPins replaces Config.Pinned.
func (s *Store) SetPins(pins Pins) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.Store(newView(s.view.Load().content, pins))
}

// publish makes a change visible.
func (s *Store) publish(c changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.Store(s.view.Load().with(c))
}
