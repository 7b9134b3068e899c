// Package nri lets plugins of the Node Resource Interface take part in the life
// of pods and containers.
//
// It owns the socket that plugins connect to, the plugins that it starts itself,
// and the gate that keeps a plugin from joining in the middle of a hook. It turns
// its own value types into the protocol's and adjustments into an OCI runtime
// spec; it decides nothing about pods and keeps nothing about them. Package pod
// calls the hooks; what plugins ask for on their own, it asks a Node.
//
// github.com/containerd/nri does the protocol.
package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Config says where plugins are and what they may do. Zero values take the
// defaults named.
type Config struct {
	Socket              string        // that plugins connect to; empty: none may
	PluginDir           string        // plugins started with davitd, "/opt/nri/plugins"
	ConfigDir           string        // their configuration, "/etc/nri/conf.d"
	RegistrationTimeout time.Duration // for a plugin to say who it is, 5s
	RequestTimeout      time.Duration // for a plugin to answer, 5s
	Version             string        // of davit, as plugins are told
	Validator           *Validator    // nil: none
	Log                 *slog.Logger

	// Inject adds devices, by their qualified CDI names, to a spec. nil: a
	// plugin that asks for one is refused.
	Inject func(s *specs.Spec, devices []string) error
}

// Defaults of a Config.
const (
	DefaultSocket         = api.DefaultSocketPath
	defaultPluginDir      = adaptation.DefaultPluginPath
	defaultConfigDir      = adaptation.DefaultPluginConfigPath
	defaultRegisterWithin = 5 * time.Second
	// The library's is 2s. A plugin is thrown out once it exceeds it, for all
	// that follows; on a node under load that is worse than to wait.
	defaultAnswerWithin = 5 * time.Second
)

// A Node is what plugins ask of it on their own. Package pod implements it.
type Node interface {
	// Known returns all that plugins have been told of by now, and not been
	// told the end of. It must not wait for a hook.
	Known() ([]Pod, []Container)
	// Apply changes containers as plugins ask, and returns the updates that failed.
	Apply(ctx context.Context, a Answer) (failed []Update)
}

// Plugins are all plugins, those connected and those started.
type Plugins struct {
	c       Config
	lib     *adaptation.Adaptation
	node    Node
	started chan struct{}   // closed once lib, or why there is none, is known
	works   atomic.Bool     // lib has been started
	count   atomic.Int64    // plugins that listen
	ctx     context.Context // of what outlives a call; set by Run

	mu      sync.Mutex // so that nothing becomes pending once ctx has ended
	pending sync.WaitGroup

	launched []string // names of the plugins that start has started
}

// New returns plugins that Run is to start. Hooks wait for that.
func New(c Config) *Plugins {
	if c.PluginDir == "" {
		c.PluginDir = defaultPluginDir
	}
	if c.ConfigDir == "" {
		c.ConfigDir = defaultConfigDir
	}
	if c.RegistrationTimeout == 0 {
		c.RegistrationTimeout = defaultRegisterWithin
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = defaultAnswerWithin
	}
	return &Plugins{c: c, started: make(chan struct{})}
}

// Run starts the plugins there are, lets others connect, and, when ctx ends,
// ends those it started. What cannot be had is told to the log: pods run
// without plugins rather than not at all.
func (p *Plugins) Run(ctx context.Context, node Node) error {
	p.node, p.ctx = node, ctx
	logTo(p.c.Log)
	adaptation.SetPluginRegistrationTimeout(p.c.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(p.c.RequestTimeout)
	if err := p.start(); err != nil {
		p.c.Log.Error("NRI plugins take no part in pods", "reason", err)
		close(p.started)
		return nil
	}
	p.works.Store(true)
	close(p.started)
	reap(ctx, p.launched)
	p.lib.Stop()
	p.finish()
	return nil
}

// start starts with all that is asked for, or else with what is possible.
func (p *Plugins) start() error {
	plugins, socket := p.c.PluginDir, p.c.Socket
	names, err := installed(plugins)
	if err != nil {
		p.c.Log.Error("NRI plugins of the host are not started", "directory", plugins, "error", err)
		plugins, names = "", nil
	}
	p.launched = names
	if err := checkSocket(socket); err != nil {
		p.c.Log.Error("no NRI plugin can connect", "socket", socket, "error", err)
		socket = ""
	}
	options := []adaptation.Option{
		adaptation.WithPluginPath(plugins), adaptation.WithPluginConfigPath(p.c.ConfigDir),
		adaptation.WithMetrics(counter{&p.count}), adaptation.WithDefaultValidator(p.c.Validator.library()),
		adaptation.WithTTRPCOptions(
			[]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(overhearAnswer)},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(overhearRequest)}),
	}
	if socket == "" {
		options = append(options, adaptation.WithDisabledExternalConnections())
	} else {
		options = append(options, adaptation.WithSocketPath(socket))
	}
	lib, err := adaptation.New("davit", p.c.Version, p.synchronize, p.update, options...)
	if err != nil {
		return err
	}
	p.lib = lib
	if err := lib.Start(); err != nil {
		lib.Stop()
		return err
	}
	return nil
}

