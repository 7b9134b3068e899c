package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// installed copies davit's programs: another installation, as after an upgrade.
func installed(t *testing.T, bin string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"davitd", "davit-monitor"} {
		data, err := os.ReadFile(filepath.Join(bin, program))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, program), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func programOf(t *testing.T, pid int) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// An upgrade and the way back: the programs are exchanged and davitd is
// restarted. All of davit is the new one then, and pods do not notice.
func TestUpgrade(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := testkit.NewDaemon(t, "")
	c := d.Client(t)
	ref, err := c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	config := testkit.PodConfig("web", d.Logs)
	podID, err := c.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	writer := testkit.ContainerConfig("writer", ref, "sh", "-c", "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; done")
	id, err := c.RunContainer(ctx, podID, config, writer)
	if err != nil {
		t.Fatal(err)
	}
	state := func() (*runtimeapi.PodSandboxStatus, *runtimeapi.ContainerStatus) {
		pod, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
		if err != nil {
			t.Fatal(err)
		}
		ctr, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return pod.Status, ctr.Status
	}
	podBefore, before := state()
	keeper, first := d.Pids()["keep"][0], d.Bin
	other := installed(t, first)
	broken := installed(t, first)
	if err := os.WriteFile(filepath.Join(broken, "davit-monitor"), []byte("#!/bin/sh\necho too new >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, bin := range []string{other, broken, first, other, other} {
		if i%2 == 1 {
			d.Kill()
		} else if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
		d.Bin = bin
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		pids := d.Pids()
		if pids["keep"][0] != keeper {
			t.Errorf("the keeper was process %d and is %d", keeper, pids["keep"][0])
		}
		want := bin
		if bin == broken { // its davitd makes do with the one that runs
			want = other
			if !strings.Contains(d.Log(), "too new") {
				t.Error("no word of a davit-monitor that could not take over")
			}
		}
		for _, mode := range []string{"keep", "serve"} {
			if program := programOf(t, pids[mode][0]); program != filepath.Join(want, "davit-monitor") {
				t.Errorf("%d: %s is %s, want that in %s", i, mode, program, want)
			}
		}
		pod, now := state()
		if !proto.Equal(podBefore, pod) || !proto.Equal(before, now) {
			t.Errorf("%d: status %v, %v; was %v, %v", i, pod, now, podBefore, before)
		}
	}
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Error(err)
	}
	if s, err := c.AwaitExit(ctx, id); err != nil || s.ExitCode != 7 {
		t.Errorf("%v, %v", s, err)
	}
	log, err := os.ReadFile(filepath.Join(config.LogDirectory, writer.LogPath))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(log)) {
		if n++; !strings.HasSuffix(line, fmt.Sprintf(" stdout F %d\n", n)) {
			t.Fatalf("line %d of the log is %q", n, line)
		}
	}
	if err := c.RemovePod(ctx, podID); err != nil {
		t.Error(err)
	}
}
