package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/davit-runtime/davit/internal/monitor"
)

// findMonitor looks for davit-monitor beside this program, else on PATH.
func findMonitor() (string, error) {
	const name = "davit-monitor"
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside davitd nor on PATH", name)
	}
	return filepath.Abs(path)
}

// A keeperWatch starts the keeper again should it die. The keeper itself sees
// to davit-monitor, and holds its socket meanwhile.
type keeperWatch struct {
	binary, state string
	log           *slog.Logger
	trouble       atomic.Pointer[error] // why there is none now
	// How often davit-monitor is asked for its containers, and how long it may
	// take. One that misses twice is killed.
	every, patience time.Duration
}

// A davit-monitor that works answers within milliseconds; one on a node that
// swaps, or in an emulated machine, within seconds.
const (
	attendEvery    = 15 * time.Second
	attendPatience = 30 * time.Second
)

// err returns why there is no keeper; nil if there is one.
func (k *keeperWatch) err() error {
	if err := k.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// begin has a keeper run, and it and davit-monitor be of this davitd's version:
// one of another becomes ours in place. One that cannot be replaced is made do
// with as long as it is understood.
func (k *keeperWatch) begin(ctx context.Context) error {
	replaced, err := monitor.Replace(ctx, k.binary, k.state)
	switch {
	case err != nil:
		k.log.Warn("davit-monitor runs on as it is, not as the one installed", "installed", k.binary, "reason", err)
	case replaced:
		k.log.Info("davit-monitor was replaced in place", "by", k.binary)
	}
	return monitor.Ensure(ctx, k.binary, k.state)
}

// run looks once a second until ctx ends.
func (k *keeperWatch) run(ctx context.Context) error {
	return every(ctx, time.Second, func() { k.look(ctx) })
}

// look starts the keeper again if it has gone.
func (k *keeperWatch) look(ctx context.Context) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", monitor.SocketPath(k.state))
	if err == nil {
		_ = conn.Close()
		k.trouble.Store(nil)
		return
	}
	if ctx.Err() != nil {
		return
	}
	k.log.Warn("the keeper is gone and is started again", "error", err)
	if err = monitor.Ensure(ctx, k.binary, k.state); err != nil {
		k.log.Error("the keeper does not start", "error", err)
		k.trouble.Store(&err)
	}
}

// attend has davit-monitor killed if it hangs, until ctx ends: no container
// could be started or would be known to have ended. What it had under way is
// lost, as whenever it is killed; containers and their logs are not.
func (k *keeperWatch) attend(ctx context.Context) error {
	missed := 0
	return every(ctx, k.every, func() {
		asking, cancel := context.WithTimeout(ctx, k.patience)
		_, err := monitor.Connect(k.state).List(asking)
		late := asking.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return
		}
		if !late {
			missed = 0
			return
		}
		if missed++; missed < 2 {
			return
		}
		k.log.Error("davit-monitor hangs and is killed", "silent_for", 2*k.patience, "error", err)
		missed = 0
		killing, cancel := context.WithTimeout(ctx, k.patience)
		defer cancel()
		if err := monitor.Restart(killing, k.state); err != nil {
			k.log.Error("davit-monitor is not killed", "error", err)
		}
	})
}
