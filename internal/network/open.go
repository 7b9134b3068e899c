package network

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"golang.org/x/sys/unix"
)

// A Network connects pods. Its methods may be called concurrently, but those
// that name the same pod one at a time.
type Network struct {
	config  Config
	leases  *leases
	bridge  *bridge
	rules   *ruleset
	plugins *plugins
	cidr    cidr
	choice  atomic.Pointer[choice] // what the CNI configuration folder says, as last seen
	debts   debts
	chosen  chan struct{} // tells keep that it has changed; holds one
	claim   net.Listener  // nobody connects; nil without Claim

	mu      sync.Mutex
	status  error // of asked's plugins, as last asked
	asked   *choice
	trouble error    // of the built-in network, as last looked at
	strays  []string // links that Run deletes
}

// Open reads the leases and the CNI configuration. It changes nothing on the
// host: bridge and table are made when the first pod needs them.
func Open(config Config) (*Network, error) {
	const op = "network.Open"
	setDefaults(&config)
	if len(config.Bridge) > 15 || filepath.Base(config.Bridge) != config.Bridge {
		return nil, fault.New(fault.Invalid, op, "bridge %q: no name of a link", config.Bridge)
	}
	if err := os.MkdirAll(config.Root, 0o700); err != nil {
		return nil, fault.New(fault.Internal, op, "%w", err)
	}
	template, err := parseTemplate(config.Template)
	if err != nil {
		return nil, err
	}
	subnets, err := loadRanges(config)
	if err != nil {
		return nil, err
	}
	leases, err := loadLeases(config.Root, config.Damaged)
	if err != nil {
		return nil, err
	}
	n := &Network{
		config:  config,
		leases:  leases,
		chosen:  make(chan struct{}, 1),
		plugins: &plugins{cache: filepath.Join(config.Root, "cni")},
	}
	n.plugins.config.Store(&cniConfig{config.ConfDir, config.PluginDirs, config.DelPatience})
	n.cidr.template = template
	n.cidr.ranges.Store(subnets)
	leases.setPools(subnets)
	all := func() []netip.Prefix { return n.cidr.ranges.Load().all() }
	n.bridge = &bridge{name: config.Bridge, subnets: all, mtu: config.MTU}
	n.rules = &ruleset{bridge: config.Bridge, subnets: all}
	n.choice.Store(choose(config.ConfDir, config.PluginDirs))
	return n, nil
}

// Claim makes n the only one in this network namespace that uses its bridge and
// table, until Close or the end of the process. Precondition if another does.
func (n *Network) Claim() error {
	l, err := net.Listen("unix", "@davit-network-"+n.config.Bridge)
	if errors.Is(err, unix.EADDRINUSE) {
		return fault.New(fault.Precondition, "", "network.bridge: another davitd uses %s; give each a network.bridge and network.subnets of its own", n.config.Bridge)
	}
	n.claim = l
	return err
}

func setDefaults(c *Config) {
	if c.ConfDir == "" {
		c.ConfDir = "/etc/cni/net.d"
	}
	if len(c.PluginDirs) == 0 {
		c.PluginDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
	}
	if c.Damaged == "" {
		c.Damaged = filepath.Join(c.Root, "damaged")
	}
	if c.DelPatience == 0 {
		c.DelPatience = defaultDelPatience
	}
	if c.Bridge == "" {
		c.Bridge = "davit0"
	}
}

// keepInterval is how often Run looks after what it cannot be told of: bridge
// and table taken away, plugins not ready.
const keepInterval = 5 * time.Second

// Run watches ConfDir, asks the plugins for their status, deletes links left
// behind, puts bridge and table back where somebody took them away, and tries
// again what plugins would not undo. It returns nil when ctx ends.
func (n *Network) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { n.watch(ctx) })
	wg.Go(func() { n.keep(ctx) })
	wg.Go(func() { n.settle(ctx) })
	wg.Wait()
	return nil
}

func (n *Network) keep(ctx context.Context) {
	n.mu.Lock()
	strays := n.strays
	n.strays = nil
	n.mu.Unlock()
	for _, name := range strays {
		if ctx.Err() != nil {
			return
		}
		if err := deleteLink(name); err != nil {
			slog.WarnContext(ctx, "network: delete a link left behind", "link", name, "error", err)
		}
	}
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		n.askPlugins(ctx)
		n.lookAfterBridge(ctx)
		select {
		case <-ctx.Done():
			return
		case <-n.chosen:
		case <-tick.C:
		}
	}
}

// lookAfterBridge restores the built-in network where it was in use, and else,
// if it is to be used, finds out whether it could be.
func (n *Network) lookAfterBridge(ctx context.Context) {
	var err error
	if n.bridge.wanted() {
		n.bridge.check()
		err = n.restore()
	} else if c := n.choice.Load(); c.list == nil && c.err == nil {
		err = n.rules.probe()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil && (n.trouble == nil || err.Error() != n.trouble.Error()) {
		slog.WarnContext(ctx, "network: built-in network", "error", err)
	}
	n.trouble = err
}

// restore puts bridge and table in place, and pods' links on the bridge.
func (n *Network) restore() error {
	return errors.Join(n.bridge.rejoin(n.leases.all()), n.rules.ensure(n.elements))
}

// elements returns those of all leases.
func (n *Network) elements() []element {
	var out []element
	for _, l := range n.leases.all() {
		out = append(out, elements(l.Addrs, l.Ports)...)
	}
	return out
}

// Status returns nil if pods can be attached, else the reason why not. It
// never blocks.
func (n *Network) Status() error {
	c := n.choice.Load()
	if c.err != nil {
		return c.err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.list == nil {
		if err := cmp.Or(n.bridge.state(), n.trouble); err != nil {
			return fault.New(fault.KindOf(err), "", "built-in network: %w", err)
		}
		return nil
	}
	if n.asked != c {
		return nil // new: keep is about to ask
	}
	return n.status
}

// Close ends the use of n. Bridge, table and leases stay: pods run on.
func (n *Network) Close() {
	if n.claim != nil {
		_ = n.claim.Close()
	}
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	n.rules.disconnect()
}

// Destroy removes bridge and table. Precondition if a pod is attached to them.
func (n *Network) Destroy(context.Context) error {
	const op = "network.Destroy"
	for _, l := range n.leases.all() {
		if l.Driver == driverBridge {
			return fault.New(fault.Precondition, op, "pod %s/%s (%s) is attached", l.Namespace, l.Name, l.Pod)
		}
	}
	if err := errors.Join(n.rules.remove(), n.bridge.destroy()); err != nil {
		return fault.New(fault.Internal, op, "%w", err)
	}
	return nil
}
