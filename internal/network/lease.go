package network

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/store"
)

const (
	leaseVersion = 1
	driverBridge = "bridge"
	driverCNI    = "cni"
)

// A lease is what a pod holds of the network, and all that Detach needs to
// give it back: one file for each pod, written before anything is acquired.
// A lease in memory is immutable.
type lease struct {
	Pod, Name, Namespace, UID string
	Driver                    string
	NetNS                     string
	Interface                 string
	Addrs                     []netip.Addr    `json:",omitempty"` // of the bridge
	Ports                     []Port          `json:",omitempty"`
	List                      json.RawMessage `json:",omitempty"` // CNI: the configuration as used
	Capabilities              map[string]any  `json:",omitempty"` // CNI: as given to ADD
}

// leases are all leases, in memory and on disk, and what is free beside them.
type leases struct {
	dir string

	mu      sync.Mutex
	pools   []*pool
	held    map[string]*lease
	leaving map[string]bool // pods whose host ports are being closed; their lease stands until that is done
}

// loadLeases reads the leases below dir. One that cannot be read is moved into
// damaged, or removed if it is not even JSON, as those of the bridge may be
// after a power cut, which are not fsynced. Of a pod that is gone only the DEL of
// plugins needs it; for a pod that lives Collect makes it anew.
func loadLeases(dir, damaged string) (*leases, error) {
	const op = "network.Open"
	ls := &leases{dir: dir, held: map[string]*lease{}, leaving: map[string]bool{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.Internal, op, "%w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		switch {
		case strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), ".json."):
			_ = os.Remove(filepath.Join(dir, e.Name())) // a write cut short
			continue
		case !ok || strings.HasPrefix(id, "."):
			continue
		}
		l := &lease{}
		if data, err := os.ReadFile(ls.path(id)); err == nil && !json.Valid(data) {
			slog.Warn("network: a pod's lease is torn, as after a power cut", "pod", id, "error", os.Remove(ls.path(id)))
			continue
		}
		if err := store.LoadJSON(ls.path(id), leaseVersion, l); err != nil {
			aside := filepath.Join(damaged, "lease-"+e.Name())
			slog.Error("network: a pod's lease cannot be read and is moved aside", "pod", id, "to", aside, "error", errors.Join(err, store.SetAside(ls.path(id), aside)))
			continue
		}
		l.Pod = id
		ls.held[id] = l
	}
	return ls, nil
}

// restore makes the lease of a pod anew that is connected and has none.
func (ls *leases) restore(l *lease) error {
	ls.mu.Lock()
	ls.held[l.Pod] = l
	ls.mu.Unlock()
	return ls.save(l)
}

// setPools makes new pods' addresses come from the current subnets.
func (ls *leases) setPools(r *ranges) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.pools = nil
	for _, s := range r.Current {
		p, err := newPool(s)
		if err != nil {
			continue // CheckSubnets has seen to that
		}
		for _, l := range ls.held {
			for _, a := range l.Addrs {
				p.mark(a)
			}
		}
		for _, f := range r.Former {
			if g := gateway(f); s.Contains(g) {
				p.used[g] = true
			}
		}
		ls.pools = append(ls.pools, p)
	}
}

func (ls *leases) path(id string) string { return filepath.Join(ls.dir, id+".json") }

// get returns the pod's lease, or nil.
func (ls *leases) get(id string) *lease {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.held[id]
}

// all returns every lease whose ports are to be open, sorted by pod.
func (ls *leases) all() []*lease {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var out []*lease
	for id, l := range ls.held {
		if !ls.leaving[id] {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *lease) int { return strings.Compare(a.Pod, b.Pod) })
	return out
}

// take gives l addresses if it is the bridge's, and writes it down. Exists if
// the pod has a lease; Precondition if a host port is taken; Exhausted if no
// address is left. A lease that cannot be written is not held.
func (ls *leases) take(l *lease) (*lease, error) {
	if l.Pod == "" || filepath.Base(l.Pod) != l.Pod || strings.HasPrefix(l.Pod, ".") {
		return nil, fault.New(fault.Invalid, "network.Attach", "pod ID %q", l.Pod)
	}
	l, err := ls.reserve(l)
	if err != nil {
		return nil, err
	}
	if err := ls.save(l); err != nil {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		ls.forget(l)
		return nil, err
	}
	return l, nil
}

func (ls *leases) save(l *lease) error {
	// What plugins keep outlives a boot, so what undoes it must, too. What the
	// bridge gives out ends with the boot.
	save := store.SaveJSON
	if l.Driver == driverCNI {
		save = store.SaveJSONDurable
	}
	return save(ls.path(l.Pod), leaseVersion, l)
}

func (ls *leases) reserve(l *lease) (*lease, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.held[l.Pod] != nil {
		return nil, fault.New(fault.Exists, "network.Attach", "pod %s is attached already", l.Pod)
	}
	c := *l
	if c.Driver == driverBridge {
		for _, other := range ls.held {
			if other.Driver != driverBridge {
				continue // its plugins judge
			}
			if mine, ok := conflict(c.Ports, other.Ports); ok {
				return nil, fault.New(fault.Precondition, "network.Attach",
					"host port %s is taken by pod %s/%s (%s)", mine, other.Namespace, other.Name, other.Pod)
			}
		}
		c.Addrs = nil
		for _, p := range ls.pools {
			a, ok := p.take()
			if !ok {
				ls.forget(&c)
				return nil, fault.New(fault.Exhausted, "network.Attach", "no free address in %s", p.prefix)
			}
			c.Addrs = append(c.Addrs, a)
		}
	}
	ls.held[c.Pod] = &c
	return &c, nil
}

// leave says that the pod's host ports are about to be closed: nobody opens
// them again, and nobody else has them yet.
func (ls *leases) leave(id string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.leaving[id] = true
}

// drop forgets the lease, on disk first. Its addresses and ports are free.
func (ls *leases) drop(l *lease) error {
	if err := os.Remove(ls.path(l.Pod)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Internal, "network.Detach", "%w", err)
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.forget(l)
	return nil
}

// forget takes the lease out of memory. ls.mu must be held.
func (ls *leases) forget(l *lease) {
	delete(ls.held, l.Pod)
	delete(ls.leaving, l.Pod)
	for _, a := range l.Addrs {
		for _, p := range ls.pools {
			delete(p.used, a)
		}
	}
}
