package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// How a pod and its CNI plugins part when DEL fails: docs/decisions/0022.
const (
	defaultDelPatience = 10 * time.Minute
	delBudget          = time.Minute // of one DEL that nobody waits for
	owedFirst          = time.Minute // waits between those
	owedMost           = time.Hour
)

// A debt is a DEL that a pod has gone without.
type debt struct {
	lease *lease
	since time.Time
	next  time.Time // it is tried again
	wait  time.Duration
	err   error // of the last try
}

// debts are the DELs that fail. The zero value is none.
type debts struct {
	mu      sync.Mutex
	failing map[string]time.Time // by pod that waits for it: since when
	owed    map[string]*debt     // by pod that is gone
}

// patient notes that a pod's DEL has failed, and reports whether the pod is to
// go on waiting.
func (d *debts) patient(pod string, patience time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	since, ok := d.failing[pod]
	if !ok {
		since = time.Now()
		if d.failing == nil {
			d.failing = map[string]time.Time{}
		}
		d.failing[pod] = since
	}
	return time.Since(since) < patience
}

// owe notes a DEL that failed with err, of a pod that does not wait for it.
func (d *debts) owe(l *lease, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	since, ok := d.failing[l.Pod]
	if !ok {
		since = time.Now()
	}
	delete(d.failing, l.Pod)
	if d.owed == nil {
		d.owed = map[string]*debt{}
	}
	d.owed[l.Pod] = &debt{lease: l, since: since, next: time.Now().Add(owedFirst), wait: owedFirst, err: err}
}

func (d *debts) paid(pod string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failing, pod)
	delete(d.owed, pod)
}

func (d *debts) has(pod string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.owed[pod] != nil
}

// due returns the leases of which DEL is to be tried again at a time, and sees
// to their next turn.
func (d *debts) due(at time.Time) []*lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	var due []*lease
	for _, o := range d.owed {
		if !o.next.After(at) {
			o.wait = min(2*o.wait, owedMost)
			o.next = at.Add(o.wait)
			due = append(due, o.lease)
		}
	}
	return due
}

// unpaid notes how the last try went.
func (d *debts) unpaid(pod string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.owed[pod]; o != nil {
		o.err = err
	}
}

// Owed says of which pods, gone by now, CNI plugins have not taken back what
// they gave; one line each, for people. It never blocks.
func (n *Network) Owed() []string {
	n.debts.mu.Lock()
	defer n.debts.mu.Unlock()
	var all []string
	for _, pod := range slices.Sorted(maps.Keys(n.debts.owed)) {
		o := n.debts.owed[pod]
		all = append(all, fmt.Sprintf("CNI DEL of pod %s/%s (%.13s), which is gone, has failed since %s: %v",
			o.lease.Namespace, o.lease.Name, pod, o.since.Format(time.RFC3339), o.err))
	}
	return all
}

// detachPlugins is Detach by CNI. A pod whose DEL has failed for long goes
// without: the lease stays, and DEL is tried on.
func (n *Network) detachPlugins(ctx context.Context, l *lease) error {
	if n.debts.has(l.Pod) {
		return nil
	}
	err := n.release(ctx, l)
	if err == nil {
		n.debts.paid(l.Pod)
		return nil
	}
	patience := n.plugins.config.Load().delPatience
	if errors.Is(ctx.Err(), context.Canceled) || n.debts.patient(l.Pod, patience) {
		return err
	}
	n.debts.owe(l, err)
	slog.ErrorContext(ctx, "network: a pod goes though its CNI plugins did not take back what they gave; that is tried on",
		"pod", l.Pod, "name", l.Name, "namespace", l.Namespace, "after", patience, "error", err)
	return nil
}

// settle tries DELs that are owed again, until ctx ends.
func (n *Network) settle(ctx context.Context) {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			n.pay(ctx, now)
		}
	}
}

// pay tries those that are due at a time, one after the other.
func (n *Network) pay(ctx context.Context, at time.Time) {
	for _, l := range n.debts.due(at) {
		limited, cancel := context.WithTimeout(ctx, delBudget)
		err := n.release(limited, l)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.debts.unpaid(l.Pod, err)
			slog.WarnContext(ctx, "network: CNI plugins still do not take back what a pod had", "pod", l.Pod, "error", err)
			continue
		}
		n.debts.paid(l.Pod)
		slog.InfoContext(ctx, "network: CNI plugins took back what a pod had at last", "pod", l.Pod)
	}
}
