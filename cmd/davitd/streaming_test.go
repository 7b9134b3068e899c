package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// What Kubernetes' libraries call errors is in the log at level debug only.
func TestLibrariesAreHushed(t *testing.T) {
	defer klog.ClearLogger()
	for level, lines := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 1} {
		var log bytes.Buffer
		klog.SetSlogLogger(slog.New(hushed{slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level})}))
		klog.Background().Error(errors.New("gone"), "Unhandled Error")
		if got := strings.Count(log.String(), "level=DEBUG"); got != lines || strings.Count(log.String(), "\n") != lines {
			t.Errorf("at level %s: %s", level, log.String())
		}
	}
}
