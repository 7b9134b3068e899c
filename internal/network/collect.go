package network

import (
	"context"
	"errors"
	"slices"
)

// Collect releases what is held for pods not in live, and puts back what live
// ones need: bridge, table and host ports, which a reboot or somebody else may
// have taken. It goes on past errors and returns them together; a lease that
// could not be released stays, and Run goes on trying if it is one of plugins.
//
// It is called once, before Attach.
func (n *Network) Collect(ctx context.Context, live []string) error {
	var errs []error
	needed := false
	for _, l := range n.leases.all() {
		if !slices.Contains(live, l.Pod) {
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
	errs = append(errs, n.plugins.collect(ctx, n.choice.Load(), live))
	if needed {
		errs = append(errs, n.restore())
	}
	strays, err := n.bridge.strays(kept)
	n.mu.Lock()
	n.strays = strays
	n.mu.Unlock()
	return errors.Join(append(errs, err)...)
}
