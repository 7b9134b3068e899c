package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A ruleset is davit's one nftables table. Its rules are static; host ports
// come and go as elements of four maps:
//
//	ports4, ports6          protocol . port           to pod address . port
//	addrports4, addrports6  protocol . address . port to pod address . port
type ruleset struct {
	bridge  string // of which the table has the name
	subnets func() []netip.Prefix

	// mu is held while the table is changed: replace and its counterparts must
	// see one order of leases. The kernel serialises such changes anyway.
	mu        sync.Mutex
	installed bool // replaced by this process
	conn      *nftables.Conn
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

func (r *ruleset) table() *nftables.Table {
	return &nftables.Table{Name: r.bridge, Family: nftables.TableFamilyINet}
}

// maps returns the four maps: any address, then given address, IPv4 first.
func (r *ruleset) maps() map[string]*nftables.Set {
	t := r.table()
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	out := map[string]*nftables.Set{}
	for suffix, addr := range map[string]nftables.SetDatatype{"4": nftables.TypeIPAddr, "6": nftables.TypeIP6Addr} {
		to := nftables.MustConcatSetType(addr, port)
		out["ports"+suffix] = &nftables.Set{Table: t, Name: "ports" + suffix, IsMap: true,
			KeyType: nftables.MustConcatSetType(proto, port), DataType: to}
		out["addrports"+suffix] = &nftables.Set{Table: t, Name: "addrports" + suffix, IsMap: true,
			KeyType: nftables.MustConcatSetType(proto, addr, port), DataType: to}
	}
	return out
}

// An element is one entry of a map.
type element struct {
	set      string
	key, val []byte
}

// elements returns what forwards a pod's host ports.
func elements(addrs []netip.Addr, ports []Port) []element {
	var out []element
	for _, p := range ports {
		for _, a := range addrs {
			if p.HostIP.IsValid() && p.HostIP.Is4() != a.Is4() {
				continue
			}
			suffix := "6"
			if a.Is4() {
				suffix = "4"
			}
			e := element{set: "ports" + suffix, val: append(a.AsSlice(), padded(p.ContainerPort)...)}
			e.key = []byte{protocols[p.Protocol], 0, 0, 0}
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				e.set = "addr" + e.set
				e.key = append(e.key, p.HostIP.AsSlice()...)
			}
			e.key = append(e.key, padded(p.HostPort)...)
			out = append(out, e)
		}
	}
	return out
}

// padded returns a port as it stands in a concatenation: network order, filled
// up to a register.
func padded(port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, port), 0, 0)
}

const transaction = 16 << 20 // bytes

// change runs f and sends what it queued as one transaction. r.mu must be held.
//
// The socket is kept: to close one waits, under the kernel's lock, for what
// was deleted to be freed, which takes 2 to 13 ms. kernel:
// nf_tables_api.c, nft_rcv_nl_event. After an error answers may be left in it.
func (r *ruleset) change(f func(*nftables.Conn) error) (err error) {
	if r.conn == nil {
		// Room for tens of thousands of elements in one transaction; a limit
		// that costs nothing.
		room := func(c *netlink.Conn) error {
			return errors.Join(c.SetWriteBuffer(transaction), c.SetReadBuffer(transaction))
		}
		if r.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(room)); err != nil {
			return err
		}
	}
	if err = f(r.conn); err == nil {
		err = r.conn.Flush()
	}
	if err != nil {
		r.disconnect()
	}
	return err
}

// disconnect closes the socket. r.mu must be held.
func (r *ruleset) disconnect() {
	if r.conn != nil {
		_ = r.conn.CloseLasting()
		r.conn = nil
	}
}

// open adds the elements; all returns what the table is to hold if it must be
// installed first, or again because somebody took it away.
func (r *ruleset) open(add []element, all func() []element) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.installed {
		return r.replace(all())
	}
	err := r.change(func(c *nftables.Conn) error {
		return each(add, r.maps(), c.SetAddElements)
	})
	if errors.Is(err, unix.ENOENT) {
		return r.replace(all())
	}
	return err
}

