package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

type bench struct {
	options
	c         *testkit.Client
	dir, logs string
}

// server is a process that ends at once when told to, from the moment ready succeeds in it.
var (
	server = []string{"sh", "-c", "trap 'exit 0' TERM; touch /tmp/ready; sleep 3600 & wait"}
	ready  = []string{"sh", "-c", "until [ -e /tmp/ready ]; do usleep 1000; done"}
)

func (b *bench) runPod(ctx context.Context, name string) (*runtimeapi.PodSandboxConfig, string, error) {
	config := testkit.PodConfig(name, b.logs)
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return nil, "", err
	}
	r, err := b.c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: b.handler})
	return config, r.GetPodSandboxId(), err
}

// times measures a pod's life, one pod after the other.
func (b *bench) times(ctx context.Context, r *report) error {
	taken := map[string][]time.Duration{}
	last := time.Now()
	lap := func(name string) {
		taken[name] = append(taken[name], time.Since(last))
		last = time.Now()
	}
	for i := range b.runs {
		start := time.Now()
		last = start
		pod, id, err := b.runPod(ctx, fmt.Sprintf("bench-%d", i))
		if err != nil {
			return err
		}
		lap("RunPodSandbox")
		created, err := b.c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: id, Config: testkit.ContainerConfig("main", b.image, server...), SandboxConfig: pod,
		})
		if err != nil {
			return err
		}
		lap("CreateContainer")
		if _, err := b.c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
			return err
		}
		lap("StartContainer")
		taken["pod to running"] = append(taken["pod to running"], time.Since(start))
		last = time.Now()
		if _, err := b.c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: created.ContainerId, Cmd: []string{"true"}, Timeout: 10}); err != nil {
			return err
		}
		lap("ExecSync true")
		if _, err := b.c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: created.ContainerId, Cmd: ready, Timeout: 10}); err != nil {
			return err
		}
		last = time.Now()
		if _, err := b.c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: created.ContainerId, Timeout: 10}); err != nil {
			return err
		}
		lap("StopContainer")
		if _, err := b.c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			return err
		}
		lap("StopPodSandbox")
		if _, err := b.c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			return err
		}
		lap("RemovePodSandbox")
	}
	for _, name := range []string{
		"pod to running", "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync true",
		"StopContainer", "StopPodSandbox", "RemovePodSandbox",
	} {
		r.addTimes(name, taken[name])
	}
	return nil
}

// memory measures all processes of the runtime while many pods run.
func (b *bench) memory(ctx context.Context, r *report) (err error) {
	before, err := testkit.PSSOf(b.processes)
	if err != nil {
		return err
	}
	var ids []string
	defer func() {
		for _, id := range ids {
			if e := b.c.RemovePod(ctx, id); e != nil && err == nil {
				err = e
			}
		}
	}()
	for i := range b.pods {
		pod, id, err := b.runPod(ctx, fmt.Sprintf("memory-%d", i))
		if err != nil {
			return err
		}
		ids = append(ids, id)
		if _, err := b.c.RunContainer(ctx, id, pod, testkit.ContainerConfig("main", b.image, server...)); err != nil {
			return err
		}
	}
	after, err := testkit.PSSOf(b.processes)
	if err != nil {
		return err
	}
	const mib = 1 << 20
	r.add("memory (PSS), no pods", "MiB", float64(before)/mib)
	r.add(fmt.Sprintf("memory (PSS), %d pods", b.pods), "MiB", float64(after)/mib)
	r.add("memory for each pod", "MiB", float64(after-before)/mib/float64(max(b.pods, 1)))
	return nil
}

// logThroughput lets one container write lines of 100 bytes as fast as it can.
func (b *bench) logThroughput(ctx context.Context, r *report) (err error) {
	pod, id, err := b.runPod(ctx, "logs")
	if err != nil {
		return err
	}
	defer func() {
		if e := b.c.RemovePod(ctx, id); e != nil && err == nil {
			err = e
		}
	}()
	line := fmt.Sprintf("%099d", 0)
	command := fmt.Sprintf("yes %s | dd bs=100000 iflag=fullblock count=%d 2>/dev/null", line, b.logMB*10)
	before := testkit.CPUOf(b.processes)
	start := time.Now()
	container, err := b.c.RunContainer(ctx, id, pod, testkit.ContainerConfig("main", b.image, "sh", "-c", command))
	if err != nil {
		return err
	}
	status, err := b.c.AwaitExit(ctx, container)
	if err != nil {
		return err
	}
	took, cpu := time.Since(start), testkit.CPUOf(b.processes)-before
	info, err := os.Stat(filepath.Join(pod.LogDirectory, "main", "0.log"))
	if err != nil {
		return err
	}
	const prefix = len("2006-01-02T15:04:05.000000000Z stdout F ")
	if want := int64(b.logMB) * 10_000 * int64(100+prefix); info.Size() < want*9/10 {
		return fmt.Errorf("the log has %d bytes, want about %d (exit code %d)", info.Size(), want, status.ExitCode)
	}
	gb := float64(b.logMB) / 1000
	r.add("log: CPU for each GB of 100-byte lines", "s", cpu.Seconds()/gb)
	r.add("log: throughput", "MB/s", float64(b.logMB)/took.Seconds())
	return nil
}
