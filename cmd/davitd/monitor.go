package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

// keepMonitor starts the keeper again should it die, until ctx ends. The keeper
// itself sees to davit-monitor, and holds its socket meanwhile.
func keepMonitor(ctx context.Context, binary, state string, log *slog.Logger) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", monitor.SocketPath(state))
		if err == nil {
			_ = conn.Close()
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("the keeper is gone and is started again", "error", err)
		if err := monitor.Ensure(ctx, binary, state); err != nil {
			log.Error("the keeper does not start", "error", err)
		}
	}
}
