package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A bridge is the link that the pods of the built-in network hang on.
type bridge struct {
	name    string
	subnets func() []netip.Prefix
	mtu     int // 0: that of the default route's link

	mu      sync.Mutex // held while the bridge is made, so that two do not
	made    master     // zero: not known to be there
	trouble error      // of the last attempt to make it
	bare    bool       // made anew: pods' links that were on its predecessor may hang in the air
}

// A master is a bridge as pods' links need to know it.
type master struct {
	index, mtu int
	hardware   net.HardwareAddr
}

// ensure makes the bridge, or what it lacks.
func (b *bridge) ensure() (master, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made.index != 0 {
		return b.made, nil
	}
	b.trouble = b.make()
	return b.made, b.trouble
}

// check finds out whether the bridge is still there and as it was made; ensure
// then makes it again if not.
func (b *bridge) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	link, err := netlink.LinkByName(b.name)
	if err != nil || link.Attrs().Index != b.made.index || link.Attrs().Flags&net.FlagUp == 0 {
		b.made = master{}
		return
	}
	have, err := addressesOf(link)
	if err != nil || len(b.missing(have)) > 0 {
		b.made = master{}
	}
}

// wanted reports whether there is, or was to be, a bridge.
func (b *bridge) wanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.made.index != 0 || b.trouble != nil
}

// state returns why the bridge could not be made, if so.
func (b *bridge) state() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.trouble
}

// make does ensure's work. b.mu must be held.
func (b *bridge) make() error {
	mtu := b.mtu
	if mtu == 0 {
		mtu = defaultMTU()
	}
	link, err := netlink.LinkByName(b.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		// A MAC address of its own: else the bridge's follows its ports'.
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: b.name, MTU: mtu, HardwareAddr: localAddr(b.name)}}
		if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make bridge %s: %w", b.name, err)
		}
		b.bare = true
		link, err = netlink.LinkByName(b.name)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.name, err)
	}
	if link.Type() != "bridge" {
		return fault.New(fault.Precondition, "", "link %s is a %s, not a bridge: name another one in the configuration", b.name, link.Type())
	}
	if err := b.free(link.Attrs().Index); err != nil {
		return err
	}
	if err := b.settings(); err != nil {
		return err
	}
	have, err := addressesOf(link)
	if err != nil {
		return err
	}
	for _, p := range b.missing(have) {
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s to bridge %s: %w", p, b.name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up bridge %s: %w", b.name, err)
	}
	b.made = master{link.Attrs().Index, mtu, link.Attrs().HardwareAddr}
	return nil
}

// missing returns the gateway addresses that are not in have.
func (b *bridge) missing(have []netlink.Addr) []netip.Prefix {
	var out []netip.Prefix
next:
	for _, s := range b.subnets() {
		want := netip.PrefixFrom(gateway(s), s.Bits())
		for _, h := range have {
			if h.IPNet.String() == want.String() {
				continue next
			}
		}
		out = append(out, want)
	}
	return out
}

// free returns Precondition if another link has addresses of our subnets.
func (b *bridge) free(index int) error { return inUse(b.subnets(), index) }

// inUse returns Precondition if a link other than ours has addresses of subnets.
func inUse(subnets []netip.Prefix, ours int) error {
	have, err := addressesOf(nil)
	if err != nil {
		return err
	}
	for _, h := range have {
		p, ok := prefixOf(h.IPNet)
		if !ok || h.LinkIndex == ours {
			continue
		}
		for _, s := range subnets {
			if s.Overlaps(p) {
				return fault.New(fault.Precondition, "", "subnet %s is in use on this host: link %s has %s; configure another",
					s, linkName(h.LinkIndex), p)
			}
		}
	}
	return nil
}

