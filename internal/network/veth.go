package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// podInterface is the name of a pod's interface, inside the pod; vethPrefix
// begins that of the host's end.
const (
	podInterface = "eth0"
	vethPrefix   = "dv"
)

// connect gives the network namespace ns an interface on the bridge with
// these addresses, and a default route of each family.
func (b *bridge) connect(pod string, ns int, addrs []netip.Addr) error {
	m, err := b.ensure()
	if err != nil {
		return err
	}
	err = addVeth(pod, m, ns, addrs[0])
	switch {
	case errors.Is(err, unix.EEXIST):
		// Of an earlier attach of the same pod; or the pod has an eth0 already,
		// and the second try says so.
		if err := deleteLink(vethName(pod)); err != nil {
			return err
		}
		err = addVeth(pod, m, ns, addrs[0])
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
		// The kernel's words for a bridge that is gone.
		b.check()
		if m, err = b.ensure(); err != nil {
			return err
		}
		err = addVeth(pod, m, ns, addrs[0])
	}
	if err != nil {
		return fmt.Errorf("make the pod's link %s: %w", vethName(pod), err)
	}
	if err := setPort(vethName(pod), nl.IFLA_BRPORT_MODE, 1); err != nil { // hairpin: a pod may reach itself by its host port
		return fmt.Errorf("bridge port %s: %w", vethName(pod), err)
	}
	return b.configure(ns, addrs)
}

// addVeth makes, by one message, both ends of the pod's link: the host's on
// the bridge and up, the pod's in ns. (The kernel refuses to make that up at
// once: it has no peer yet. ENOTCONN, see drivers/net/veth.c.)
func addVeth(pod string, m master, ns int, addr netip.Addr) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	host := nl.NewIfInfomsg(unix.AF_UNSPEC)
	host.Flags, host.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(host)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(vethName(pod))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, localAddr(pod)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(m.mtu))))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(m.index))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(podInterface))
	peer.AddRtAttr(unix.IFLA_ADDRESS, hardwareAddr(addr))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(m.mtu)))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setPort sets attributes of a bridge's port, by its name alone, in pairs of
// attribute and value.
func setPort(name string, pairs ...int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	for i := 0; i < len(pairs); i += 2 {
		data.AddRtAttr(pairs[i], []byte{byte(pairs[i+1])})
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// disconnect cuts the pod's link off without deleting it, which would hold the
// kernel's network lock for 10 to 30 ms: the link goes with the namespace. If
// a process left over keeps that alive, the pod's address must be free to be
// used again nevertheless. In the state "listening" a port passes nothing in
// either direction, and without STP nothing takes it out of it, unlike
// "disabled", which ends at the link's next event. Flushed, and without
// learning and flooding, it would attract no packet even then.
//
// kernel: net/bridge/br_if.c, br_port_carrier_check.
func disconnect(pod string) error {
	const listening = 1 // uapi/linux/if_bridge.h, BR_STATE_LISTENING
	mute := []int{nl.IFLA_BRPORT_LEARNING, 0, nl.IFLA_BRPORT_UNICAST_FLOOD, 0,
		nl.IFLA_BRPORT_MCAST_FLOOD, 0, nl.IFLA_BRPORT_BCAST_FLOOD, 0, nl.IFLA_BRPORT_FLUSH, 1}
	err := setPort(vethName(pod), append(mute, nl.IFLA_BRPORT_STATE, listening)...)
	if errors.Is(err, unix.ENETDOWN) { // the pod's end is down, or was made this instant: no state can be set
		err = setPort(vethName(pod), mute...)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EBUSY):
		// No longer a bridge's port, or a bridge that somebody runs STP on.
		return deleteLink(vethName(pod))
	}
	return fmt.Errorf("cut off bridge port %s: %w", vethName(pod), err)
}

// configure gives the interface inside ns its addresses and default routes.
func (b *bridge) configure(ns int, addrs []netip.Addr) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(podInterface)
	if err != nil {
		return fmt.Errorf("%s of the pod: %w", podInterface, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s of the pod: %w", podInterface, err)
	}
	subnets := b.subnets()
	for _, a := range addrs {
		i := slices.IndexFunc(subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		if i < 0 {
			return fmt.Errorf("give the pod %s: no subnet has it any more", a)
		}
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, subnets[i].Bits())), Flags: unix.IFA_F_NODAD}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give the pod %s: %w", a, err)
		}
		gw := gateway(subnets[i])
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("give the pod its default route by %s: %w", gw, err)
		}
	}
	return nil
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// vethName returns the name of the host's end of a pod's link.
func vethName(pod string) string {
	sum := sha256.Sum256([]byte(pod))
	return vethPrefix + hex.EncodeToString(sum[:6])
}

// localAddr returns a MAC address of one's own choice, the same for the same name.
func localAddr(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return append([]byte{0x02}, sum[:5]...)
}
