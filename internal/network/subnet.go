package network

import (
	"crypto/sha256"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// defaultSubnets returns the subnets of a bridge that nobody configured: those
// it has, or else 10.88.0.0/16, or the next that is not in use on this host
// (podman starts with the same), and the machine's own IPv6 prefix, unless the
// host has no IPv6.
func defaultSubnets(bridge string) []netip.Prefix {
	subnets := []netip.Prefix{free4(bridge)}
	if sysctlIs("net/ipv6/conf/all/disable_ipv6", "0") {
		subnets = append(subnets, localPrefix())
	}
	return subnets
}

func free4(bridge string) netip.Prefix {
	var taken []netip.Prefix
	addrs, _ := netlink.AddrList(nil, netlink.FAMILY_V4) // without it the first will do, and the bridge says so if not
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if !ok {
			continue
		}
		if linkName(a.LinkIndex) == bridge && p.Bits() <= 30 && p.Addr() == gateway(p) {
			return p.Masked()
		}
		taken = append(taken, p)
	}
	routes, _ := netlink.RouteList(nil, netlink.FAMILY_V4)
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 && (r.LinkIndex == 0 || linkName(r.LinkIndex) != bridge) {
			taken = append(taken, p)
		}
	}
	return firstFree(taken)
}

// firstFree returns the first of 10.88.0.0/16 to 10.127.0.0/16 that overlaps
// none of taken; the very first if all do.
func firstFree(taken []netip.Prefix) netip.Prefix {
next:
	for second := byte(88); second < 128; second++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		for _, t := range taken {
			if t.Overlaps(p) {
				continue next
			}
		}
		return p
	}
	return netip.MustParsePrefix("10.88.0.0/16")
}

// localPrefix returns the machine's own unique local /64, the same at each
// start. RFC 4193, section 3.2.2.
func localPrefix() netip.Prefix {
	id, _ := os.ReadFile("/etc/machine-id") // without one: the same as on other such machines, which masquerading allows
	sum := sha256.Sum256(append([]byte("davit pods "), id...))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}
