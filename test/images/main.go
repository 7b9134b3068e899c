// Command images pulls one large image with davitd and with containerd 2.4, by
// turns, and compares what it costs: processor time, time, bytes written, space
// and how long it takes until the space is free again. Then it compares the
// first start of a container from a cold cache with davitd's two kinds of store.
//
// It exits with 1 if davitd exceeds a limit. Each pull has a file system of its
// own, made for it, in a file behind a loop device.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/debian"
	"github.com/davit-runtime/davit/test/images/layout"
)

type options struct {
	rival, images, work, jsonFile string
	rounds, starts                int
	small, helpers, erofs, pulls  bool
	config, directories           string
}

func main() {
	var o options
	flag.StringVar(&o.rival, "containerd", "bin/rival/containerd", "containerd, as build.sh makes it")
	flag.StringVar(&o.images, "images", "bin/images", "directory of the images; made if they are not there")
	flag.StringVar(&o.work, "work", os.TempDir(), "directory for the file systems: 5 GB")
	flag.StringVar(&o.jsonFile, "json", "", "write the results to this file too")
	flag.IntVar(&o.rounds, "rounds", 3, "pulls by each, of each image")
	flag.IntVar(&o.starts, "starts", 5, "cold starts from each kind of store; 0: none")
	flag.BoolVar(&o.pulls, "pulls", true, "compare pulls")
	flag.BoolVar(&o.small, "small", false, "a small image, for trying this program: its figures say little")
	flag.BoolVar(&o.helpers, "helpers", false, "let containerd use igzip or unpigz, if they are installed")
	flag.BoolVar(&o.erofs, "erofs", false, "show containerd's EROFS snapshotter beside; needs mkfs.erofs")
	flag.StringVar(&o.config, "config", "", "added to davitd's configuration (TOML)")
	flag.StringVar(&o.directories, "directories", directories, "davitd's configuration for the store of directories (TOML)")
	flag.Parse()
	// Inside there is no network to fetch packages from.
	made, err := debian.Make(context.Background(), layout.Dir(o.images), o.small, say)
	if err != nil {
		fmt.Fprintln(os.Stderr, "images: make the images:", err)
		os.Exit(1)
	}
	code, inside := testkit.Inside()
	if !inside {
		os.Exit(code)
	}
	missed, err := run(o, made)
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
	if missed > 0 {
		fmt.Printf("%d limits are exceeded\n", missed)
		os.Exit(1)
	}
}

// run measures everything, prints it, and returns how many limits are exceeded.
func run(o options, made debian.Made) (missed int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Hour)
	defer cancel()
	dir := layout.Dir(o.images)
	registry, err := layout.Serve(dir, false)
	if err != nil {
		return 0, err
	}
	defer registry.Close()
	work, err := os.MkdirTemp(o.work, "davit-images-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &bench{options: o, work: work, report: newReport(made, o), host: registry.Host}
	if o.pulls {
		for _, tag := range debian.Tags {
			if err := b.comparePulls(ctx, dir, tag); err != nil {
				return 0, fmt.Errorf("%s: %w", tag, err)
			}
		}
	}
	if o.starts > 0 {
		if err := b.compareStarts(ctx); err != nil {
			return 0, fmt.Errorf("first start: %w", err)
		}
	}
	missed = b.report.print(os.Stdout)
	if o.jsonFile == "" {
		return missed, nil
	}
	return missed, b.report.write(filepath.Clean(o.jsonFile))
}

// A bench is one run of the program.
type bench struct {
	options
	work   string
	host   string // of the registry
	report *report
}

func (b *bench) ref(tag string) string { return b.host + "/bench/debian:" + tag }

// say tells who waits what is done.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
