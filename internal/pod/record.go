package pod

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/compact"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/label"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/operation"
	"github.com/davit-runtime/davit/internal/store"
)

// recordVersion is the format of both kinds of record.
const recordVersion = 1

// errGone says that a pod or container was removed while somebody waited for it.
var errGone = fault.New(fault.NotFound, "", "it has been removed")

// A podState is all that is known of a pod at one moment. Immutable once stored.
type podState struct {
	Snapshot
	podMemo
	config json.RawMessage // Config in protojson
}

// A podMemo is what a pod's record has beyond the snapshot.
type podMemo struct {
	Boot   string       // the boot it was made in
	Doomed bool         // to be forgotten as soon as it holds nothing
	Place  cgroup.Place // of the holder
	Labels label.Labels // SELinux's
}

// A containerState is all that is known of a container at one moment. Immutable once stored.
type containerState struct {
	ContainerSnapshot
	containerMemo
	config json.RawMessage // Config in protojson; nil once it has exited
	packed []byte          // all that slim leaves out; nil until it has exited
}

// A bulk is what slim leaves out beside CRI messages.
type bulk struct {
	Place   cgroup.Place
	LogPath string
	User    ocispec.User
}

// slim leaves out what is big about a container that has exited, and keeps it
// packed: thousands may wait for the kubelet to remove them.
func (s *containerState) slim() *containerState {
	if s.State != Exited || s.isSlim() {
		return s
	}
	t := *s
	if t.pack() != nil {
		return s
	}
	t.Config, t.Resources, t.config = nil, nil, nil
	t.Place, t.LogPath, t.User = cgroup.Place{}, "", ocispec.User{}
	// What many of them have in common is kept once.
	for _, text := range []*string{&t.PodID, &t.Handler, &t.ImageID, (*string)(&t.State), &t.Reason, &t.StopSignal} {
		*text = unique.Make(*text).Value()
	}
	t.Held = slices.Clone(t.Held)
	for i := range t.Held {
		t.Held[i] = unique.Make(t.Held[i]).Value()
	}
	return &t
}

func (s *containerState) isSlim() bool { return s.Config == nil }

// pack sets packed. What is in there does not change any more.
func (s *containerState) pack() error {
	if s.packed != nil {
		return nil
	}
	rest, err := json.Marshal(bulk{s.Place, s.LogPath, s.User})
	if err == nil {
		s.packed, err = compact.Pack(compact.Container{Config: s.Config, Resources: s.Resources, Rest: rest})
	}
	return err
}

func (s *containerState) whole() *containerState {
	if !s.isSlim() {
		return s
	}
	t := *s
	c, err := compact.Whole(s.packed)
	var rest bulk
	if err == nil {
		err = json.Unmarshal(c.Rest, &rest)
	}
	if err != nil {
		panic("pod: what was packed cannot be unpacked: " + err.Error()) // memory is broken
	}
	t.Config, t.Resources = c.Config, c.Resources
	t.Place, t.LogPath, t.User = rest.Place, rest.LogPath, rest.User
	return &t
}

// brief is whole, but for what lists do not show.
func (s *containerState) brief() *ContainerSnapshot {
	if !s.isSlim() {
		return &s.ContainerSnapshot
	}
	c := s.ContainerSnapshot
	var err error
	if c.Config, err = compact.Brief(s.packed); err != nil {
		panic("pod: what was packed cannot be unpacked: " + err.Error())
	}
	return &c
}

// A containerMemo is what a container's record has beyond the snapshot.
type containerMemo struct {
	Doomed   bool
	Starting time.Time // when a start was last begun
	Killed   bool      // davit itself sent, or is about to send, SIGKILL
	Place    cgroup.Place
	Undo     *undo `json:",omitempty"` // of an update under way, or cut short
}

// An undo is what takes an update of limits back; Resources has what was before.
type undo struct {
	Before      []cgroup.Value
	OOMScoreAdj int64 // that the update is to set
}

// The records: a snapshot whose CRI messages are in protojson.
type (
	podRecord struct {
		Snapshot
		Config json.RawMessage // instead of Snapshot's
		Memo   podMemo
	}
	containerRecord struct {
		ContainerSnapshot
		Config, Resources json.RawMessage // instead of ContainerSnapshot's
		Memo              containerMemo
		Packed            []byte `json:",omitempty"` // spares reading those again, if this version can unpack it
	}
)

