package image

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/span"
	"github.com/davit-runtime/davit/internal/turn"
)

// A config is an image's configuration, kept as long as pulls use it.
type config struct {
	data  []byte        // what there is; read it once turn is had, or after
	turn  chan struct{} // had by the one who fetches
	users int           // guarded by Store.mu
}

// obtainConfig returns an image's configuration. However many pulls want it at
// a time, it is fetched once; when that fails the next one tries, with its own
// credentials. done is to be called when the image is in the database, or not
// going to be: until then it is not fetched again.
func (s *Store) obtainConfig(ctx context.Context, d imagespec.Descriptor, from Source) (data []byte, done func(), err error) {
	id := d.Digest.String()
	s.mu.Lock()
	c := s.use.configs[id]
	if c == nil {
		c = &config{turn: make(chan struct{}, 1)}
		if old := s.view.Load().images[id]; old != nil {
			c.data = old.Config
		}
		s.use.configs[id] = c
	}
	c.users++
	s.mu.Unlock()
	done = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c.users--; c.users == 0 {
			delete(s.use.configs, id)
		}
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		done()
		return nil, nil, context.Cause(ctx)
	}
	if c.data == nil {
		defer span.Step(ctx, "config")()
		if c.data, err = from.Config(ctx, d); err != nil {
			c.data = nil
			done()
			return nil, nil, err
		}
	}
	return c.data, done, nil
}

// A wanted is a layer as one image's manifest has it.
type wanted struct {
	imagespec.Descriptor // of the blob
	id                   string
	from                 Source
	file                 string // the layer is the blob itself, as this file, see artifact.go; else empty
}

// A flight is one layer being fetched and unpacked, for however many pulls.
type flight struct {
	waiters int // guarded by Store.mu
	cancel  context.CancelFunc
	turn    *turn.Turn // to unpack; fetch's own
	phase   atomic.Int32
	bytes   atomic.Int64

	done chan struct{}
	info layer.Info // with err, valid once done is closed
	err  error
}

// A boarding is what is known of a layer before anybody waits for it.
type boarding struct {
	flight *flight // nil: the layer is there, or an error is
	mine   bool    // the flight was started for this caller
	info   layer.Info
	err    error
}

// seek finds a layer or a flight for it; if there is none, it starts one. The
// caller has pinned the layer.
func (s *Store) seek(ctx context.Context, w wanted) boarding {
	for {
		info, ok, err := s.present(ctx, w.id)
		if ok || err != nil {
			return boarding{info: info, err: err}
		}
		if f, mine := s.board(w); f != nil {
			return boarding{flight: f, mine: mine}
		} // else it came, or began to go, in between
	}
}

// obtain sees to it that a layer is there, for which the caller has sought. It
// joins a flight for the same layer that is under way. When that fails it tries
// again on its own, with its own repository and credentials: the other pull's
// troubles may be its own.
func (s *Store) obtain(ctx context.Context, w wanted, b boarding, report func(Phase, int64)) (layer.Info, error) {
	report(Waiting, 0)
	for b.flight != nil {
		err := s.ride(ctx, b.flight, report)
		if err == nil {
			b.info = b.flight.info
			break
		}
		if b.mine || ctx.Err() != nil {
			return layer.Info{}, err
		}
		b = s.seek(ctx, w)
	}
	if b.err != nil {
		return layer.Info{}, b.err
	}
	report(Done, w.Size)
	return b.info, nil
}

// board returns the flight for a layer and whether it was started for this
// caller; nil if none is to start.
func (s *Store) board(w wanted) (f *flight, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f = s.use.flights[w.id]; f != nil {
		f.waiters++
		return f, false
	}
	_, fresh := s.use.fresh[w.id]
	_, known := s.view.Load().layers[w.id]
	if fresh || known || s.use.dying[w.id] != nil {
		return nil, false
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f = &flight{waiters: 1, cancel: cancel, turn: s.turns.Join(), done: make(chan struct{})}
	s.use.flights[w.id] = f
	s.use.pins[w.id]++
	s.wg.Go(func() {
		defer cancel()
		s.fly(ctx, f, w)
	})
	return f, true
}

// ride waits for a flight and reports on it. The last to leave cancels it.
func (s *Store) ride(ctx context.Context, f *flight, report func(Phase, int64)) error {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.waiters--; f.waiters == 0 {
			f.cancel()
		}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		report(Phase(f.phase.Load()), f.bytes.Load())
		select {
		case <-f.done:
			return f.err
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Store) fly(ctx context.Context, f *flight, w wanted) {
	f.info, f.err = s.fetch(ctx, f, w)
	s.mu.Lock()
	delete(s.use.flights, w.id)
	if f.err == nil {
		s.use.fresh[w.id] = f.info
	}
	s.mu.Unlock()
	close(f.done)
	if err := s.unpin([]string{w.id}); err != nil {
		s.config.Log.Warn("removing a layer that nobody waited for", "layer", w.id, "error", err)
	}
}

// fetch streams the blob from its source through the decompressor into the
// layer store. Nothing of it is kept on the way.
func (s *Store) fetch(ctx context.Context, f *flight, w wanted) (layer.Info, error) {
	defer f.turn.End()
	for {
		if err := f.turn.Take(ctx); err != nil {
			return layer.Info{}, err
		}
		f.turn.Pause()
		blob, err := w.from.Layer(ctx, w.Descriptor, w.diffID())
		if err != nil {
			return layer.Info{}, err
		}
		info, err := s.unpack(ctx, f, w, blob)
		r, ok := w.from.(repository)
		again := err != nil && ok && ctx.Err() == nil && r.Again(blob, w.Digest, err)
		_ = blob.Close()
		if !again {
			return info, err
		}
		s.config.Log.Warn("a mirror sent other content; asking elsewhere", "layer", w.id, "error", err)
		f.bytes.Store(0)
	}
}

func (s *Store) unpack(ctx context.Context, f *flight, w wanted, blob io.Reader) (layer.Info, error) {
	f.phase.Store(int32(Downloading))
	if err := f.turn.Resume(ctx); err != nil {
		return layer.Info{}, err
	}
	from := layer.Blob{MediaType: w.MediaType, Digest: w.Digest.String(), Size: w.Size}
	measured := &meter{ctx, blob, f, w.Size}
	if w.file != "" {
		tar, err := fileStream(w.file, w.Size, measured)
		if err != nil {
			return layer.Info{}, err
		}
		return s.layers.Unpack(ctx, w.id, from, tar)
	}
	tar, err := layer.NewReader(measured, w.diffID(), s.config.MaxLayerBytes)
	if err != nil {
		return layer.Info{}, err
	}
	defer tar.Close()
	if isNative(w.MediaType) {
		return s.layers.Adopt(ctx, w.id, from, tar)
	}
	return s.layers.Unpack(ctx, w.id, from, tar)
}

// A meter counts what is read of a blob, and lets others unpack while the
// network is waited for, and at the end, when the disk is.
type meter struct {
	ctx   context.Context
	r     io.Reader
	f     *flight
	total int64
}

func (m *meter) Read(p []byte) (int, error) {
	m.f.turn.Pause()
	n, err := m.r.Read(p)
	if m.f.bytes.Add(int64(n)) >= m.total {
		m.f.phase.Store(int32(Unpacking))
	}
	if errors.Is(err, io.EOF) {
		m.f.turn.End()
		return n, err
	}
	if gone := m.f.turn.Resume(m.ctx); gone != nil {
		return n, gone
	}
	return n, err
}
