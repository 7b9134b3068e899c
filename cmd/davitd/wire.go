package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cadvisor"
	"github.com/davit-runtime/davit/internal/calls"
	"github.com/davit-runtime/davit/internal/cdi"
	"github.com/davit-runtime/davit/internal/cgroup"
	"github.com/davit-runtime/davit/internal/cri"
	"github.com/davit-runtime/davit/internal/cri/metrics"
	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/imageapi"
	"github.com/davit-runtime/davit/internal/label"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/nri"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/pod"
	"github.com/davit-runtime/davit/internal/stats"
	"github.com/davit-runtime/davit/internal/store"
	"github.com/davit-runtime/davit/internal/stream"
)

// parts are what davitd is made of.
type parts struct {
	host     ocispec.Host
	cgroups  *cgroup.Host
	network  *network.Network
	images   *image.Store
	keeper   *keeperWatch
	monitor  *monitor.Client
	runtimes *runtimes
	damage   *damage
	plugins  *nri.Plugins // nil: there may be none
	byCDI    atomic.Pointer[cdi.Devices]
	pods     *pod.Pods
	streams  *stream.Server
	calls    *calls.Calls
	occupied []string // what another program serves instead, a line each
}

// run builds the parts, recovers, serves until ctx ends, and takes them apart.
func run(ctx context.Context, r *reloader) error {
	c, log := r.now.Load(), r.log
	begun := time.Now()
	checkLimits(log)
	unlock, err := lock(c)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := build(ctx, r)
	defer p.close(log)
	if err != nil {
		return c.text.Locate(err)
	}
	p.damage = &damage{dir: c.damaged()}
	p.damage.look()
	debug.FreeOSMemory() // what reading thousands of records leaves
	// Calls under way may end after ctx did: the parts outlive it.
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	work := func(what string, f func(context.Context) error) {
		workers.Go(func() {
			if err := f(background); err != nil && background.Err() == nil {
				log.Error("a part of davitd ended", "part", what, "error", err)
			}
		})
	}
	work("network", p.network.Run)
	work("pods", p.pods.Serve)
	work("keeper", p.keeper.run)
	work("monitor", p.keeper.attend)
	work("damage", p.damage.watch)
	work("images", p.images.Run)
	work("memory", newHeap().watch)
	if p.plugins != nil {
		work("nri", func(ctx context.Context) error { return p.plugins.Run(ctx, p.pods) })
	}
	work("streams", p.streams.Serve)
	work("trials", func(ctx context.Context) error {
		p.runtimes.warm(ctx)
		return nil
	})
	work("seccomp", func(ctx context.Context) error {
		p.runtimes.compile(ctx, p.monitor, p.host.Capabilities)
		return nil
	})
	if err := p.runtimes.ready(); err != nil {
		log.Warn("pods cannot run", "reason", err)
	}
	if err := p.network.Status(); err != nil {
		log.Warn("pods cannot be connected", "reason", err)
	}
	return serve(ctx, p.servers(ctx, r), log, func() string {
		// Not before: systemd would take the end of a reload for that of the start.
		work("reload", func(ctx context.Context) error {
			return r.run(ctx, func(ctx context.Context) { p.apply(ctx, r) })
		})
		pods, containers := p.pods.States()
		log.Info("davitd serves", "socket", c.socketPath(), "pods", pods, "containers", containers,
			"cgroups", p.cgroups.Layout(), "cgroup_driver", p.cgroups.Driver(), "started_in", time.Since(begun).Round(time.Millisecond))
		return "davit " + version + " serves " + c.socketPath()
	})
}

// lock makes the two directories davitd's own, for one davitd at a time.
func lock(c *config) (unlock func(), err error) {
	var held []*store.Lock
	unlock = func() {
		for _, l := range held {
			_ = l.Release()
		}
	}
	for _, dir := range []string{c.Root, c.State} {
		// Containers of other users pass through to what is mounted below.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			unlock()
			return nil, err
		}
		l, err := store.LockDir(dir)
		if err != nil {
			unlock()
			return nil, err
		}
		held = append(held, l)
	}
	return unlock, nil
}

