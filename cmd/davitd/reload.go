package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/cdi"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/settings"
)

// A reloader has the configuration that is in force. It reads the file again
// when it is asked to, takes over what can change while davitd runs, and tells
// what came of it.
type reloader struct {
	asked <-chan os.Signal
	read  func() (*config, error) // options and file, once more
	level *slog.LevelVar          // of the log
	log   *slog.Logger

	now  atomic.Pointer[config]
	last atomic.Pointer[reloaded]
}

// A reloaded is what came of reading the configuration last.
type reloaded struct {
	File        string    `json:"file"` // empty: there is none
	At          time.Time `json:"readAt"`
	Error       string    `json:"error,omitempty"`       // why it is not in force; what was before is
	Applied     []string  `json:"applied,omitempty"`     // keys that changed
	NeedRestart []string  `json:"needRestart,omitempty"` // keys that differ from what is in force
}

func newReloader(c *config, asked <-chan os.Signal, read func() (*config, error), level *slog.LevelVar, log *slog.Logger) *reloader {
	r := &reloader{asked: asked, read: read, level: level, log: log}
	r.now.Store(c)
	r.last.Store(&reloaded{File: c.text.Name(), At: time.Now()})
	return r
}

// during is c with what of next takes effect while davitd runs. The table
// registries is read for each pull in any case.
func (c *config) during(next *config) *config {
	now := *c
	now.Log.Level = next.Log.Level
	now.DefaultRuntime, now.Runtimes = next.DefaultRuntime, next.Runtimes
	now.Network.CNIConfDir, now.Network.CNIBinDirs, now.Network.CNIDelPatience = next.Network.CNIConfDir, next.Network.CNIBinDirs, next.Network.CNIDelPatience
	now.Images.Pinned, now.Images.Verifiers = next.Images.Pinned, next.Images.Verifiers
	now.Ulimits, now.CDISpecDirs, now.Registries = next.Ulimits, next.CDISpecDirs, next.Registries
	return &now
}

// run reads again whenever it is asked to, until ctx ends. What changed is
// applied before the next one is read.
func (r *reloader) run(ctx context.Context, apply func(context.Context)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.asked:
			// systemd: sd_notify(3), RELOADING=1
			notify(r.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			notify(r.log, daemon.SdNotifyReady+"\nSTATUS="+r.reload(ctx, apply))
		}
	}
}

// reload reads the configuration and returns what came of it, in one line.
func (r *reloader) reload(ctx context.Context, apply func(context.Context)) string {
	before := r.now.Load()
	last := &reloaded{File: before.file, At: time.Now(), NeedRestart: r.last.Load().NeedRestart}
	next, err := r.read()
	if err != nil {
		last.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		r.last.Store(last)
		r.log.Error("the configuration is not reloaded; what was before is in force", "error", last.Error)
		return "Not reloaded: " + last.Error
	}
	now := before.during(next)
	last.File = next.text.Name()
	last.Applied, last.NeedRestart = settings.Changed(*before, *now), settings.Changed(*now, *next)
	r.now.Store(now)
	r.level.Set(now.Log.Level.value())
	apply(ctx)
	r.last.Store(last)
	r.log.Info("the configuration is reloaded", "file", last.File, "applied", last.Applied, "need_restart", last.NeedRestart)
	line := "Reloaded; applied: " + cmp.Or(strings.Join(last.Applied, ", "), "nothing")
	if len(last.NeedRestart) > 0 {
		line += "; after a restart: " + strings.Join(last.NeedRestart, ", ")
	}
	return line
}

// troubles is a line while the file is not what is in force since it is wrong.
func (r *reloader) troubles() []string {
	last := r.last.Load()
	if last.Error == "" {
		return nil
	}
	return []string{fmt.Sprintf("the configuration read at %s is wrong, and the one before in force: %s", last.At.Format(time.RFC3339), last.Error)}
}

// A told is JSON of what f returns when it is asked for.
type told func() any

// MarshalJSON is for encoding/json.
func (f told) MarshalJSON() ([]byte, error) { return json.Marshal(f()) }

// apply has the parts go by the configuration in force. What they ask r for is
// not here.
func (p *parts) apply(ctx context.Context, r *reloader) {
	c := r.now.Load()
	p.runtimes.use(c)
	p.byCDI.Store(cdi.New(c.CDISpecDirs, r.log))
	p.network.SetCNI(ctx, c.Network.CNIConfDir, c.Network.CNIBinDirs, c.Network.CNIDelPatience.value())
	p.images.SetPins(c.Images.pins())
}

// limited is ocispec.Make with the limits in force.
func (r *reloader) limited(in ocispec.Input) (*specs.Spec, error) {
	return r.now.Load().Ulimits.Of(ocispec.Make)(in)
}

// verify asks the verifiers in force.
func (r *reloader) verify(ctx context.Context, name string, target imagespec.Descriptor) error {
	return r.now.Load().Images.verify(ctx, name, target, r.log)
}