// installed returns the names of the plugins in dir. Invalid if a program
// there has a name that no plugin may have: the library would start none for that.
func installed(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		if _, _, err := api.ParsePluginName(e.Name()); err != nil {
			errs = append(errs, fault.New(fault.Invalid, "", "%s: want two digits, a dash and a name: %w", e.Name(), err))
		}
		names = append(names, e.Name())
	}
	return names, errors.Join(errs...)
}

// checkSocket makes sure that nobody serves at path, which would be taken away.
func checkSocket(path string) error {
	if path == "" {
		return nil
	}
	// kernel: unix(7), sun_path has 108 bytes with the zero at the end.
	if len(path) > 107 {
		return fault.New(fault.Invalid, "", "the path is %d bytes long, the kernel allows 107", len(path))
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return fault.New(fault.Exists, "", "something that is not a socket is there")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(fault.New(fault.Exists, "", "another runtime serves it"), conn.Close())
	}
	return os.MkdirAll(filepath.Dir(path), 0o700)
}

// Enter begins a time in which no plugin joins, until leave is called, and
// reports whether any plugin listens. It waits for one that is joining, and for
// the first ones to be started. It must not be nested.
func (p *Plugins) Enter(ctx context.Context) (leave func(), listening bool, err error) {
	select {
	case <-p.started:
	default:
		select {
		case <-p.started:
		case <-ctx.Done():
			return nil, false, fault.New(fault.Unavailable, "nri.Enter", "NRI plugins are still being started: %w", context.Cause(ctx))
		}
	}
	if !p.works.Load() {
		return func() {}, false, nil
	}
	block := p.lib.BlockPluginSync()
	return block.Unblock, p.count.Load() > 0, nil
}

// Pod tells plugins of a pod. An error is a plugin's objection.
func (p *Plugins) Pod(ctx context.Context, e Event, pod *Pod) (err error) {
	about := pod.message()
	switch e {
	case RunPod:
		err = p.lib.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: about})
	case UpdatePod:
		_, err = p.lib.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
			Pod: about, OverheadLinuxResources: fromCRI(pod.NewOverhead), LinuxResources: fromCRI(pod.NewResources),
		})
	case PodUpdated:
		err = p.lib.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: about})
	case StopPod:
		err = p.lib.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: about})
	case RemovePod:
		err = p.lib.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: about})
	default:
		err = fmt.Errorf("%s is no event of a pod", e)
	}
	return objection(e, err)
}

// Container tells plugins of a container. Only StopContainer is answered.
func (p *Plugins) Container(ctx context.Context, e Event, pod *Pod, c *Container) (a Answer, err error) {
	in, about := pod.message(), c.message()
	switch e {
	case ContainerCreated:
		err = p.lib.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: in, Container: about})
	case StartContainer:
		err = p.lib.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: in, Container: about})
	case ContainerStarted:
		err = p.lib.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: in, Container: about})
	case ContainerUpdated:
		err = p.lib.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: in, Container: about})
	case StopContainer:
		var reply *adaptation.StopContainerResponse
		if reply, err = p.lib.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: in, Container: about}); err == nil {
			a.Updates = updates(reply.GetUpdate())
		}
	case RemoveContainer:
		err = p.lib.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: in, Container: about})
	default:
		err = fmt.Errorf("%s is no event of a container", e)
	}
	return a, objection(e, err)
}

