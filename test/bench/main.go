// Command bench measures a container runtime through the CRI alone: pod to
// running, exec, stop, memory with many pods, log throughput.
//
// Without -endpoint it starts a davitd of its own, in private namespaces. With
// one it measures whatever serves there, so that numbers can be compared on
// one machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

type options struct {
	endpoint, image, handler, jsonFile string
	config                             string
	runs, pods, logMB                  int
	processes                          *regexp.Regexp
}

func main() {
	var o options
	processes := ""
	flag.StringVar(&o.endpoint, "endpoint", "", "CRI socket, unix:///…; empty: a davitd of its own")
	flag.StringVar(&o.image, "image", "", "image with a busybox; empty: made here and served on loopback")
	flag.StringVar(&o.handler, "handler", "", "RuntimeClass handler")
	flag.StringVar(&o.config, "config", "", "with a davitd of its own: its configuration file")
	flag.StringVar(&o.jsonFile, "json", "", "write the results to this file too")
	flag.IntVar(&o.runs, "runs", 40, "pods for the times")
	flag.IntVar(&o.pods, "pods", 50, "pods for the memory")
	flag.IntVar(&o.logMB, "log-mb", 500, "megabytes for the log throughput")
	flag.StringVar(&processes, "processes", "^davit", "whose memory and CPU time count: a pattern for process names")
	flag.Parse()
	var err error
	if o.processes, err = regexp.Compile(processes); err != nil {
		exit(err)
	}
	if o.endpoint != "" {
		exit(run(o))
	}
	code, inside := testkit.Inside()
	if !inside {
		os.Exit(code)
	}
	exit(run(o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run prepares image and runtime, measures, and prints.
func run(o options) (err error) {
	dir, err := os.MkdirTemp("", "davit-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	if o.image == "" {
		registry, err := testkit.StartRegistry(dir, "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer registry.Stop()
		img, err := testkit.Busybox()
		if err != nil {
			return err
		}
		o.image = registry.Host + "/bench/busybox:1"
		if err := testkit.Push(o.image, img); err != nil {
			return err
		}
	}
	if o.endpoint == "" {
		config, err := readConfig(o.config)
		if err != nil {
			return err
		}
		d, err := testkit.StartDaemon(dir, config)
		if d != nil {
			defer func() { err = errors.Join(err, d.Close()) }()
		}
		if err != nil {
			return err
		}
		o.endpoint = "unix://" + d.Socket
	}
	c, err := testkit.Dial(o.endpoint)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	return measure(ctx, &bench{options: o, c: c, logs: filepath.Join(dir, "podlogs"), dir: dir})
}

func readConfig(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := os.ReadFile(file)
	return string(text), err
}

// measure takes every measurement and prints them together.
func measure(ctx context.Context, b *bench) error {
	version, err := b.c.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	if _, err := b.c.Pull(ctx, b.image); err != nil {
		return fmt.Errorf("pull %s: %w", b.image, err)
	}
	r := newReport(version.RuntimeName, version.RuntimeVersion)
	for _, step := range []struct {
		name string
		do   func(context.Context, *report) error
	}{
		{"times", b.times}, {"memory", b.memory}, {"logs", b.logThroughput},
	} {
		fmt.Fprintln(os.Stderr, "measuring", step.name, "...")
		if err := step.do(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	r.print(os.Stdout)
	if b.jsonFile == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.jsonFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(b.jsonFile, append(text, '\n'), 0o644)
}
