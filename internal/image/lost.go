package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/patrol"
	"github.com/davit-runtime/davit/internal/registry"
)

// A loss is an image that was given up since a layer of it is gone or damaged.
// No call shows it; it is fetched again.
type loss struct {
	record  *record
	why     string
	at      time.Time
	tries   int
	next    time.Time // when to try again
	failed  string    // why the last try did
	refused string    // why that is of no use
}

// patience is how long the layers of an image that cannot be fetched again are
// kept for whoever pulls it.
const patience = 24 * time.Hour

// lose notes a loss, unless it is known or the image is back.
func (s *Store) lose(id string, l *loss) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.view.Load(); s.use.losses[id] == nil && (v == nil || v.images[id] == nil) {
		s.use.losses[id] = l
	}
}

func (s *Store) lost(id string) *loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use.losses[id]
}

// forgetLoss is for an image that somebody removes after it was given up.
func (s *Store) forgetLoss(ref string) error {
	s.mu.Lock()
	images := map[string]*record{}
	for id, l := range s.use.losses {
		images[id] = l.record
	}
	s.mu.Unlock()
	e, err := newView(content{images: images}, Pins{}).find(ref)
	if err != nil {
		return nil //nolint:nilerr // none of that name
	}
	return s.giveUp(e.ID)
}

// giveUp forgets a loss, and with it the layers that nobody else needs.
func (s *Store) giveUp(id string) error {
	s.mu.Lock()
	l := s.use.losses[id]
	delete(s.use.losses, id)
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	return errors.Join(s.db.copies.drop(id), s.collect(l.record.Layers))
}

// loadLosses remembers what an earlier process has given up.
func (s *Store) loadLosses(c *content) error {
	all, err := s.db.copies.load("*"+lostSuffix, s.config.Log)
	for _, one := range all {
		if c.images[one.ID] == nil {
			s.lose(one.ID, &loss{record: &one.Record, why: one.Lost, at: one.LostAt})
		}
	}
	return err
}

// Troubles are what somebody should know of: images that are not there though
// they were pulled. A line each, for people. It never blocks for long.
func (s *Store) Troubles() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for id, l := range s.use.losses {
		what := strings.TrimSuffix("it is being fetched again: "+l.failed, ": ")
		if l.refused != "" {
			what = "pull, load or import it again, since it cannot be fetched without being asked for: " + l.refused
		}
		lines = append(lines, fmt.Sprintf("image %s was lost: %s; %s", nameOf(id, l.record), l.why, what))
	}
	slices.Sort(lines)
	return lines
}

// nameOf is what people know an image by.
func nameOf(id string, r *record) string {
	for _, name := range r.Names {
		if !strings.Contains(name, "@") {
			return name
		}
	}
	return id
}

// hasDigest reports whether the image has a digest in some repository, which it
// can be fetched again by.
func (r *record) hasDigest() bool {
	return slices.ContainsFunc(r.Names, func(name string) bool { return strings.Contains(name, "@") })
}

// examine drops images that cannot be whole, for want of a sound layer, and
// layers that nobody needs. What layers tell of themselves counts where the
// database does not know them. A disk too full to write that down is no reason
// not to start: what is dropped in memory only is dropped again the next time.
func (s *Store) examine(c *content) {
	dropped := changes{lost: map[string]*loss{}}
	found := map[string]error{}
	for id, r := range c.images {
		for _, l := range r.Layers {
			err, seen := found[l]
			if !seen {
				err = s.sound(c, l)
				found[l] = err
			}
			if err == nil {
				continue
			}
			s.config.Log.Error("an image has lost a layer and is given up, to be fetched again", "image", id, "names", r.Names, "error", err)
			delete(c.images, id)
			dropped.lost[id] = &loss{record: r, why: err.Error(), at: time.Now()}
			s.lose(id, dropped.lost[id])
			break
		}
	}
	needed := s.use.needed(c)
	for id, err := range found {
		if err == nil {
			continue
		}
		if fault.Is(err, fault.Precondition) {
			continue // another kernel can mount it
		}
		needed[id] = false // containers go on with what they have mounted
		if err := s.layers.Remove(id); err != nil {
			s.config.Log.Warn("removing a layer that is damaged", "layer", id, "error", err)
		}
	}
	for id := range c.layers {
		if _, err := s.layers.Inspect(id); needed[id] && (err == nil || fault.Is(err, fault.Exhausted)) {
			continue
		}
		delete(c.layers, id)
		dropped.dropLayers = append(dropped.dropLayers, id)
		if needed[id] {
			continue
		}
		if err := s.layers.Remove(id); err != nil {
			s.config.Log.Warn("removing a layer that nobody needs", "layer", id, "error", err)
		}
	}
	if len(dropped.dropLayers)+len(dropped.lost) == 0 {
		return
	}
	if err := s.db.apply(dropped); err != nil {
		s.config.Log.Warn("writing down which images are gone", "error", err)
	}
}