// Create asks plugins about a container that is to be made, and changes its
// spec as they say. The answer's Resources are the limits they changed.
func (p *Plugins) Create(ctx context.Context, pod *Pod, c *Container) (Answer, error) {
	ctx, heard := overhear(ctx)
	reply, err := p.lib.CreateContainer(ctx, &adaptation.CreateContainerRequest{Pod: pod.message(), Container: c.message()})
	if err != nil {
		return Answer{}, objection(CreateContainer, err)
	}
	changed, err := adjust(c.Spec, reply.GetAdjust(), p.c.Inject)
	if err != nil {
		return Answer{}, fmt.Errorf("adjust the container as NRI plugins say: %w", err)
	}
	return Answer{Resources: changed, Updates: updates(reply.GetUpdate()), Evictions: heard.all()}, nil
}

// Update asks plugins about limits that are to be changed. The answer's
// Resources take their place.
func (p *Plugins) Update(ctx context.Context, pod *Pod, c *Container) (Answer, error) {
	ctx, heard := overhear(ctx)
	reply, err := p.lib.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
		Pod: pod.message(), Container: c.message(), LinuxResources: fromCRI(c.NewResources),
	})
	if err != nil {
		return Answer{}, objection(UpdateContainer, err)
	}
	a := Answer{Resources: c.NewResources, Evictions: heard.all()}
	for _, u := range updates(reply.GetUpdate()) {
		if u.ID != c.ID {
			a.Updates = append(a.Updates, u)
			continue
		}
		a.Resources = rest(c.NewResources, u.Resources)
	}
	return a, nil
}

// synchronize tells a plugin that joins, or the first ones, what there is. The
// library lets no hook run meanwhile.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	pods, containers := p.node.Known()
	podMessages := make([]*api.PodSandbox, len(pods))
	for i := range pods {
		podMessages[i] = pods[i].message()
	}
	containerMessages := make([]*api.Container, len(containers))
	for i := range containers {
		containerMessages[i] = containers[i].message()
	}
	asked, err := tell(ctx, podMessages, containerMessages)
	if err != nil {
		return err
	}
	if a := (Answer{Updates: updates(asked)}); len(a.Updates) > 0 {
		return p.later(a)
	}
	return nil
}

// later applies what a plugin that joins wants. Not in the call that it wants
// it in: an operation that an update waits for may itself wait for the plugin
// to have joined. It returns an error once Run is to end.
func (p *Plugins) later(a Answer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	p.pending.Go(func() { p.node.Apply(p.ctx, a) })
	return nil
}

// finish waits for what later began; ctx has ended.
func (p *Plugins) finish() {
	p.mu.Lock() // nothing begins after this
	defer p.mu.Unlock()
	p.pending.Wait()
}

// update applies what a plugin asks for outside any hook, and returns what failed.
func (p *Plugins) update(ctx context.Context, asked []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	a := Answer{Updates: updates(asked)}
	if heard := overheard(ctx); heard != nil {
		a.Evictions = heard.all()
	}
	failed := map[string]bool{}
	for _, u := range p.node.Apply(ctx, a) {
		failed[u.ID] = true
	}
	var back []*api.ContainerUpdate
	for _, u := range asked {
		if failed[u.GetContainerId()] {
			back = append(back, u)
		}
	}
	return back, nil
}

// objection says whose fault an error is. Of a plugin's only the text counts:
// it carries a status that is not davit's.
func objection(e Event, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("ask NRI plugins about %s: %w", e, err)
	}
	return fault.New(fault.Precondition, "", "NRI plugins object to %s: %s", e, err.Error())
}

// counter keeps count of the plugins, of all that the library would measure.
type counter struct{ n *atomic.Int64 }

func (counter) RecordPluginInvocation(string, string, error)                               {}
func (counter) RecordPluginLatency(string, string, time.Duration)                          {}
func (counter) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {}
func (c counter) UpdatePluginCount(n int)                                                  { c.n.Store(int64(n)) }
