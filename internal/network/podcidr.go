package network

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"text/template"

	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/store"
)

// A cidr is what decides on pods' addresses.
type cidr struct {
	template *template.Template // of a CNI configuration; nil: none
	setting  sync.Mutex         // one SetPodCIDR at a time
	ranges   atomic.Pointer[ranges]
}

// ranges are the subnets of the built-in network. Immutable.
type ranges struct {
	Current []netip.Prefix // of pods to come, at most one of each family
	Former  []netip.Prefix // of which pods that run have addresses
}

func (r *ranges) all() []netip.Prefix { return slices.Concat(r.Current, r.Former) }

// of returns the subnet that a pod has its address of.
func (r *ranges) of(a netip.Addr) (netip.Prefix, bool) {
	for _, s := range r.all() {
		if s.Contains(a) {
			return s, true
		}
	}
	return netip.Prefix{}, false
}

// followedBy returns the ranges once new pods are in current.
func (r *ranges) followedBy(current []netip.Prefix, pods []*lease) *ranges {
	next := &ranges{Current: current}
	for _, s := range r.all() {
		used := slices.ContainsFunc(pods, func(l *lease) bool { return slices.ContainsFunc(l.Addrs, s.Contains) })
		if used && !slices.Contains(next.all(), s) {
			next.Former = append(next.Former, s)
		}
	}
	return next
}

// rangesFile keeps ranges that a node was given; it outlives a boot, since the
// kubelet tells a pod CIDR only once it has changed.
const (
	rangesFile    = "pod-cidr"
	rangesCopy    = "pod-cidr.copy" // should that be lost: pods run by it
	rangesVersion = 1
)

// loadRanges returns the ranges to start with: what the configuration says,
// else what the node was given, else a choice of davit's own.
func loadRanges(c Config) (*ranges, error) {
	given := loadGiven(c)
	current := c.Subnets
	if len(current) == 0 {
		current = given.Current
	}
	if len(current) == 0 {
		current = defaultSubnets(c.Bridge)
	}
	if err := CheckSubnets(current); err != nil {
		return nil, fmt.Errorf("network.subnets: %w", err)
	}
	return &ranges{Current: current, Former: slices.DeleteFunc(given.all(), func(s netip.Prefix) bool { return slices.Contains(current, s) })}, nil
}

// loadGiven returns what the node was given, and keeps it in two files again
// if one was lost.
func loadGiven(c Config) *ranges {
	var given *ranges
	var lost []string
	for _, name := range []string{rangesFile, rangesCopy} {
		r, path := &ranges{}, filepath.Join(c.Root, name)
		err := store.LoadJSON(path, rangesVersion, r)
		if err == nil {
			given = cmp.Or(given, r)
			continue
		}
		lost = append(lost, path)
		if !fault.Is(err, fault.NotFound) {
			aside := filepath.Join(c.Damaged, name)
			slog.Error("network: the pod CIDR that this node was given cannot be read and is moved aside",
				"to", aside, "error", errors.Join(err, store.SetAside(path, aside)))
		}
	}
	if given == nil {
		return &ranges{}
	}
	for _, path := range lost {
		if err := store.SaveJSONDurable(path, rangesVersion, given); err != nil {
			slog.Warn("network: keep the pod CIDR", "error", err)
		}
	}
	return given
}

// CheckSubnets returns Invalid unless pods can have addresses of the subnets:
// at most one of each family, with room, and of no special purpose.
func CheckSubnets(subnets []netip.Prefix) error {
	if len(subnets) > 2 || len(subnets) == 2 && subnets[0].Addr().Is4() == subnets[1].Addr().Is4() {
		return fault.New(fault.Invalid, "", "subnets %v: at most one of each family", subnets)
	}
	for _, s := range subnets {
		if a := s.Masked().Addr(); s.IsValid() && (a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast()) {
			return fault.New(fault.Invalid, "", "subnet %s is not for hosts: it is that of loopback, link-local, multicast or no addresses", s)
		}
		if _, err := newPool(s); err != nil {
			return err
		}
	}
	return nil
}