// settings turns on what forwarding needs. Forwarding is the machine's
// setting, not davit's: it is only written if it is off, and it stays.
func (b *bridge) settings() error {
	for _, s := range b.subnets() {
		if s.Addr().Is4() {
			if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
				return err
			}
			// So that the host itself reaches host ports by 127.0.0.1.
			if err := setSysctl("net/ipv4/conf/"+b.name+"/route_localnet", "1"); err != nil {
				return err
			}
			continue
		}
		if err := setSysctl("net/ipv6/conf/"+b.name+"/disable_ipv6", "0"); err != nil {
			return err
		}
		if err := forward6(); err != nil {
			return err
		}
	}
	return nil
}

// forward6 turns on IPv6 forwarding. A host that forwards ignores router
// advertisements, and so would lose its default route, unless accept_ra is 2.
//
// kernel: ip-sysctl.rst, accept_ra.
func forward6() error {
	const all = "net/ipv6/conf/all/forwarding"
	if sysctlIs(all, "1") {
		return nil
	}
	links, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return err
	}
	for _, l := range links {
		path := "net/ipv6/conf/" + l.Name() + "/accept_ra"
		if l.Name() != "all" && l.Name() != "default" && l.Name() != "lo" && sysctlIs(path, "1") {
			if err := setSysctl(path, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return setSysctl(all, "1")
}

// destroy deletes the bridge. The pods' ends of it go with their namespaces.
func (b *bridge) destroy() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made, b.trouble = master{}, nil
	link, err := netlink.LinkByName(b.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if link.Type() != "bridge" {
		return nil // not ours
	}
	return netlink.LinkDel(link)
}

// rejoin puts links of pods that have lost their bridge back on it.
func (b *bridge) rejoin(pods []*lease) error {
	m, err := b.ensure()
	if err != nil {
		return err
	}
	b.mu.Lock()
	bare := b.bare
	b.bare = false
	b.mu.Unlock()
	if !bare {
		return nil
	}
	var errs []error
	for _, l := range pods {
		link, err := netlink.LinkByName(vethName(l.Pod))
		if err != nil || link.Attrs().MasterIndex != 0 {
			continue // it is not there, which is for the pod's owner to see, or it is in place
		}
		if err = netlink.LinkSetMasterByIndex(link, m.index); err == nil {
			err = setPort(vethName(l.Pod), nl.IFLA_BRPORT_MODE, 1)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put %s back on bridge %s: %w", vethName(l.Pod), b.name, err))
		}
	}
	if len(errs) > 0 {
		b.mu.Lock()
		b.bare = true // another time
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}

// strays returns the links on the bridge that belong to none of the pods.
func (b *bridge) strays(pods []*lease) ([]string, error) {
	br, err := netlink.LinkByName(b.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	links, err := uncut(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, l := range pods {
		ours[vethName(l.Pod)] = true
	}
	var out []string
	for _, l := range links {
		a := l.Attrs()
		if l.Type() == "veth" && a.MasterIndex == br.Attrs().Index && strings.HasPrefix(a.Name, vethPrefix) && !ours[a.Name] {
			out = append(out, a.Name)
		}
	}
	return out, nil
}

// defaultMTU returns the MTU of the default route's link, or Ethernet's.
func defaultMTU() int {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU > 0 {
				return link.Attrs().MTU
			}
		}
	}
	return 1500
}

// addressesOf returns the addresses of a link, or of all.
func addressesOf(link netlink.Link) ([]netlink.Addr, error) {
	return uncut(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
}

// uncut lists again where others change what is listed meanwhile, some times.
//
// kernel: netlink/intro.rst, NLM_F_DUMP_INTR.
func uncut[E any](list func() ([]E, error)) (all []E, err error) {
	for range 20 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}

func linkName(index int) string {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprint(index)
	}
	return link.Attrs().Name
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

func sysctlIs(path, value string) bool {
	got, err := os.ReadFile(filepath.Join("/proc/sys", path))
	return err == nil && string(bytes.TrimSpace(got)) == value
}

// setSysctl writes a setting of the host's, unless it is so already.
func setSysctl(path, value string) error {
	if sysctlIs(path, value) {
		return nil
	}
	f, err := os.OpenFile(filepath.Join("/proc/sys", path), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s=%s: %w", path, value, err)
	}
	return nil
}
