package testkit

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

// A Registry is Debian's docker-registry, serving plain HTTP on loopback.
type Registry struct {
	Host   string // "127.0.0.1:port"
	config string
	dir    string
	cmd    *exec.Cmd
}

// NewRegistry starts a registry for one test, on a free port.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	r, err := StartRegistry(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

// StartRegistry starts a registry that keeps everything below dir, and waits
// until it answers. A port of 0 takes a free one.
func StartRegistry(dir, address string) (*Registry, error) {
	if strings.HasSuffix(address, ":0") {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, err
		}
		address = l.Addr().String()
		_ = l.Close()
	}
	r := &Registry{Host: address, dir: dir, config: filepath.Join(dir, "config.yml")}
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), address)
	if err := os.WriteFile(r.config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	return r, r.Start()
}

// Start starts it again after Stop, on the same port and with what it had.
func (r *Registry) Start() error {
	logFile, err := os.Create(filepath.Join(r.dir, "log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	r.cmd = exec.Command("docker-registry", "serve", r.config)
	r.cmd.Stdout, r.cmd.Stderr = logFile, logFile
	r.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start the registry: %w", err)
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + r.Host + "/v2/")
		if err == nil {
			return resp.Body.Close()
		}
		if time.Now().After(deadline) {
			r.Stop()
			text, _ := os.ReadFile(logFile.Name())
			return fmt.Errorf("the registry does not answer: %w\n%s", err, text)
		}
	}
}

// Stop ends it. What was pushed stays for the next Start.
func (r *Registry) Stop() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	r.cmd = nil
}

// Push stores an image under "name:tag" and returns its reference.
func (r *Registry) Push(t testing.TB, nameTag string, img v1.Image) string {
	t.Helper()
	ref := r.Host + "/" + nameTag
	if err := Push(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

// PushIndex stores an index and its images in a registry that speaks plain HTTP.
func PushIndex(ref string, index v1.ImageIndex) error {
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.WriteIndex(parsed, index); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// PushBusybox stores the small image of Busybox and returns its reference.
func (r *Registry) PushBusybox(t testing.TB, nameTag string) string {
	t.Helper()
	img, err := Busybox()
	if err != nil {
		t.Fatal(err)
	}
	return r.Push(t, nameTag, img)
}

// Push stores an image in a registry that speaks plain HTTP.
func Push(ref string, img v1.Image) error {
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(parsed, img, remote.WithContext(context.Background())); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Images is a registry in this process's memory, on loopback and a free port,
// for programs that cannot count on Debian's.
type Images struct {
	Host   string // "127.0.0.1:port"
	server *http.Server
	ended  chan error
}

// ServeImages starts one. Close ends it.
func ServeImages() (*Images, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i := &Images{
		Host:   l.Addr().String(),
		server: &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))},
		ended:  make(chan error, 1),
	}
	go func() { i.ended <- i.server.Serve(l) }()
	return i, nil
}

// Close ends it and forgets all images.
func (i *Images) Close() {
	_ = i.server.Close()
	<-i.ended
}