// A record is one pod or container: an immutable state that is replaced whole.
type record[S any] struct {
	id      string
	slot    operation.Slot // one operation at a time; before mu
	save    func(*S) error
	unsaved func(error)      // told of a fact that could not be saved
	changed func(was, is *S) // told of each new state, with mu held: it must not wait

	mu    sync.Mutex // held to make, save and swap a state, and for nothing else
	state cell[S]
	gone  bool
}

// A cell has a state, in the form in which it takes the least memory.
type cell[S any] struct{ kept atomic.Pointer[S] }

// A slimmer is a state that has such a form.
type slimmer[S any] interface {
	slim() *S  // returns that form; or the state itself
	whole() *S // undoes slim
}

func (c *cell[S]) Load() *S {
	s := c.kept.Load()
	if f, ok := any(s).(slimmer[S]); ok {
		return f.whole()
	}
	return s
}

func (c *cell[S]) Store(s *S) {
	if f, ok := any(s).(slimmer[S]); ok {
		s = f.slim()
	}
	c.kept.Store(s)
}

// commit replaces the state by what change makes of it, once that is saved.
func (r *record[S]) commit(change func(*S) error) error {
	return r.replace(change, func(next *S) error { return r.save(next) })
}

// amend replaces the state; the next commit saves it.
func (r *record[S]) amend(change func(*S)) error {
	return r.replace(func(s *S) error { change(s); return nil }, func(*S) error { return nil })
}

// note replaces the state even where it cannot be saved, since it is a fact
// that has come about.
func (r *record[S]) note(change func(*S) error) error {
	return r.replace(change, func(next *S) error {
		if err := r.save(next); err != nil {
			r.unsaved(err)
		}
		return nil
	})
}

func (r *record[S]) replace(change, save func(*S) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return fault.New(fault.NotFound, "", "%s: %w", r.id, errGone)
	}
	was := r.state.Load()
	next := *was
	if err := change(&next); err != nil {
		return err
	}
	if err := save(&next); err != nil {
		return err
	}
	r.state.Store(&next)
	r.changed(was, &next)
	return nil
}

// forget ends the record: dir, where nothing else is left, goes, and nothing
// is saved after.
func (r *record[S]) forget(dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	r.gone = true
	return nil
}

type pod struct {
	record[podState]
	making   *operation.Operation // that makes, or made, it; nil after a restart
	retrying atomic.Bool
	known    knowledge   // of plugins
	hidden   atomic.Bool // not listed: plugins are asked about it
}

type container struct {
	record[containerState]
	podID    string
	making   atomic.Pointer[operation.Operation] // as a pod's; nil once it has exited, too
	recipe   *recipe                             // while it is made
	retrying atomic.Bool
	known    knowledge     // of plugins
	done     chan struct{} // closed once it has exited

	// guarded by record.mu
	early    *monitor.Exit        // one that came while it was being made
	stoppers int                  // callers that wait for its end
	starting bool                 // between startBegins and startOver
	outran   bool                 // its end was heard of meanwhile
	killing  *operation.Operation // under way, or nil
}

func (c *container) held() []string { return c.state.Load().Held }
func (p *pod) held() []string       { return p.state.Load().Held }

func (c *container) hold(name string) error {
	return c.commit(func(s *containerState) error {
		s.Held = append(slices.Clip(s.Held), name)
		return nil
	})
}

func (p *pod) hold(name string) error {
	return p.commit(func(s *podState) error {
		s.Held = append(slices.Clip(s.Held), name)
		return nil
	})
}

// drop takes the last of what is held off the list. A record that cannot be
// saved only means that it will be released once more.
func (c *container) drop() {
	_ = c.note(func(s *containerState) error { s.Held = s.Held[:len(s.Held)-1]; return nil })
}

func (p *pod) drop() {
	_ = p.note(func(s *podState) error { s.Held = s.Held[:len(s.Held)-1]; return nil })
}

