package network

import (
	"context"
	"errors"
	"log/slog"
	"slices"
)

// Collect releases what is held for pods not in live, and puts back what live
// ones need: leases that are lost, bridge, table and host ports, which a reboot
// or somebody else may have taken. It goes on past errors and returns them
// together; a lease that could not be released stays, and Run goes on trying if
// it is one of plugins.
//
// It is called once, before Attach.
func (n *Network) Collect(ctx context.Context, live []Attached) error {
	errs := n.restoreLeases(ctx, live)
	ids := make([]string, len(live))
	for i, p := range live {
		ids[i] = p.ID
	}
	needed := false
	for _, l := range n.leases.all() {
		if !slices.Contains(ids, l.Pod) {
			err := n.release(ctx, l)
			if err != nil && l.Driver == driverCNI {
				n.debts.owe(l, err)
			}
			errs = append(errs, err)
		} else if l.Driver == driverBridge {
			needed = true
		}
	}
	kept := n.leases.all()
	r := n.cidr.ranges.Load()
	n.cidr.ranges.Store(r.followedBy(r.Current, kept))
	n.leases.setPools(n.cidr.ranges.Load())
	errs = append(errs, n.plugins.collect(ctx, n.choice.Load(), ids))
	if needed {
		errs = append(errs, n.restore())
	}
	strays, err := n.bridge.strays(kept)
	n.mu.Lock()
	n.strays = strays
	n.mu.Unlock()
	return errors.Join(append(errs, err)...)
}

// restoreLeases makes leases anew that have been lost while their pods live.
// The configuration that plugins were given is then the one of now.
func (n *Network) restoreLeases(ctx context.Context, live []Attached) (errs []error) {
	for _, p := range live {
		if p.Driver == "" || n.leases.get(p.ID) != nil {
			continue // it is not connected for sure, or is well
		}
		p.Ports, _ = checkPorts(p.Ports) // as without an error by Attach
		l := newLease(p.Pod, p.Driver)
		if p.Driver == driverCNI {
			l.List = n.choice.Load().raw
			l.Capabilities, _ = capabilities(p.Pod) // likewise
		} else {
			l.Addrs = p.Addrs
		}
		slog.WarnContext(ctx, "network: the lease of a pod that lives was lost, and is made anew", "pod", p.ID, "name", p.Name, "addresses", p.Addrs)
		errs = append(errs, n.leases.restore(l))
	}
	return errs
}
