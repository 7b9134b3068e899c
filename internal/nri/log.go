package nri

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/nri/pkg/log"
)

// The library has one log for the whole process, to be set before it is used.
var (
	current atomic.Pointer[slog.Logger]
	install = sync.OnceFunc(func() { log.Set(logger{}) })
)

// logTo makes the library log to l.
func logTo(l *slog.Logger) {
	current.Store(l)
	install()
}

// logger is what the library logs to. Most of what it tells is for those who
// look for a fault; that plugins come and go is for everybody.
type logger struct{}

func (logger) Debugf(_ context.Context, format string, args ...any) {
	tell(slog.LevelDebug, format, args)
}

func (logger) Infof(_ context.Context, format string, args ...any) {
	level := slog.LevelDebug
	if strings.Contains(format, "plugin %q") {
		level = slog.LevelInfo
	}
	tell(level, format, args)
}

func (logger) Warnf(_ context.Context, format string, args ...any) {
	tell(slog.LevelWarn, format, args)
}

func (logger) Errorf(_ context.Context, format string, args ...any) {
	tell(slog.LevelError, format, args)
}

func tell(level slog.Level, format string, args []any) {
	if l := current.Load(); l.Enabled(context.Background(), level) {
		l.Log(context.Background(), level, "nri: "+fmt.Sprintf(format, args...))
	}
}
