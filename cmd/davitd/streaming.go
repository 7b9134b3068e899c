package main

import (
	"context"
	"log/slog"
	"net"
	"strconv"

	"github.com/davit-runtime/davit/internal/stream"
)

// A streamingConfig is about the sessions of exec, attach and port-forward.
type streamingConfig struct {
	Address     string   `toml:"address"`       // host:port; empty: a free port of the loopback interface
	TLSCertFile string   `toml:"tls_cert_file"` // both or none
	TLSKeyFile  string   `toml:"tls_key_file"`
	IdleTimeout duration `toml:"idle_timeout"` // empty: 4h
}

// check says what is wrong with values, each by its key.
func (c *streamingConfig) check(bad func(key, format string, args ...any), absolute func(key, path string)) {
	if c.Address != "" {
		_, port, err := net.SplitHostPort(c.Address)
		if n, numErr := strconv.Atoi(port); err != nil || numErr != nil || n < 0 || n > 65535 {
			bad("streaming.address", "%q is not as 127.0.0.1:10010; port 0 is any that is free", c.Address)
		}
	}
	absolute("streaming.tls_cert_file", c.TLSCertFile)
	absolute("streaming.tls_key_file", c.TLSKeyFile)
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		bad("streaming.tls_cert_file", "goes together with streaming.tls_key_file")
	}
	c.IdleTimeout.check(bad, "streaming.idle_timeout", 0, maxDuration)
}

func (c *streamingConfig) listen(log *slog.Logger) (*stream.Server, error) {
	return stream.Listen(stream.Config{
		Address: c.Address, CertFile: c.TLSCertFile, KeyFile: c.TLSKeyFile,
		IdleTimeout: c.IdleTimeout.value(), Log: log,
	})
}

// hushed takes the log of Kubernetes' libraries, which call errors what
// davit's own log tells with each session.
type hushed struct{ slog.Handler }

func (h hushed) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h hushed) Handle(ctx context.Context, r slog.Record) error {
	if !h.Enabled(ctx, r.Level) {
		return nil // klog does not ask before it tells of errors
	}
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}

func (h hushed) WithAttrs(attrs []slog.Attr) slog.Handler { return hushed{h.Handler.WithAttrs(attrs)} }

func (h hushed) WithGroup(name string) slog.Handler { return hushed{h.Handler.WithGroup(name)} }
