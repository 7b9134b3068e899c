package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/debian"
	"github.com/davit-runtime/davit/test/images/disk"
)

// The quantities of a first start. Most of its seconds are the processor's, in
// which the store has no part: they differ more from run to run than stores do.
const (
	firstStart = "seconds from CreateContainer to the end of the command"
	forDisk    = "of these, without the command's own computing"
	waits      = "times that the command waited"
	reads      = "reads from the disk"
)

// compareStarts runs the image's command from a cold cache, by turns with a
// store of directories and with davit's default one.
func (b *bench) compareStarts(ctx context.Context) (err error) {
	t := b.report.table("first start from a cold cache", []row{
		{name: firstStart}, {name: forDisk, limit: 1}, {name: waits, limit: 0.8}, {name: reads, limit: 0.9},
	})
	contestants := []contestant{b.davitd("directories", b.directories), b.davitd("davit", "")}
	var disks []*disk.Disk
	defer func() {
		for _, d := range disks {
			err = errors.Join(err, d.Close())
		}
	}()
	for i, c := range contestants {
		d, err := disk.Make(filepath.Join(b.work, fmt.Sprint("disk", i)), filepath.Join(b.work, fmt.Sprint("mounted", i)), diskBytes)
		if err != nil {
			return err
		}
		disks = append(disks, d)
		if err := b.pullFor(ctx, c, d); err != nil {
			return err
		}
	}
	for round := range b.starts {
		for i, c := range contestants {
			figures, err := b.coldStart(ctx, c, disks[i])
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			say("cold start, round %d, %s: %s", round+1, c.name, figures)
			t.add(c.name, figures)
		}
	}
	return nil
}

// pullFor pulls the image onto a disk.
func (b *bench) pullFor(ctx context.Context, c contestant, d *disk.Disk) error {
	r, err := c.start(d.Dir)
	if err != nil {
		return err
	}
	_, err = r.Pull(ctx, b.ref(debian.Tags[0]))
	return errors.Join(err, r.stop(), d.Sync())
}

func (b *bench) coldStart(ctx context.Context, c contestant, d *disk.Disk) (f figures, err error) {
	if err := d.Cold(); err != nil {
		return nil, err
	}
	r, err := c.start(d.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	pod := testkit.PodConfig("cold", r.logs)
	pod.Hostname, pod.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	podID, err := r.RunPod(ctx, pod)
	if err != nil {
		return nil, err
	}
	config := testkit.ContainerConfig("cold", b.ref(debian.Tags[0]), debian.Command...)
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	before, err := d.Reads()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	id, err := r.RunContainer(ctx, podID, pod, config)
	if err != nil {
		return nil, err
	}
	exit, err := r.AwaitExit(ctx, id)
	if err != nil {
		return nil, err
	}
	seconds := time.Since(begin).Seconds()
	after, err := d.Reads()
	if err != nil {
		return nil, err
	}
	said, err := os.ReadFile(filepath.Join(pod.LogDirectory, config.LogPath))
	if err != nil {
		return nil, err
	}
	if exit.ExitCode != 0 {
		return nil, fmt.Errorf("the command ended with %d:\n%s", exit.ExitCode, said)
	}
	computed, waited, err := parseSaid(string(said))
	f = figures{firstStart: seconds, forDisk: seconds - computed, waits: waited, reads: float64(after - before)}
	return f, errors.Join(err, r.RemovePod(ctx, podID))
}

// parseSaid finds what debian.Command tells in its log.
func parseSaid(log string) (computed, waited float64, err error) {
	_, line, _ := strings.Cut(log, "computed ")
	if _, err := fmt.Sscanf(line, "%g waited %g", &computed, &waited); err != nil {
		return 0, 0, fmt.Errorf("the command's log: %w:\n%s", err, log)
	}
	return computed, waited, nil
}