// build makes the parts in the order they need each other. What is made
// already is returned beside an error, to be closed.
func build(ctx context.Context, r *reloader) (*parts, error) {
	c, log := r.now.Load(), r.log
	p := &parts{calls: calls.New()}
	// Records of pods and containers are in directories that go with them.
	err := store.Sweep(c.Root, filepath.Join(c.Root, "*"), filepath.Join(c.Root, "seccomp", "*"), filepath.Join(c.Root, "images", "*"))
	if err != nil {
		log.Warn("what an earlier davitd began to write is not deleted", "error", err)
	}
	if p.host, err = ocispec.ProbeHost(); err != nil {
		return p, err
	}
	if p.host.MinOOMScoreAdj > -1000 {
		log.Info("oom_score_adj of containers is clamped from below: no CAP_SYS_RESOURCE", "to", p.host.MinOOMScoreAdj)
	}
	if p.cgroups, err = cgroup.Probe(log); err != nil {
		return p, err
	}
	if d := c.CgroupDriver; d != "" && d != "auto" {
		if p.cgroups, err = p.cgroups.WithDriver(cgroup.Driver(d)); err != nil {
			return p, fmt.Errorf("cgroup_driver: %w", err)
		}
	}
	p.runtimes = newRuntimes(c, p.cgroups.Driver() == cgroup.Systemd, log)
	p.runtimes.probe(ctx)
	if p.network, err = network.Open(network.Config{
		Root: filepath.Join(c.Root, "network"), Damaged: c.damaged(),
		ConfDir: c.Network.CNIConfDir, PluginDirs: c.Network.CNIBinDirs,
		Bridge: c.Network.Bridge, Subnets: c.Network.Subnets, MTU: c.Network.MTU, Template: c.Network.CNIConfTemplate,
		DelPatience: c.Network.CNIDelPatience.value(),
	}); err != nil {
		return p, err
	}
	if err = p.network.Claim(); err != nil {
		return p, err
	}
	store := image.Config{
		Root: filepath.Join(c.Root, "images"), State: filepath.Join(c.State, "images"), Damaged: c.damaged(),
		Registry: c.registry(), Log: log, Layers: c.Images.Store, Pinned: c.Images.pins(), Verify: r.verify,
	}
	if p.images, err = image.Open(store); err != nil {
		return p, err
	}
	if p.streams, err = c.Streaming.listen(log); err != nil {
		return p, fmt.Errorf("streaming: %w", err)
	}
	binary, err := findMonitor()
	if err != nil {
		return p, err
	}
	p.keeper = &keeperWatch{binary: binary, state: c.State, log: log, every: attendEvery, patience: attendPatience}
	if err := p.keeper.begin(ctx); err != nil {
		return p, err
	}
	p.monitor = monitor.Connect(c.State)
	p.byCDI.Store(cdi.New(c.CDISpecDirs, log))
	p.runtimes.trials = newTrials(ctx, c, p, log)
	p.runtimes.trials.sweep(ctx)
	options := pod.Options{
		Root: c.Root, State: c.State, Log: log,
		Host: pod.Host{
			CgroupV2: p.host.CgroupV2, Capabilities: p.host.Capabilities,
			MinOOMScoreAdj: p.host.MinOOMScoreAdj, Devices: devices(log), Labels: label.Open(),
		},
		Specs: pod.Specs{
			Build: r.limited, ResolveUser: ocispec.ResolveUser,
			Devices: func(s *specs.Spec, c *runtimeapi.ContainerConfig) error { return p.byCDI.Load().InjectRequested(s, c) },
		},
		Namespaces: namespace.New(), Network: p.network, Rootfs: p.images, Cgroups: p.cgroups,
		Processes: p.monitor, Sessions: p.monitor, Runtimes: p.runtimes,
	}
	if !c.NRI.Disable {
		plugins := c.nri(log)
		plugins.Inject = func(s *specs.Spec, names []string) error { return p.byCDI.Load().Inject(s, names) }
		p.plugins = nri.New(plugins)
		options.Hooks = p.plugins
	}
	p.pods, err = pod.Open(ctx, options)
	return p, err
}

func devices(log *slog.Logger) func() []ocispec.Device {
	return func() []ocispec.Device {
		all, err := ocispec.HostDevices()
		if err != nil {
			log.Warn("devices of the host", "error", err)
		}
		return all
	}
}

