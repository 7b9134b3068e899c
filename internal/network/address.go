package network

import (
	"net"
	"net/netip"

	"github.com/davit-runtime/davit/internal/fault"
)

// A pool hands out the addresses of one subnet: the lowest free one after the
// last handed out, so that an address rests as long as possible before it is
// used again. The first address is the gateway's. Its owner locks it.
type pool struct {
	prefix netip.Prefix
	used   map[netip.Addr]bool
	last   netip.Addr
}

func newPool(prefix netip.Prefix) (*pool, error) {
	if !prefix.IsValid() || prefix.Addr().Is4In6() || prefix.Addr().BitLen()-prefix.Bits() < 2 {
		return nil, fault.New(fault.Invalid, "", "subnet %s has no room for pods", prefix)
	}
	prefix = prefix.Masked()
	return &pool{prefix: prefix, used: map[netip.Addr]bool{}, last: gateway(prefix)}, nil
}

// gateway returns the host's own address in a subnet.
func gateway(prefix netip.Prefix) netip.Addr { return prefix.Masked().Addr().Next() }

// take returns a free address; false if there is none.
func (p *pool) take() (netip.Addr, bool) {
	for a, wrapped := p.last.Next(), false; ; a = a.Next() {
		if !p.prefix.Contains(a) || a.Is4() && !p.prefix.Contains(a.Next()) { // past the end, or the broadcast address
			if wrapped {
				return netip.Addr{}, false
			}
			a, wrapped = gateway(p.prefix), true
			continue
		}
		if !p.used[a] {
			p.used[a], p.last = true, a
			return a, true
		}
	}
}

// mark says that a is in use, if it is of this subnet.
func (p *pool) mark(a netip.Addr) {
	if !p.prefix.Contains(a) {
		return
	}
	p.used[a] = true
	if p.last.Less(a) {
		p.last = a
	}
}

// hardwareAddr returns the MAC address that goes with a pod's address: the
// same for the same address, so that neighbours' caches stay right when an
// address is used again.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}
