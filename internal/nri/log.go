package nri

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// logger is what the library logs to. Most of what it tells is for those who
// look for a fault; that plugins come and go is for everybody.
type logger struct{ l *slog.Logger }

func (l logger) Debugf(_ context.Context, format string, args ...any) {
	l.l.Debug("nri: " + fmt.Sprintf(format, args...))
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	if !strings.Contains(format, "plugin %q") {
		l.Debugf(ctx, format, args...)
		return
	}
	l.l.Info("nri: " + fmt.Sprintf(format, args...))
}

func (l logger) Warnf(_ context.Context, format string, args ...any) {
	l.l.Warn("nri: " + fmt.Sprintf(format, args...))
}

func (l logger) Errorf(_ context.Context, format string, args ...any) {
	l.l.Error("nri: " + fmt.Sprintf(format, args...))
}