// SetPodCIDR gives pods to come addresses of these subnets, at most one of each
// family; pods that run keep theirs. It writes the CNI configuration from the
// template if there is one. Both outlive davitd. Where the configuration names
// subnets, those stay.
//
// It returns Invalid for subnets that have no room, Precondition for one that
// the host uses otherwise.
func (n *Network) SetPodCIDR(ctx context.Context, subnets []netip.Prefix) error {
	if len(subnets) == 0 {
		return nil
	}
	if err := CheckSubnets(subnets); err != nil {
		return err
	}
	masked := make([]netip.Prefix, len(subnets))
	for i, s := range subnets {
		masked[i] = s.Masked()
	}
	n.cidr.setting.Lock()
	defer n.cidr.setting.Unlock()
	if err := n.writeTemplate(ctx, masked); err != nil {
		return err
	}
	if len(n.config.Subnets) > 0 {
		slog.InfoContext(ctx, "network: the configuration's subnets stay", "subnets", n.config.Subnets, "pod_cidr", masked)
		return nil
	}
	was := n.cidr.ranges.Load()
	if slices.Equal(was.Current, masked) {
		return n.saveRanges(was)
	}
	if err := n.bridge.unused(masked); err != nil {
		return err
	}
	// Written down first: a lease of either may be taken meanwhile.
	both := &ranges{Current: masked, Former: slices.DeleteFunc(was.all(), func(s netip.Prefix) bool { return slices.Contains(masked, s) })}
	if err := n.saveRanges(both); err != nil {
		return err
	}
	n.cidr.ranges.Store(both)
	n.leases.setPools(both)
	next := both.followedBy(masked, n.leases.all())
	n.cidr.ranges.Store(next)
	n.rules.outdate()
	n.bridge.outdate(slices.DeleteFunc(was.all(), func(s netip.Prefix) bool { return slices.Contains(next.all(), s) }))
	slog.InfoContext(ctx, "network: pods to come are in another subnet", "subnets", next.Current, "still_in_use", next.Former)
	if n.bridge.wanted() {
		return n.restore()
	}
	return nil
}

func (n *Network) saveRanges(r *ranges) error {
	for _, name := range []string{rangesFile, rangesCopy} {
		if err := store.SaveJSONDurable(filepath.Join(n.config.Root, name), rangesVersion, r); err != nil {
			return err
		}
	}
	return nil
}

// unused returns Precondition if a link other than the bridge has addresses of subnets.
func (b *bridge) unused(subnets []netip.Prefix) error {
	index := 0
	if link, err := netlink.LinkByName(b.name); err == nil {
		index = link.Attrs().Index
	}
	return inUse(subnets, index)
}

// outdate makes the next ensure look at the bridge again. Gateways of the
// subnets dropped go.
func (b *bridge) outdate(dropped []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made.index == 0 {
		return
	}
	b.trouble = errOutdated // it stays wanted
	b.made = master{}
	link, err := netlink.LinkByName(b.name)
	if err != nil {
		return // it is made anew
	}
	for _, s := range dropped {
		_ = netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gateway(s), s.Bits()))}) // it may be gone
	}
}

var errOutdated = errors.New("the bridge has not got its new addresses yet")

// outdate makes the next change install the table again.
func (r *ruleset) outdate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.installed = false
}

// templateFile is what a template becomes in the CNI configuration folder: the
// last by name, so that any other is preferred.
const templateFile = "99-davit.conflist"

// parseTemplate reads a CNI configuration template. An empty path is none.
func parseTemplate(path string) (*template.Template, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "network.cni_conf_template: %w", err)
	}
	t, err := template.New(filepath.Base(path)).Option("missingkey=error").Parse(string(text))
	if err == nil {
		_, err = render(t, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
		if _, both := render(t, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}); both == nil {
			err = nil // it is for nodes that have two
		}
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "network.cni_conf_template: %s: %w", path, err)
	}
	return t, nil
}

// render fills in a template. Its fields have the names that containerd's have.
func render(t *template.Template, subnets []netip.Prefix) ([]byte, error) {
	var data struct {
		PodCIDR       string
		PodCIDRRanges []string
		Routes        []string
	}
	data.PodCIDR = subnets[0].String()
	for _, s := range subnets {
		data.PodCIDRRanges = append(data.PodCIDRRanges, s.String())
		if s.Addr().Is4() {
			data.Routes = append(data.Routes, "0.0.0.0/0")
		} else {
			data.Routes = append(data.Routes, "::/0")
		}
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, err
	}
	if !json.Valid(out.Bytes()) {
		return nil, fmt.Errorf("with pod CIDR %s it becomes something that is not JSON", subnets)
	}
	return out.Bytes(), nil
}

// writeTemplate writes the CNI configuration, unless somebody else has.
func (n *Network) writeTemplate(ctx context.Context, subnets []netip.Prefix) error {
	if n.cidr.template == nil {
		return nil
	}
	n.rescan(ctx)
	if c := n.choice.Load(); c.list != nil && c.file != templateFile {
		slog.InfoContext(ctx, "network: there is a CNI configuration, so none is written", "file", c.file)
		return nil
	}
	text, err := render(n.cidr.template, subnets)
	if err != nil {
		return fault.New(fault.Internal, "", "network.cni_conf_template: %w", err)
	}
	dir := n.plugins.config.Load().confDir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.New(fault.Internal, "", "CNI configuration: %w", err)
	}
	path := filepath.Join(dir, templateFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := store.WriteFileDurable(path, text, 0o644); err != nil {
		return fault.New(fault.KindOf(err), "", "CNI configuration: %w", err)
	}
	n.rescan(ctx)
	return nil
}
