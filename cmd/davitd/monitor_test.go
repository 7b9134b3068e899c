package main

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// A davit-monitor that hangs is killed and started again; containers run on,
// and what ended meanwhile is known.
func TestMonitorHangs(t *testing.T) {
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
	lives, err := c.RunContainer(ctx, podID, config, testkit.ContainerConfig("lives", ref, "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	ends, err := c.RunContainer(ctx, podID, config, testkit.ContainerConfig("ends", ref, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"))
	if err != nil {
		t.Fatal(err)
	}
	status := func(id string) *runtimeapi.ContainerStatus {
		r, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	before := status(lives)
	hung := d.Pids()["serve"][0]
	if err := unix.Kill(hung, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err != nil || time.Since(begun) > 5*time.Second {
		t.Errorf("a list while davit-monitor hangs: %v after %v", err, time.Since(begun))
	}

	watching, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	k := &keeperWatch{state: d.State, log: quiet, every: 10 * time.Millisecond, patience: 500 * time.Millisecond}
	go func() { over <- k.attend(watching) }()
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: ends, Timeout: 60}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if s := status(ends); s.ExitCode != 7 || s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("asked to stop while davit-monitor hung: %v", s)
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if now := d.Pids()["serve"]; len(now) != 1 || now[0] == hung {
		t.Errorf("davit-monitor is %v, and was %d", now, hung)
	}
	if now := status(lives); now.State != before.State || now.StartedAt != before.StartedAt {
		t.Errorf("a container was %v, and is %v", before, now)
	}
}
