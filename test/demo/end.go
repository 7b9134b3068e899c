package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// remove stops and removes the pod and requires that davitd knows it no more,
// and keeps nothing of it.
func (d *demo) remove(ctx context.Context) error {
	for _, command := range []string{"stop", "rm"} {
		if err := d.davit(ctx, command, podName); err != nil {
			return err
		}
	}
	pods, err := d.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := d.client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	if len(pods.Items)+len(containers.Containers) > 0 {
		return fmt.Errorf("still listed: %v %v", pods.Items, containers.Containers)
	}
	for _, dir := range []string{
		filepath.Join(d.daemon.Root, "pods"), filepath.Join(d.daemon.Root, "containers"),
		filepath.Join(d.daemon.State, "pods"), filepath.Join(d.daemon.State, "containers"), filepath.Join(d.daemon.State, "exits"),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s is not empty: %v", dir, entries)
		}
	}
	return nil
}

// end ends every process of davit, unmounts its state and removes its
// directories, as an administrator would.
func (d *demo) end(context.Context) error {
	d.client.Close()
	if err := d.daemon.Stop(); err != nil {
		return err
	}
	if err := d.daemon.EndMonitor(); err != nil {
		return err
	}
	d.registry.Stop()
	if err := unix.Unmount(d.daemon.State, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.daemon.State, err)
	}
	d.daemon = nil
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(d.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// prove compares with what there was before the first step.
func (d *demo) prove(context.Context) error {
	left := d.baseline.Left()
	for _, kind := range []struct{ prefix, plural string }{
		{"process ", "processes"},
		{"mount ", "mounts, pinned namespaces among them"},
		{"link ", "links"},
		{"nft table ", "nftables tables"},
		{"cgroup ", "cgroups"},
		{"file ", "files and directories"},
	} {
		n := 0
		for _, l := range left {
			if strings.HasPrefix(l, kind.prefix) {
				n++
				say("%s", l)
			}
		}
		say("%d %s", n, kind.plural)
	}
	if len(left) > 0 {
		return fmt.Errorf("%d things stayed behind", len(left))
	}
	return os.Remove(d.dir)
}
