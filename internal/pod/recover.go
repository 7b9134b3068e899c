package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/store"
)

// How long recovery waits for davit-monitor, for the network to collect, and
// for one update to be taken back.
const (
	listBudget    = 30 * time.Second
	collectBudget = 5 * time.Second
	undoBudget    = 5 * time.Second
)

// A verdict is what recovery makes of a pod or container.
type verdict string

const (
	keep    verdict = "keep"    // as its record says
	settle  verdict = "settle"  // keep the record; release what it holds
	restart verdict = "restart" // finish a start that was cut short
	bury    verdict = "bury"    // it has exited; the exit is known
	miss    verdict = "miss"    // it is lost
	discard verdict = "discard" // release what it holds, forget it
)

// A podFinding is what recovery sees of a pod.
type podFinding struct {
	state  State
	doomed bool
	there  bool // made in this boot, and its directory is there
	holder bool // it has a holder, or needs none
}

func (f podFinding) verdict() verdict {
	switch {
	case f.doomed || f.state == Preparing:
		return discard
	case f.state != Ready:
		return settle
	case !f.there || !f.holder:
		return miss
	}
	return keep
}

// A containerFinding is what recovery sees of a container.
type containerFinding struct {
	state    State
	doomed   bool
	orphan   bool // no record of its pod is there
	starting bool // a start was begun
	known    bool // to davit-monitor
	exit     bool // davit-monitor has its exit
}

func (f containerFinding) verdict() verdict {
	switch {
	case f.doomed || f.orphan || f.state == Preparing:
		return discard
	case f.state == Exited:
		return keep
	case f.exit:
		return bury
	case !f.known:
		return miss
	case f.state == Created && f.starting:
		return restart
	}
	return keep
}

// recover loads what is on disk, compares it with what is there, and notes
// what became of each pod and container. What takes time is left to Serve.
func (p *Pods) recover(ctx context.Context) error {
	listing, cancel := context.WithTimeout(ctx, listBudget)
	defer cancel()
	all, err := p.opt.Processes.List(listing)
	if err != nil {
		return fmt.Errorf("ask davit-monitor which containers there are: %w", err)
	}
	known := make(map[string]monitor.Status, len(all))
	for _, status := range all {
		known[status.ID] = status
	}
	load(ctx, p, "pods", loadPod, func(s *podState) { p.addPod(s) })
	load(ctx, p, "containers", loadContainer, func(s *containerState) { p.addContainer(s) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, pod := range p.pods {
		p.recoverPod(pod, known)
	}
	for _, c := range p.containers {
		p.recoverContainer(ctx, c, known)
	}
	p.findOrphans(known)
	p.collectNetwork(ctx)
	return nil
}

// load reads the records of a kind, several at once, and adds them one by one.
// One that cannot be read is moved aside, and its copy takes its place; without
// one, what it held counts as an orphan's.
func load[S interface{ lives() bool }](ctx context.Context, p *Pods, kind string, read func(path string) (S, error), add func(S)) {
	var adding sync.Mutex
	var readers errgroup.Group
	readers.SetLimit(runtime.GOMAXPROCS(0))
	ids := append(subdirectories(filepath.Join(p.opt.Root, kind)), subdirectories(filepath.Join(p.opt.State, kind))...)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if ctx.Err() != nil {
			break
		}
		readers.Go(func() error {
			path := filepath.Join(p.opt.Root, kind, id, recordFile)
			spare := filepath.Join(p.opt.State, kind, id, recordFile)
			s, err := read(path)
			if err != nil {
				p.setAside(kind, id, path, err)
				if s, err = read(spare); err != nil {
					return nil
				}
				put := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), copyRecord(spare, path))
				p.log.Error("a record was lost; its copy takes its place", "record", path, "error", put)
			} else if s.lives() {
				p.keepCopy(path, spare) // it may be the one that was lost
			}
			adding.Lock()
			defer adding.Unlock()
			add(s)
			return nil
		})
	}
	_ = readers.Wait()
}