// sound reports what is wrong with a layer, as far as shows at once.
func (s *Store) sound(c *content, id string) error {
	info, err := s.layers.Inspect(id)
	if fault.Is(err, fault.Exhausted) { // of the process, not of the layer
		return nil
	}
	if err != nil {
		return err
	}
	if _, ok := c.layers[id]; ok {
		return nil
	}
	if info == nil {
		return fault.New(fault.NotFound, "", "layer %s is not in the database, and does not tell what it is", id)
	}
	c.layers[id] = *info
	return nil
}

// condemn gives up a layer that has turned out to be damaged, and the images
// that have it. Containers go on with what they have mounted.
func (s *Store) condemn(ctx context.Context, id string, why error) error {
	release, err := s.takeCommit(ctx)
	if err != nil {
		return err
	}
	defer release()
	s.mu.Lock()
	v := s.view.Load()
	if _, ok := v.layers[id]; !ok || s.use.dying[id] != nil {
		s.mu.Unlock()
		return nil
	}
	change := changes{dropLayers: []string{id}, lost: map[string]*loss{}}
	for image, r := range v.images {
		if slices.Contains(r.Layers, id) {
			change.lost[image] = &loss{record: r, why: why.Error(), at: time.Now()}
		}
	}
	gone := make(chan struct{})
	s.use.dying[id] = gone
	s.view.Store(v.with(change))
	s.mu.Unlock()
	for image, l := range change.lost {
		s.config.Log.Error("an image has a damaged layer and is given up, to be fetched again", "image", image, "names", l.record.Names, "error", why)
		s.lose(image, l)
	}
	err = s.db.apply(change)
	if removed := s.layers.Remove(id); err == nil {
		err = removed
	}
	s.mu.Lock()
	close(gone)
	delete(s.use.dying, id)
	s.mu.Unlock()
	return err
}

// keep reports whether a layer is in use: what is mounted of it stays.
func (u *use) keep(id string) bool {
	for _, l := range u.leases {
		if slices.Contains(l.Layers, id) {
			return true
		}
	}
	return false
}

// useLayers returns the directories of layers, to be stacked before done is
// called. A damaged layer is given up.
func (s *Store) useLayers(ctx context.Context, ids []string) (dirs []string, done func(), err error) {
	var all []func()
	done = func() {
		for _, f := range all {
			f()
		}
	}
	for _, id := range ids {
		dir, f, err := s.layers.Use(id)
		if err != nil {
			done()
			if fault.Is(err, fault.Unknown) || fault.Is(err, fault.NotFound) {
				if err := s.condemn(ctx, id, err); err != nil {
					s.config.Log.Warn("giving up a damaged layer", "layer", id, "error", err)
				}
				err = fault.New(fault.NotFound, "", "%w", err) // to be pulled again
			}
			return nil, nil, err
		}
		dirs, all = append(dirs, dir), append(all, f)
	}
	return dirs, done, nil
}

// gone returns a layer that is neither there nor about to be written down;
// empty if there is none. To be called with the right to change images.
func (s *Store) gone(layers []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range layers {
		_, fresh := s.use.fresh[id]
		_, known := s.view.Load().layers[id]
		if s.use.dying[id] != nil || !fresh && !known && !isMend(id) {
			return id
		}
	}
	return ""
}

const (
	round      = 5 * time.Second // how often Run looks whether there is something to do
	idleMounts = time.Minute     // how long a layer stays mounted after its last use
)

// Run does what nobody waits for, until ctx ends: images that were lost are
// fetched again, layers that no container uses are unmounted, and, now and then
// while the node has little to do, all layers are read and compared with what
// was written.
func (s *Store) Run(ctx context.Context) error {
	if err := s.reconcile(); err != nil {
		s.config.Log.Warn("keeping copies of images' records", "error", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := patrol.Patrol{File: filepath.Join(s.config.Root, "verified.json"), List: s.layerIDs, Read: s.reread, Log: s.config.Log}
		p.Run(ctx)
	}()
	defer func() { <-done }()
	tick := time.NewTicker(round)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.heal(ctx, time.Now())
		if err := s.sweep(idleMounts); err != nil {
			s.config.Log.Warn("unmounting layers that nobody uses", "error", err)
		}
	}
}

// sweep unmounts layers that no container has used for a while.
func (s *Store) sweep(idle time.Duration) error {
	return s.layers.Sweep(idle, func(id string) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.use.keep(id)
	})
}

