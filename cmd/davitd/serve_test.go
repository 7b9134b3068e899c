package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func TestServe(t *testing.T) {
	dir := t.TempDir()
	path, images := filepath.Join(dir, "run", "davit.sock"), filepath.Join(dir, "run", "images.sock")
	manager := filepath.Join(dir, "notify")
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: manager})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	t.Setenv("NOTIFY_SOCKET", manager)
	read := func() string {
		buf := make([]byte, 64)
		_ = told.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := told.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	// What a davitd that was killed left.
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	sockets := map[string]*grpc.Server{path: grpc.NewServer(), images: grpc.NewServer()}
	go func() { served <- serve(ctx, sockets, quiet, func() string { return "all is well" }) }()
	if s := read(); s != "READY=1\nSTATUS=all is well" {
		t.Errorf("told %q", s)
	}
	for path := range sockets {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != os.ModeSocket|0o660 {
			t.Errorf("socket: %v, %v", info, err)
		}
	}
	// Another program took one over.
	if err := errors.Join(os.Remove(images), os.WriteFile(images, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if s := read(); !strings.HasPrefix(s, "STOPPING=1\nSTATUS=") {
		t.Errorf("told %q", s)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 || left[0].Name() != filepath.Base(images) {
		t.Errorf("left behind: %v", left)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	_, err := listen(filepath.Join(t.TempDir(), strings.Repeat("x", 120)))
	if err == nil || !strings.Contains(err.Error(), "the kernel allows 107") {
		t.Errorf("%v", err)
	}
}

func TestKeeperThatDoesNotStart(t *testing.T) {
	k := &keeperWatch{binary: "/nowhere/davit-monitor", state: t.TempDir(), log: quiet}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	ended := make(chan error, 1)
	go func() { ended <- k.run(ctx) }()
	for k.err() == nil && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	if err := k.err(); err == nil || !strings.Contains(err.Error(), "/nowhere/davit-monitor") {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestListenAtDirectory(t *testing.T) {
	dir := t.TempDir()
	if _, err := listen(dir); err == nil || err.Error() != "socket "+dir+": there is a directory of that name" {
		t.Errorf("%v", err)
	}
}
