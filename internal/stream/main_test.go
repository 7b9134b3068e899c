package stream

import (
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	forwardGrace, stopGrace = 300*time.Millisecond, 300*time.Millisecond
	os.Exit(m.Run())
}