// heal fetches those lost images again whose time has come, one by one.
func (s *Store) heal(ctx context.Context, now time.Time) {
	s.mu.Lock()
	all := maps.Clone(s.use.losses)
	s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(all)) {
		l := all[id]
		s.mu.Lock()
		due := s.use.losses[id] == l && l.refused == "" && !now.Before(l.next)
		late := s.use.losses[id] == l && now.Sub(l.at) > patience
		s.mu.Unlock()
		if late {
			if err := s.giveUp(id); err != nil {
				s.config.Log.Warn("removing what is left of an image that was lost", "image", id, "error", err)
			}
			continue
		}
		if !due || ctx.Err() != nil {
			continue
		}
		err := s.refetch(ctx, id, l.record)
		if err == nil {
			s.config.Log.Info("an image that was lost is there again", "image", id, "names", l.record.Names)
			continue
		}
		s.mu.Lock()
		switch fault.KindOf(err) {
		case fault.Denied, fault.NotFound, fault.Invalid, fault.Unimplemented, fault.Precondition:
			l.refused = err.Error()
		default:
			l.tries, l.failed = l.tries+1, err.Error()
			l.next = now.Add(min(10*time.Second<<min(l.tries, 10), time.Hour))
		}
		s.mu.Unlock()
		if ctx.Err() == nil {
			s.config.Log.Warn("an image that was lost cannot be fetched again yet", "image", id, "names", l.record.Names, "error", err)
		}
	}
}

// refetch pulls an image that was lost, by its digest and without credentials:
// davit keeps none. Names that mean another image by now stay with that.
func (s *Store) refetch(ctx context.Context, id string, r *record) error {
	m, err := registry.ParseManifest(digest.FromBytes(r.Manifest), r.Manifest)
	if err != nil {
		return err
	}
	v := s.view.Load()
	var names []string
	for _, name := range r.Names {
		if e := v.byName[name]; e == nil || e.ID == id {
			names = append(names, name)
		}
	}
	err = fault.New(fault.NotFound, "", "it has no digest in any repository")
	for _, name := range r.Names {
		named, bad := reference.ParseNormalizedNamed(name)
		if bad != nil || !strings.Contains(name, "@") {
			continue
		}
		repo, bad := s.registry.Repository(named, registry.Auth{})
		if bad != nil {
			err = bad
			continue
		}
		p := &pull{store: s, from: repository{repo}, manifest: m, names: names, tracked: s.pulls.begin(name)}
		_, err = p.run(ctx)
		p.tracked.end(err)
		if err == nil || errors.Is(err, context.Canceled) {
			return err
		}
	}
	return err
}

// layerIDs lists the layers that there are.
func (s *Store) layerIDs() []string { return slices.Sorted(maps.Keys(s.view.Load().layers)) }

// reread reads a layer and gives it up if it is damaged.
func (s *Store) reread(ctx context.Context, id string, pace func(context.Context, int) error) error {
	err := s.layers.Verify(ctx, id, pace)
	if isLoss(err) {
		return s.condemn(ctx, id, err)
	}
	return err
}

// A Finding is something that Check found to be wrong.
type Finding struct {
	Subject string   // a layer
	Problem string   // for people
	Images  []string // that cannot be used because of it, by name
	Done    string   // what was done about it
}

// A CheckSummary is what Check has looked at.
type CheckSummary struct {
	Images, Layers int
	Bytes          int64 // read
	Damaged        int   // layers
}

// Check looks at all layers: quickly, at their beginnings, ends and sizes, or
// reading them whole from the disk. What is damaged is given up, as it would be
// when a container asks for it, and fetched again by Run. found and progress,
// which may be nil, are called as it goes on, by one goroutine.
//
// An error is that of the caller's ctx, or of the disk.
func (s *Store) Check(ctx context.Context, quick bool, found func(Finding), progress func(layer string, bytes, total int64)) (CheckSummary, error) {
	v := s.view.Load()
	sum := CheckSummary{Images: len(v.images)}
	var read int64
	for _, id := range s.layerIDs() {
		var err error
		if quick {
			_, err = s.layers.Inspect(id)
		} else {
			err = s.layers.Verify(ctx, id, func(ctx context.Context, n int) error {
				read += int64(n)
				if progress != nil {
					progress(id, read, int64(v.bytes))
				}
				return context.Cause(ctx)
			})
		}
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		sum.Layers++
		sum.Bytes = read
		if !isLoss(err) {
			if err != nil {
				return sum, err
			}
			continue
		}
		if _, ok := s.view.Load().layers[id]; !ok {
			continue // removed meanwhile
		}
		sum.Damaged++
		f := Finding{Subject: "layer " + id, Problem: err.Error(), Done: "given up; its images are fetched again"}
		for image, r := range v.images {
			if !slices.Contains(r.Layers, id) {
				continue
			}
			f.Images = append(f.Images, nameOf(image, r))
			if !r.hasDigest() {
				f.Done = "given up; its images are fetched again if a registry has them, those of archives have to be loaded again"
			}
		}
		slices.Sort(f.Images)
		if err := s.condemn(ctx, id, err); err != nil {
			f.Done = "not given up: " + err.Error()
		}
		if found != nil {
			found(f)
		}
	}
	return sum, nil
}

// isLoss reports whether err tells that a layer is gone or damaged.
func isLoss(err error) bool {
	return fault.Is(err, fault.Unknown) || fault.Is(err, fault.NotFound)
}
