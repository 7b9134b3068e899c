package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/davit-runtime/davit/internal/fault"
)

// String returns a port as people write it: tcp 0.0.0.0:8080.
func (p Port) String() string {
	if !p.HostIP.IsValid() {
		return fmt.Sprintf("%s %d", p.Protocol, p.HostPort)
	}
	return fmt.Sprintf("%s %s", p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort))
}

// overlaps reports whether a and b claim the same packets.
func (p Port) overlaps(q Port) bool {
	if p.Protocol != q.Protocol || p.HostPort != q.HostPort {
		return false
	}
	a, b := p.HostIP.Unmap(), q.HostIP.Unmap()
	switch {
	case !a.IsValid() || !b.IsValid():
		return true
	case a.Is4() != b.Is4():
		return false
	}
	return a == b || a.IsUnspecified() || b.IsUnspecified()
}

// conflict returns the first of mine that claims what one of theirs has.
func conflict(mine, theirs []Port) (Port, bool) {
	for _, m := range mine {
		if slices.ContainsFunc(theirs, m.overlaps) {
			return m, true
		}
	}
	return Port{}, false
}

// checkPorts returns the ports without repetitions, or Invalid.
func checkPorts(ports []Port) ([]Port, error) {
	const op = "network.Attach"
	var out []Port
	for _, p := range ports {
		p.HostIP = p.HostIP.Unmap().WithZone("")
		switch {
		case protocols[p.Protocol] == 0:
			return nil, fault.New(fault.Invalid, op, "host port %s: unknown protocol %q", p, p.Protocol)
		case p.HostPort == 0 || p.ContainerPort == 0:
			return nil, fault.New(fault.Invalid, op, "host port %s to %d: no port may be 0", p, p.ContainerPort)
		case p.HostIP == netip.IPv6Loopback():
			return nil, fault.New(fault.Invalid, op, "host port %s: the kernel cannot forward from ::1; use 127.0.0.1", p)
		case slices.Contains(out, p):
			continue
		}
		for _, q := range out {
			if q.Protocol == p.Protocol && q.HostPort == p.HostPort && q.HostIP == p.HostIP {
				return nil, fault.New(fault.Invalid, op, "host port %s goes to both %d and %d", p, q.ContainerPort, p.ContainerPort)
			}
		}
		out = append(out, p)
	}
	return out, nil
}