// setAside moves a record that cannot be read aside, if there is one.
func (p *Pods) setAside(kind, id, path string, why error) {
	if fault.Is(why, fault.NotFound) {
		return
	}
	aside := filepath.Join(p.opt.Root, "damaged", kind+"-"+id+".json")
	p.log.Error("unreadable record, moved aside", "record", path, "to", aside, "error", errors.Join(why, store.SetAside(path, aside)))
}

func (p *Pods) recoverPod(pod *pod, known map[string]monitor.Status) {
	s := pod.state.Load()
	_, err := os.Stat(p.podDir(pod.id))
	holder, alive := known[pod.id]
	v := podFinding{
		state: s.State, doomed: s.Doomed,
		there:  s.Boot == p.opt.Host.BootID && err == nil,
		holder: !slices.Contains(s.Held, "holder") || alive && holder.Exit == nil,
	}.verdict()
	if v != discard {
		p.podKeys[keyOfPod(s.Config)] = pod
	}
	if slices.Contains(s.Held, "labels") {
		if err := p.opt.Host.Labels.Keep(s.Labels); err != nil {
			p.log.Warn("another pod may get the same categories", "pod", pod.id, "error", err)
		}
	}
	switch v {
	case keep:
		if slices.Contains(s.Held, "network") {
			p.leave(func(ctx context.Context) { p.checkNetwork(ctx, pod) })
		}
	case miss:
		_ = pod.note(func(s *podState) error { return s.enter(lost) })
		p.log.Warn("pod did not outlive davitd", "pod", pod.id, "name", s.Config.GetMetadata().GetName())
	case discard:
		_ = pod.note(func(s *podState) error { s.Doomed = true; return nil })
	}
	if v == discard || v != keep && len(s.Held) > 0 {
		p.leave(func(ctx context.Context) {
			if p.settlePod(ctx, pod) != nil {
				p.retryPod(pod)
			}
		})
	}
}

// checkNetwork tells the log if a pod's network is not as it was made.
func (p *Pods) checkNetwork(ctx context.Context, pod *pod) {
	ctx, cancel := context.WithTimeout(ctx, releaseBudget)
	defer cancel()
	s := pod.state.Load()
	if err := p.opt.Network.Check(ctx, p.networkPod(s)); err != nil && ctx.Err() == nil {
		p.log.Warn("the pod's network is not as it was made", "pod", pod.id, "error", err)
	}
}

func (p *Pods) recoverContainer(ctx context.Context, c *container, known map[string]monitor.Status) {
	s := c.state.kept.Load()
	status, ok := known[c.id]
	pod := p.pods[c.podID]
	v := containerFinding{
		state: s.State, doomed: s.Doomed, orphan: pod == nil,
		starting: !s.Starting.IsZero(), known: ok, exit: status.Exit != nil,
	}.verdict()
	if v != discard {
		p.containerKeys[keyOfContainer(c.podID, s.brief().Config)] = c
	}
	if (v == keep || v == restart) && s.State != Exited {
		p.recoverUpdate(ctx, c)
	}
	switch v {
	case restart:
		p.leave(func(ctx context.Context) {
			if err := p.StartContainer(ctx, c.id); err != nil {
				p.log.Warn("finish a container's start", "container", c.id, "error", err)
			}
		})
	case bury:
		p.leave(func(context.Context) { p.sweep(c) })
		_ = c.note(func(s *containerState) error { return s.exit(*status.Exit) })
		c.end()
	case miss:
		p.leave(func(context.Context) { p.sweep(c) })
		_ = c.note(func(s *containerState) error { return s.lose() })
		c.end()
		p.log.Warn("container is lost", "container", c.id, "name", s.brief().Config.GetMetadata().GetName())
	case discard:
		_ = c.note(func(s *containerState) error { s.Doomed = true; return nil })
		p.leave(func(ctx context.Context) {
			if p.removeContainer(ctx, c) != nil {
				p.retryContainer(c)
			}
		})
	}
}

