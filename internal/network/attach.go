package network

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// Attach connects the pod's network namespace, by what ConfDir says now, and
// opens its host ports.
//
// It returns Precondition for a host port that another pod has, Exhausted if
// no address is free, and Unavailable if the network is not ready or a plugin
// fails. After any error but Exists, Detach is due: the lease is written
// before anything is acquired.
func (n *Network) Attach(ctx context.Context, p Pod) (Result, error) {
	const op = "network.Attach"
	ports, err := checkPorts(p.Ports)
	if err != nil {
		return Result{}, err
	}
	p.Ports = ports
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	c := n.choice.Load()
	switch {
	case c.err != nil:
		return Result{}, fault.New(fault.Unavailable, op, "%w", c.err)
	case c.list != nil:
		return n.attachPlugins(ctx, p, c)
	}
	return n.attachBridge(ctx, p)
}

func newLease(p Pod, driver string) *lease {
	return &lease{Pod: p.ID, Name: p.Name, Namespace: p.Namespace, UID: p.UID,
		Driver: driver, NetNS: p.NetNS, Interface: podInterface, Ports: p.Ports}
}

func (n *Network) attachBridge(ctx context.Context, p Pod) (Result, error) {
	const op = "network.Attach"
	end := span.Step(ctx, "lease")
	l, err := n.leases.take(newLease(p, driverBridge))
	end()
	if err != nil {
		return Result{}, err
	}
	ns, err := unix.Open(p.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, fault.New(fault.Precondition, op, "network namespace %s: %w", p.NetNS, err)
	}
	defer unix.Close(ns)
	end = span.Step(ctx, "link")
	err = n.bridge.connect(l.Pod, ns, l.Addrs)
	end()
	if err != nil {
		return Result{}, fault.New(fault.KindOf(err), op, "%w", err)
	}
	end = span.Step(ctx, "ports")
	err = n.openPorts(l)
	end()
	if err != nil {
		return Result{}, fault.New(fault.KindOf(err), op, "%w", err)
	}
	raw, err := n.bridgeResult(l)
	if err != nil {
		return Result{}, err
	}
	return Result{Driver: driverBridge, Interface: podInterface, Addrs: l.Addrs, Raw: raw}, nil
}

// openPorts makes the lease's host ports work, and sees to the table itself.
func (n *Network) openPorts(l *lease) error {
	if err := n.rules.open(elements(l.Addrs, l.Ports), n.elements); err != nil {
		return err
	}
	forgetFlows(l.Ports)
	return nil
}

// forgetFlows makes the kernel forget UDP flows to the host ports: a client
// that never pauses would keep one alive that goes to where the port led
// before. A kernel that cannot be asked to keeps them until a pause of 30 s.
func forgetFlows(ports []Port) {
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		f := &netlink.ConntrackFilter{}
		if p.Protocol == "udp" && f.AddProtocol(unix.IPPROTO_UDP) == nil && f.AddPort(netlink.ConntrackOrigDstPort, p.HostPort) == nil {
			filters = append(filters, f)
		}
	}
	if len(filters) == 0 {
		return
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...)
	}
}

// bridgeResult says what a lease arranged, in the form of a CNI result.
func (n *Network) bridgeResult(l *lease) (json.RawMessage, error) {
	m, err := n.bridge.ensure()
	if err != nil {
		return nil, err
	}
	inside, ranges := 2, n.cidr.ranges.Load()
	r := types100.Result{CNIVersion: "1.0.0", Interfaces: []*types100.Interface{
		{Name: n.config.Bridge, Mac: m.hardware.String()},
		{Name: vethName(l.Pod), Mac: net.HardwareAddr(localAddr(l.Pod)).String()},
		{Name: podInterface, Mac: hardwareAddr(l.Addrs[0]).String(), Sandbox: l.NetNS},
	}}
	for _, a := range l.Addrs {
		s, _ := ranges.of(a)
		gw := net.IP(gateway(s).AsSlice())
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: &inside, Address: *ipNet(netip.PrefixFrom(a, s.Bits())), Gateway: gw})
		all := net.IPNet{IP: make(net.IP, len(gw)), Mask: make(net.IPMask, len(gw))}
		r.Routes = append(r.Routes, route(all, gw))
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fault.New(fault.Internal, "network.Attach", "%w", err)
	}
	return raw, nil
}

// Detach gives back all that the pod's lease names. It needs neither the
// namespace nor the configuration that Attach used, and succeeds for a pod
// without a lease.
//
// It returns Unavailable if a plugin fails; the lease then stays, for another
// try. Once plugins have failed for Config.DelPatience it succeeds without them,
// and Run goes on trying.
func (n *Network) Detach(ctx context.Context, p Pod) error {
	l := n.leases.get(p.ID)
	if l == nil {
		return nil
	}
	if l.Driver == driverCNI {
		return n.detachPlugins(ctx, l)
	}
	return n.release(ctx, l)
}

func (n *Network) release(ctx context.Context, l *lease) error {
	const op = "network.Detach"
	if l.Driver == driverCNI {
		if err := n.plugins.del(ctx, l); err != nil {
			return err
		}
		return n.leases.drop(l)
	}
	n.leases.leave(l.Pod)
	err := errors.Join(n.rules.close(elements(l.Addrs, l.Ports)), disconnect(l.Pod))
	if err != nil {
		return fault.New(fault.Internal, op, "%w", err)
	}
	forgetFlows(l.Ports)
	return n.leases.drop(l)
}

// Check reports whether the pod's network is as Attach arranged it: NotFound
// without a lease, Precondition if something is amiss, Unavailable if a plugin
// says so or cannot say.
func (n *Network) Check(ctx context.Context, p Pod) error {
	const op = "network.Check"
	l := n.leases.get(p.ID)
	if l == nil {
		return fault.New(fault.NotFound, op, "pod %s is not attached", p.ID)
	}
	if l.Driver == driverCNI {
		return n.plugins.check(ctx, l)
	}
	link, err := netlink.LinkByName(vethName(l.Pod))
	if err != nil {
		return fault.New(fault.Precondition, op, "the pod's link %s: %w", vethName(l.Pod), err)
	}
	if br, err := netlink.LinkByName(n.config.Bridge); err != nil || link.Attrs().MasterIndex != br.Attrs().Index {
		return fault.New(fault.Precondition, op, "the pod's link %s is not on bridge %s", vethName(l.Pod), n.config.Bridge)
	}
	return nil
}
