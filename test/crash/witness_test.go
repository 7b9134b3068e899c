package crash

import (
	"context"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// A witness is a container that lives through everything, writing numbered
// lines until it is told to stop.
type witness struct {
	pod, id, logFile string
	started          int64
}

func (w *world) startWitness(ctx context.Context) *witness {
	w.t.Helper()
	pod := testkit.PodConfig("witness", w.d.Logs)
	podID, err := w.c.RunPod(ctx, pod)
	if err != nil {
		w.t.Fatal(err)
	}
	// The exit code tells how many lines there are.
	script := "trap stop=1 TERM; i=0; while [ -z \"$stop\" ]; do echo line $i; i=$((i+1)); usleep 3000; done; exit $((i % 200))"
	config := testkit.ContainerConfig("main", w.image, "sh", "-c", script)
	id, err := w.c.RunContainer(ctx, podID, pod, config)
	if err != nil {
		w.t.Fatal(err)
	}
	now, err := w.c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return &witness{podID, id, filepath.Join(pod.LogDirectory, "main/0.log"), now.Status.StartedAt}
}

// check stops the witness and requires that it ran all the time, ended by
// itself, and left every line.
func (v *witness) check(ctx context.Context, w *world) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	now, err := w.c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: v.id})
	if err != nil {
		w.t.Fatal(err)
	}
	if now.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING || now.Status.StartedAt != v.started {
		w.t.Errorf("the witness did not live through it: %v", now.Status)
	}
	exec, err := w.c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: v.id, Cmd: []string{"echo", "alive"}, Timeout: 10})
	if err != nil || string(exec.Stdout) != "alive\n" {
		w.t.Errorf("exec in the witness: %v, %v", exec, err)
	}
	if _, err := w.c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: v.id, Timeout: 20}); err != nil {
		w.t.Errorf("stop the witness: %v", err)
	}
	end, err := w.c.AwaitExit(ctx, v.id)
	if err != nil {
		w.t.Fatal(err)
	}
	lines, err := readLog(v.logFile)
	if err != nil {
		w.t.Error(err)
	}
	if int(end.ExitCode) != lines%200 {
		w.t.Errorf("the witness ended with %d (%s); its log has %d lines", end.ExitCode, end.Reason, lines)
	}
}
