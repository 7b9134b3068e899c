package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ociruntime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// builtin are the handlers that need no configuration, the preferred one first.
var builtin = []string{"crun", "runc"}

// runtimes finds the OCI runtimes of handlers. It looks again for one that is
// missing, so that a runtime installed later needs no restart. It implements
// pod.Runtimes.
type runtimes struct {
	config  atomic.Pointer[config]
	changed chan struct{} // config has; holds one
	systemd bool          // cgroups by systemd
	log     *slog.Logger
	bpf     *seccompCache

	mu       sync.Mutex
	features map[string]ociruntime.Features // by path
	tried    map[string]*trial              // by path
	trials   *trials                        // nil: nothing can be tried
}

func newRuntimes(c *config, systemd bool, log *slog.Logger) *runtimes {
	r := &runtimes{
		changed: make(chan struct{}, 1), systemd: systemd, log: log, bpf: newSeccompCache(c.Root, log),
		features: map[string]ociruntime.Features{}, tried: map[string]*trial{},
	}
	r.config.Store(c)
	return r
}

// use goes by c from now on. Containers that there are keep the runtime that
// they were made with.
func (r *runtimes) use(c *config) {
	r.config.Store(c)
	select {
	case r.changed <- struct{}{}:
	default: // it is told already
	}
}

// names are the handlers that are configured, or built in and present.
func (r *runtimes) names() []string {
	names := slices.Collect(maps.Keys(r.config.Load().Runtimes))
	for _, name := range builtin {
		if _, err := ociruntime.Find(name); err == nil && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if d := r.defaultName(); !slices.Contains(names, d) {
		names = append(names, d)
	}
	slices.Sort(names)
	return names
}

// defaultName is the handler that no name stands for.
func (r *runtimes) defaultName() string {
	if r.config.Load().DefaultRuntime != "" {
		return r.config.Load().DefaultRuntime
	}
	for _, name := range builtin {
		if _, err := r.find(name); err == nil {
			return name
		}
	}
	return builtin[0]
}

// find returns the path of a handler's program, Unavailable if it is missing.
func (r *runtimes) find(handler string) (string, error) {
	program := handler
	if c := r.config.Load().Runtimes[handler]; c.Path != "" {
		program = c.Path
	}
	return ociruntime.Find(program)
}

func (r *runtimes) Runtime(handler string) (ociruntime.Runtime, error) {
	if handler == "" {
		handler = r.defaultName()
	}
	if names := r.names(); !slices.Contains(names, handler) {
		return ociruntime.Runtime{}, fault.New(fault.Invalid, "", "runtime handler %q is not configured; known: %s", handler, strings.Join(names, ", "))
	}
	path, err := r.find(handler)
	if err != nil {
		return ociruntime.Runtime{}, err
	}
	return ociruntime.Runtime{
		Handler: handler, Path: path,
		Root:          filepath.Join(r.config.Load().State, "oci", handler),
		SystemdCgroup: r.systemd,
	}, nil
}

// ready says what is missing for pods without a handler of their own.
func (r *runtimes) ready() error {
	name := r.defaultName()
	if _, err := r.find(name); err != nil {
		if r.config.Load().DefaultRuntime == "" && len(r.config.Load().Runtimes) == 0 {
			return fmt.Errorf("no OCI runtime: neither crun nor runc is on this host; install one, e.g. apt install crun")
		}
		return fmt.Errorf("the default runtime handler %q cannot be used: %w; install it or change default_runtime", name, err)
	}
	return nil
}

// handlers describes all for Status. It waits for first trials, if they have
// begun no more than a few seconds ago.
func (r *runtimes) handlers() []validate.Handler {
	names := r.names()
	tried := r.try(names)
	var all []validate.Handler
	fallback := r.defaultName()
	for _, name := range names {
		var can trialResult
		if t := tried[name]; t != nil {
			can = t.result()
		}
		all = append(all, validate.Handler{
			Name: name, Default: name == fallback,
			RecursiveReadOnly: can.ReadOnly, UserNamespaces: can.Users, HostNetworkUsers: can.HostNetworkUsers,
		})
	}
	return all
}

// try has all handlers tried that have not been, and returns the trials there
// are. It does not wait for them.
func (r *runtimes) try(handlers []string) map[string]*trial {
	tried := map[string]*trial{}
	for _, handler := range handlers {
		of, err := r.Runtime(handler)
		if err != nil || r.trials == nil {
			continue
		}
		r.mu.Lock()
		if r.tried[of.Path] == nil {
			r.tried[of.Path] = r.trials.begin(of, func(ctx context.Context) (ociruntime.Features, error) { return r.ask(ctx, handler, of.Path) })
		}
		tried[handler] = r.tried[of.Path]
		r.mu.Unlock()
	}
	return tried
}

// warm has trials done before anybody asks, and ends them with ctx.
func (r *runtimes) warm(ctx context.Context) {
	r.try(r.names())
	<-ctx.Done()
	r.trials.crew.Dismiss()
}

func (r *runtimes) known(path string) (ociruntime.Features, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.features[path]
	return f, ok
}

// probe asks every runtime on this host what it can do, all at once.
func (r *runtimes) probe(ctx context.Context) {
	var all sync.WaitGroup
	for _, name := range r.names() {
		path, err := r.find(name)
		if err != nil {
			r.log.Warn("OCI runtime is missing", "handler", name, "error", err)
			continue
		}
		all.Go(func() {
			if _, err := r.ask(ctx, name, path); err != nil {
				r.log.Warn("OCI runtime does not answer", "handler", name, "path", path, "error", err)
			}
		})
	}
	all.Wait()
}

// ask returns what a runtime says that it can do. One that has answered is not
// asked again.
func (r *runtimes) ask(ctx context.Context, handler, path string) (ociruntime.Features, error) {
	if f, known := r.known(path); known {
		return f, nil
	}
	f, err := ociruntime.Probe(ctx, path)
	if err != nil {
		return f, err
	}
	r.log.Info("OCI runtime", "handler", handler, "path", path, "version", f.Version, "default", handler == r.defaultName())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.features[path] = f
	return f, nil
}

// Seccomp returns the filter in the form crun takes it ready-made.
// crun: crun.1, run.oci.seccomp_bpf_data.
func (r *runtimes) Seccomp(of ociruntime.Runtime, profile *specs.LinuxSeccomp) map[string]string {
	program := r.bpf.get(of, profile)
	if program == "" {
		return nil
	}
	return map[string]string{"run.oci.seccomp_bpf_data": program}
}

// compile fills the cache of seccomp filters for every runtime that was probed,
// then with what containers bring, until ctx ends. When the configuration has
// changed it first asks and tries the runtimes that are new.
func (r *runtimes) compile(ctx context.Context, with compiler, caps []string) {
	for {
		for _, name := range r.names() {
			of, err := r.Runtime(name)
			if err != nil {
				continue
			}
			if f, ok := r.known(of.Path); ok {
				r.bpf.fill(ctx, with, of, f, caps)
			}
		}
		r.bpf.serve(ctx, with, r.changed)
		if ctx.Err() != nil {
			return
		}
		r.try(r.names())
		r.probe(ctx)
	}
}
