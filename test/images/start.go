package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/images/debian"
	"github.com/davit-runtime/davit/test/images/disk"
)

const firstStart = "seconds from CreateContainer to the end of the command"

// compareStarts runs the image's command from a cold cache, by turns with a
// store of directories and with davit's default one.
func (b *bench) compareStarts(ctx context.Context) (err error) {
	t := b.report.table("first start from a cold cache", []row{{name: firstStart, limit: 1}})
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
			took, err := b.coldStart(ctx, c, disks[i])
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			say("cold start, round %d, %s: %.2f s", round+1, c.name, took)
			t.add(c.name, figures{firstStart: took})
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

func (b *bench) coldStart(ctx context.Context, c contestant, d *disk.Disk) (seconds float64, err error) {
	if err := d.Cold(); err != nil {
		return 0, err
	}
	r, err := c.start(d.Dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	pod := testkit.PodConfig("cold", r.logs)
	pod.Hostname, pod.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	podID, err := r.RunPod(ctx, pod)
	if err != nil {
		return 0, err
	}
	config := testkit.ContainerConfig("cold", b.ref(debian.Tags[0]), debian.Command...)
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	begin := time.Now()
	id, err := r.RunContainer(ctx, podID, pod, config)
	if err != nil {
		return 0, err
	}
	exit, err := r.AwaitExit(ctx, id)
	if err != nil {
		return 0, err
	}
	seconds = time.Since(begin).Seconds()
	if exit.ExitCode != 0 {
		said, _ := os.ReadFile(filepath.Join(pod.LogDirectory, config.LogPath))
		return 0, fmt.Errorf("the command ended with %d:\n%s", exit.ExitCode, said)
	}
	return seconds, r.RemovePod(ctx, podID)
}