// close takes the parts apart. With no pod left, nothing of davit's network or
// control groups stays on the host.
func (p *parts) close(log *slog.Logger) {
	var errs []error
	if p.streams != nil {
		p.streams.Close()
	}
	if p.pods != nil {
		p.pods.Close()
		if len(p.pods.List()) == 0 {
			errs = append(errs, p.network.Destroy(context.Background()))
		}
	}
	if p.images != nil {
		errs = append(errs, p.images.Close())
	}
	if p.network != nil {
		p.network.Close()
	}
	if p.cgroups != nil {
		errs = append(errs, p.cgroups.Close())
	}
	if err := errors.Join(errs...); err != nil {
		log.Warn("while stopping", "error", err)
	}
}

// servers returns what is served, by socket.
func (p *parts) servers(ctx context.Context, r *reloader) map[string]*grpc.Server {
	c, log := r.now.Load(), r.log
	surface := p.surface(ctx, r)
	main := surface.Server()
	all := map[string]*grpc.Server{c.socketPath(): main}
	if c.ImageSocket != "" {
		all[c.ImageSocket] = surface.ImageServer()
	}
	for _, s := range all {
		imageapi.Register(s, p.own(ctx, c))
		p.calls.Register(s)
	}
	names := cadvisor.New(p.pods, version)
	names.Register(main)
	if at := c.CadvisorSocket; at != "" && served(at) {
		p.occupied = []string{"cadvisor_socket: another program serves " + at + "; a kubelet's /metrics/cadvisor has no names of pods"}
		log.Warn("a socket is not davitd's", "cadvisor_socket", at, "reason", "another program serves it")
	} else if at != "" {
		all[at] = surface.Empty()
		names.Register(all[at])
	}
	return all
}

// surface puts the CRI on the parts. Streams without an end end with ctx.
func (p *parts) surface(ctx context.Context, r *reloader) *cri.Surface {
	c, log := r.now.Load(), r.log
	return cri.New(
		cri.Parts{
			Pods: p.pods, Containers: p.pods, Resources: p.pods, Views: p.pods, Sessions: p.pods, Images: p.images,
			Streams: p.streams, Stats: stats.New(p.pods, p.cgroups, p.images), Events: p.pods, Network: p.network,
		},
		cri.Config{
			Node:          validate.Node{Handlers: p.runtimes.handlers, AppArmor: ocispec.AppArmor()},
			Version:       version,
			SystemdCgroup: p.cgroups.Driver() == cgroup.Systemd,
			RuntimeReady:  func() error { return cmp.Or(p.runtimes.ready(), p.keeper.err()) },
			NetworkReady:  p.network.Status,
			Troubles: func() []string {
				return slices.Concat(p.damage.list(), p.images.Troubles(), p.network.Owed(), p.occupied, r.troubles())
			},
			Spec: func(id string) ([]byte, error) {
				return os.ReadFile(filepath.Join(c.State, "containers", id, "config.json"))
			},
			Dial:    namespace.Dial,
			Metrics: metrics.New(metrics.Host{CgroupV2: p.cgroups.Layout() == cgroup.V2, Scheduled: p.cgroups.HasScheduled()}),
			Info: map[string]any{
				"maxContainerLogLineSize": 16 << 10,
				"cni": told(func() any {
					return map[string]any{"confDir": cmp.Or(r.now.Load().Network.CNIConfDir, "/etc/cni/net.d")}
				}),
				"configuration": told(func() any { return r.last.Load() }),
				"cgroupDriver":  p.cgroups.Driver(),
				"cgroupLayout":  p.cgroups.Layout(),
				"streaming":     p.streams.URL(),
				"imageLayers":   p.images.Layers(),
				"root":          c.Root,
				"state":         c.State,
			},
			Stopping: ctx.Done(),
			Calls:    p.calls,
			Log:      log,
		}, c.CRIVersions...)
}

// own is what davit's own service calls. Watches end with ctx.
func (p *parts) own(ctx context.Context, c *config) imageapi.Parts {
	return imageapi.Parts{
		Pulls: p.images, Store: p.images, Checker: p.images, Registries: p.images, Archives: imageapi.Files{Of: p.images, Spool: c.Root}, Stopping: ctx.Done(),
	}
}