// close removes the elements; those that are not there are no error.
func (r *ruleset) close(remove []element) error {
	if len(remove) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps := r.maps()
	err := r.change(func(c *nftables.Conn) error { return each(remove, maps, c.SetDeleteElements) })
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// One that is missing fails them all: one by one, then.
	var errs []error
	for _, e := range remove {
		err := r.change(func(c *nftables.Conn) error { return each([]element{e}, maps, c.SetDeleteElements) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// each calls f for the elements of each map, some at a time: a message has
// room for 64 KiB, and each is answered, which a socket has room for as well.
func each(es []element, maps map[string]*nftables.Set, f func(*nftables.Set, []nftables.SetElement) error) error {
	const most = 500
	byMap := map[string][]nftables.SetElement{}
	for _, e := range es {
		byMap[e.set] = append(byMap[e.set], nftables.SetElement{Key: e.key, Val: e.val})
	}
	for set, elements := range byMap {
		for some := range slices.Chunk(elements, most) {
			if err := f(maps[set], some); err != nil {
				return err
			}
		}
	}
	return nil
}

// ensure installs the table if it, or its rules, are missing.
func (r *ruleset) ensure(all func() []element) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.installed {
		if whole, err := r.whole(); whole || err != nil {
			return err
		}
	}
	return r.replace(all())
}

// probe returns why this process could not install the table, as far as that
// can be seen without trying.
func (r *ruleset) probe() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.whole(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// whole reports whether the table and its rules are there. r.mu must be held.
func (r *ruleset) whole() (bool, error) {
	whole := false
	err := r.change(func(c *nftables.Conn) error {
		rules, err := c.GetRules(r.table(), &nftables.Chain{Name: "postrouting"})
		whole = len(rules) > 0
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return whole, err
}

// replace installs the table with these elements in one transaction, in place
// of whatever it held before. r.mu must be held.
func (r *ruleset) replace(all []element) error {
	err := r.change(func(c *nftables.Conn) error {
		t := r.table()
		c.AddTable(t)
		c.DelTable(t)
		c.AddTable(t)
		maps := r.maps()
		for _, s := range maps {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
		if err := each(all, maps, c.SetAddElements); err != nil {
			return err
		}
		r.addRules(c, t, maps)
		return nil
	})
	if err != nil {
		return fmt.Errorf("install the nftables table inet %s: %w", r.bridge, err)
	}
	r.installed = true
	return nil
}

// remove deletes the table.
func (r *ruleset) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.installed = false
	return r.change(func(c *nftables.Conn) error {
		c.AddTable(r.table()) // so that deleting cannot fail for want of it
		c.DelTable(r.table())
		return nil
	})
}

// addRules queues the chains and their rules.
func (r *ruleset) addRules(c *nftables.Conn, t *nftables.Table, maps map[string]*nftables.Set) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) func(...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: priority})
		return func(parts ...[]expr.Any) {
			rule := &nftables.Rule{Table: t, Chain: ch}
			for _, p := range parts {
				rule.Exprs = append(rule.Exprs, p...)
			}
			c.AddRule(rule)
		}
	}
	// route_localnet, which lets the host reach host ports by 127.0.0.1, would
	// also let a pod reach what listens on the host's loopback.
	// Kubernetes: CVE-2020-8558.
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	guard := chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	guard(interfaceIs(expr.MetaKeyIIFNAME, r.bridge, true), addressIn(loopback, false), verdict(expr.VerdictDrop))
	guard(interfaceIs(expr.MetaKeyIIFNAME, r.bridge, true), addressIn(loopback, true), verdict(expr.VerdictDrop))

	prerouting := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, add := range []func(...[]expr.Any){prerouting, output} {
		add(forward(maps["addrports4"], true))
		add(addressIsLocal(), forward(maps["ports4"], false))
		add(forward(maps["addrports6"], true))
		add(addressIsNotLoopback6(), addressIsLocal(), forward(maps["ports6"], false))
	}

	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, s := range r.subnets() {
		postrouting(addressIn(s, true), interfaceIs(expr.MetaKeyOIFNAME, r.bridge, false), masquerade())
		// A pod that asks for a host port and is sent back over the bridge: the
		// answer must come by way of the host, which has the translation.
		// (Where br_netfilter is on, no input interface is known here.)
		postrouting(addressIn(s, true), interfaceIs(expr.MetaKeyOIFNAME, r.bridge, true), translated(), masquerade())
	}
	// The host, by 127.0.0.1, which no pod could answer.
	postrouting(addressIn(loopback, true), interfaceIs(expr.MetaKeyOIFNAME, r.bridge, true), masquerade())
}

// Registers: 1 is 16 bytes wide, and word is the first of sixteen of 4 bytes
// that cover the same ground. kernel: uapi/linux/netfilter/nf_tables.h.
const word = unix.NFT_REG32_00

// forward translates the destination to what the map says for the packet's
// protocol, destination address (if asked) and port.
func forward(m *nftables.Set, byAddress bool) []expr.Any {
	family, offset, words := byte(unix.NFPROTO_IPV4), uint32(16), uint32(1)
	if m.Name[len(m.Name)-1] == '6' {
		family, offset, words = unix.NFPROTO_IPV6, 24, 4
	}
	next := uint32(word)
	out := append(familyIs(family), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next})
	next++
	if byAddress {
		out = append(out, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4 * words})
		next += words
	}
	return append(out,
		// TCP, UDP and SCTP all have the destination port here.
		&expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: word, DestRegister: word, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: word, RegProtoMin: word + words, Specified: true},
	)
}

func familyIs(family byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
}

func interfaceIs(key expr.MetaKey, name string, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

// addressIn matches packets from (source) or to a prefix.
func addressIn(p netip.Prefix, source bool) []expr.Any {
	family, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if p.Addr().Is6() {
		family, offset, size = unix.NFPROTO_IPV6, 24, 16
	}
	if source {
		offset -= size
	}
	mask := bytes.Repeat([]byte{0}, int(size))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(familyIs(family),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}

// addressIsLocal matches packets to an address of the host.
func addressIsLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// addressIsNotLoopback6 leaves out ::1, from which nothing could be forwarded:
// untouched it is refused at once instead of being lost.
func addressIsNotLoopback6() []expr.Any {
	return append(familyIs(unix.NFPROTO_IPV6),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: netip.IPv6Loopback().AsSlice()},
	)
}

// translated matches packets of connections whose destination was translated.
func translated() []expr.Any {
	const ipsDstNAT = 1 << 5 // kernel: uapi/linux/netfilter/nf_conntrack_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