// enter changes the state as the table says. It returns Precondition where the
// table has nothing.
func (s *podState) enter(e event) error {
	return enter(podStates, &s.State, e, "pod "+s.ID)
}

func (s *containerState) enter(e event) error {
	return enter(containerStates, &s.State, e, "container "+s.ID)
}

func enter(table map[State]map[event]State, state *State, e event, what string) error {
	next, ok := table[*state][e]
	if !ok {
		return fault.New(fault.Precondition, "", "%s is %s", what, *state)
	}
	*state = next
	return nil
}

func (p *Pods) savePod(s *podState) error {
	r := podRecord{Snapshot: s.Snapshot, Config: s.config, Memo: s.podMemo}
	return p.saveRecord(p.podRoot(s.ID), r, p.podDir(s.ID), s.lives())
}

// lives reports whether the record is worth a copy.
func (s *podState) lives() bool { return s.State == Ready && !s.Doomed }

func (s *containerState) lives() bool {
	return (s.State == Created || s.State == Running) && !s.Doomed
}

func (p *Pods) saveContainer(s *containerState) error {
	resources, err := protojson.Marshal(s.Resources)
	if err != nil {
		return err
	}
	config := s.config
	if config == nil {
		if config, err = protojson.Marshal(s.Config); err != nil {
			return err
		}
	}
	if s.State == Exited {
		if err := s.pack(); err != nil {
			return err
		}
	}
	r := containerRecord{ContainerSnapshot: s.ContainerSnapshot, Config: config, Resources: resources, Memo: s.containerMemo, Packed: s.packed}
	return p.saveRecord(p.containerRoot(s.ID), r, p.bundle(s.ID), s.lives())
}

// recordFile is a record's name, and that of its copy.
const recordFile = "record.json"

// saveRecord saves a record in dir. Of one whose pod or container lives there is
// a copy in beside, which a boot ends as it ends those: for the case that the
// record is lost, and they are not.
func (p *Pods) saveRecord(dir string, v any, beside string, lives bool) error {
	path, spare := filepath.Join(dir, recordFile), filepath.Join(beside, recordFile)
	if !lives {
		_ = os.Remove(spare) // first: it must not outlive the record
	}
	err := p.opt.save(path, recordVersion, v)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = p.opt.save(path, recordVersion, v)
		}
	}
	if err == nil && lives {
		p.keepCopy(path, spare)
	}
	return err
}

// keepCopy does without where it cannot, also without the copy of before.
func (p *Pods) keepCopy(path, spare string) {
	if err := copyRecord(path, spare); err != nil {
		_ = os.Remove(spare)
		p.log.Debug("keep a copy of a record", "record", path, "error", err)
	}
}

func copyRecord(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return store.WriteFile(to, data, 0o600)
}

func loadPod(path string) (*podState, error) {
	var r podRecord
	if err := store.LoadJSON(path, recordVersion, &r); err != nil {
		return nil, err
	}
	s := &podState{Snapshot: r.Snapshot, podMemo: r.Memo, config: r.Config}
	s.Config = &runtimeapi.PodSandboxConfig{}
	if err := protojson.Unmarshal(r.Config, s.Config); err != nil {
		return nil, err
	}
	if s.ID != filepath.Base(filepath.Dir(path)) {
		return nil, fault.New(fault.Invalid, "", "%s is the record of %q", path, s.ID)
	}
	return s, nil
}

func loadContainer(path string) (*containerState, error) {
	var r containerRecord
	if err := store.LoadJSON(path, recordVersion, &r); err != nil {
		return nil, err
	}
	if filepath.Base(filepath.Dir(path)) != r.ID {
		return nil, fault.New(fault.Invalid, "", "%s is the record of %q", path, r.ID)
	}
	s := &containerState{ContainerSnapshot: r.ContainerSnapshot, containerMemo: r.Memo, config: r.Config}
	s.Config, s.Resources = &runtimeapi.ContainerConfig{}, &runtimeapi.LinuxContainerResources{}
	if s.State == Exited && compact.Readable(r.Packed) {
		s.packed = r.Packed
		return s.slim(), nil
	}
	if err := protojson.Unmarshal(r.Config, s.Config); err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(r.Resources, s.Resources); err != nil {
		return nil, err
	}
	return s.slim(), nil
}
