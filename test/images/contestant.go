package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// directories is how davitd is told to keep layers in directories.
const directories = "[images]\nstore = \"directories\"\n"

// A contestant is a runtime, set up in one way.
type contestant struct {
	name      string
	processes *regexp.Regexp // whose processor time is its own
	start     func(dir string) (*running, error)
}

// running is a contestant that serves. What it keeps is below the directory
// that it was started with.
type running struct {
	*testkit.Client
	pid  int // of the daemon that pulls
	logs string
	stop func() error
}

// davitd is davit with an added configuration.
func (b *bench) davitd(name, config string) contestant {
	return contestant{name, regexp.MustCompile("^davit"), func(dir string) (*running, error) {
		d, err := testkit.StartDaemon(dir, b.config+config)
		if err != nil {
			if d != nil {
				err = errors.Join(err, d.Close())
			}
			return nil, err
		}
		c, err := testkit.Dial("unix://" + d.Socket)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		stop := func() error {
			c.Close()
			return d.Close()
		}
		return &running{c, d.Pids()["davitd"][0], d.Logs, stop}, nil
	}}
}

// containerd is the rival with its default configuration, but for where things
// are; with added to it.
func (b *bench) containerd(name, added string) contestant {
	processes := regexp.MustCompile(`^(containerd|igzip|unpigz|mkfs\.erofs)$`)
	return contestant{name, processes, func(dir string) (*running, error) { return b.startContainerd(dir, added) }}
}

// settings moves all that containerd would share with a containerd of this
// machine. What it takes from /etc/containerd has no effect on loopback.
const settings = `version = 3
root = '%[1]s'
state = '%[2]s/state'
temp = ''
imports = []
[plugins.'io.containerd.server.v1.grpc']
  address = '%[2]s/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '%[2]s/containerd.sock.ttrpc'
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '%[2]s/s'
[plugins.'io.containerd.internal.v1.opt']
  path = '%[2]s/opt'
[plugins.'io.containerd.nri.v1.nri']
  disable = true
`

func (b *bench) startContainerd(dir, added string) (*running, error) {
	state := filepath.Join(b.work, "containerd")
	if err := os.MkdirAll(state, 0o711); err != nil {
		return nil, err
	}
	config := filepath.Join(state, "config.toml")
	text := fmt.Sprintf(settings, filepath.Join(dir, "root"), state) + added
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(state, "log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	binary, err := filepath.Abs(b.rival)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, "--config", config)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.Env = os.Environ()
	if !b.helpers {
		cmd.Env = append(cmd.Env, "CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1")
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start containerd: %w (test/images/build.sh makes it)", err)
	}
	c, err := testkit.Dial("unix://" + filepath.Join(state, "containerd.sock"))
	if err != nil {
		return nil, err
	}
	stop := func() error {
		c.Close()
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		return os.RemoveAll(state)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		_, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err == nil {
			return &running{c, cmd.Process.Pid, "", stop}, nil
		}
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(logFile.Name())
			return nil, errors.Join(fmt.Errorf("containerd does not answer: %w\n%s", err, said), stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