// recoverUpdate takes back an update of limits that was cut short.
func (p *Pods) recoverUpdate(ctx context.Context, c *container) {
	if c.state.Load().Undo == nil {
		return
	}
	p.log.Info("an update of limits was cut short and is taken back", "container", c.id)
	ctx, cancel := context.WithTimeout(ctx, undoBudget)
	defer cancel()
	if err := p.undoUpdate(ctx, c); err != nil {
		p.log.Warn("it could not be, and will be tried again", "container", c.id, "error", err)
		p.leave(func(context.Context) { p.retryUndo(c) })
	}
}

// leave leaves f to Serve.
func (p *Pods) leave(f func(context.Context)) { p.leftovers = append(p.leftovers, f) }

// findOrphans leaves to Serve what is there without a record.
func (p *Pods) findOrphans(known map[string]monitor.Status) {
	containers, pods := map[string]bool{}, map[string]bool{}
	for id := range known {
		containers[id] = true
	}
	for _, dir := range []string{p.opt.Root, p.opt.State} {
		for _, id := range subdirectories(filepath.Join(dir, "containers")) {
			containers[id] = true
		}
		for _, id := range subdirectories(filepath.Join(dir, "pods")) {
			pods[id] = true
		}
	}
	for id := range containers {
		if p.containers[id] == nil && p.pods[id] == nil {
			p.leaveOrphan("remove a container without a record", id, p.removeOrphan)
		}
	}
	for id := range pods {
		if p.pods[id] == nil {
			p.leaveOrphan("remove a pod without a record", id, p.removeOrphanPod)
		}
	}
}

func (p *Pods) leaveOrphan(what, id string, remove func(context.Context, string) error) {
	p.log.Warn(what, "id", id)
	attempt := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, releaseBudget)
		defer cancel()
		return remove(ctx, id)
	}
	p.leave(func(ctx context.Context) {
		if attempt(ctx) != nil {
			p.retry(what, id, attempt)
		}
	})
}

func (p *Pods) removeOrphan(ctx context.Context, id string) error {
	if err := p.opt.Processes.Remove(ctx, id); err != nil {
		return err
	}
	if err := p.opt.mounts.detach(p.trees(id)); err != nil {
		return err
	}
	if err := p.opt.Rootfs.UnmountVolumes(ctx, id); err != nil {
		return err
	}
	if err := p.opt.Rootfs.Unmount(ctx, id); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(p.bundle(id)), os.RemoveAll(p.containerRoot(id)))
}

func (p *Pods) removeOrphanPod(ctx context.Context, id string) error {
	dir := p.podDir(id)
	err := errors.Join(
		p.opt.Processes.Remove(ctx, id),
		p.opt.mounts.unmount(filepath.Join(dir, "pid")),
		p.opt.mounts.unmount(p.shm(id)),
		p.opt.Namespaces.Release(ctx, dir))
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(p.podRoot(id)))
}

// collectNetwork releases what the network holds for pods that are not there.
// It must be over before a pod is made, which it would take for such a one.
func (p *Pods) collectNetwork(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, collectBudget)
	defer cancel()
	var live []network.Attached
	for _, pod := range p.pods {
		s := pod.state.Load()
		if !slices.Contains(s.Held, "network") {
			continue
		}
		a := network.Attached{Pod: p.networkPod(s)}
		if s.State == Ready { // else it may have given back what it had
			a.Result = s.Network
		}
		live = append(live, a)
	}
	if err := p.opt.Network.Collect(ctx, live); err != nil {
		p.log.Warn("collect what the network holds for pods that are gone", "error", err)
	}
}

// subdirectories returns the names in dir that may be IDs.
func subdirectories(dir string) []string {
	entries, _ := os.ReadDir(dir) // made by Open
	var ids []string
	for _, e := range entries {
		if len(e.Name()) == idDigits && e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids
}
