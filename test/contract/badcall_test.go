package contract

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type badCall struct {
	by      demand
	name    string
	code    codes.Code
	text    string // what the error must name
	request proto.Message
}

// A troupe is a pod with containers that run, were created, and have exited.
type troupe struct{ pod, running, created, exited string }

// badCalls are the same requests each time, in the same order.
func (a troupe) badCalls() []badCall {
	pod, running, created, exited := a.pod, a.running, a.created, a.exited
	echo := []string{"echo"}
	return slices.Concat([]badCall{
		{cri, "start what runs", failed, running, &runtimeapi.StartContainerRequest{ContainerId: running}},
		{cri, "start what has exited", failed, exited, &runtimeapi.StartContainerRequest{ContainerId: exited}},
		{ours, "stop with a negative timeout", invalid, "timeout", &runtimeapi.StopContainerRequest{ContainerId: running, Timeout: -1}},
		{ours, "exec without a command", invalid, "cmd", &runtimeapi.ExecSyncRequest{ContainerId: running}},
		{ours, "exec with an empty command", invalid, "cmd", &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: []string{""}}},
		{ours, "exec with a zero byte", invalid, "cmd[1]", &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: []string{"echo", "\x00"}}},
		{ours, "exec with a negative timeout", invalid, "timeout", &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: echo, Timeout: -1}},
		{cri, "exec of nothing", invalid, "nosuchprogram", &runtimeapi.ExecSyncRequest{ContainerId: running, Cmd: []string{"nosuchprogram"}}},
		{ours, "exec in what does not run yet", failed, created, &runtimeapi.ExecSyncRequest{ContainerId: created, Cmd: echo}},
		{cri, "exec in what has exited", failed, exited, &runtimeapi.ExecSyncRequest{ContainerId: exited, Cmd: echo}},
		{ours, "stream without a command", invalid, "cmd", &runtimeapi.ExecRequest{ContainerId: running, Stdout: true}},
		{ours, "stream of nothing", invalid, "stdin, stdout", &runtimeapi.ExecRequest{ContainerId: running, Cmd: echo}},
		{cri, "stream of a terminal's stderr", invalid, "stderr", &runtimeapi.ExecRequest{ContainerId: running, Cmd: echo, Tty: true, Stdout: true, Stderr: true}},
		{ours, "stream in what has exited", failed, exited, &runtimeapi.ExecRequest{ContainerId: exited, Cmd: echo, Stdout: true}},
		{ours, "stream in what does not run yet", failed, created, &runtimeapi.ExecRequest{ContainerId: created, Cmd: echo, Stdout: true}},
		{ours, "attach of nothing", invalid, "stdin, stdout", &runtimeapi.AttachRequest{ContainerId: running}},
		{cri, "attach of a terminal's stderr", invalid, "stderr", &runtimeapi.AttachRequest{ContainerId: running, Tty: true, Stdout: true, Stderr: true}},
		{ours, "attach to what has exited", failed, exited, &runtimeapi.AttachRequest{ContainerId: exited, Stdout: true}},
		{ours, "forward a port too high", invalid, "port[0]", &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{70000}}},
		{ours, "forward port 0", invalid, "port[1]", &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{80, 0}}},
		{ours, "log of what has exited", failed, exited, &runtimeapi.ReopenContainerLogRequest{ContainerId: exited}},
		{ours, "update of what has exited", failed, exited, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: exited, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 3}}},
		{ours, "update of nothing", invalid, "linux", &runtimeapi.UpdateContainerResourcesRequest{ContainerId: running}},
		{ours, "pod state absurd", invalid, "filter.state", &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: 9}}}},
		{ours, "container state absurd", invalid, "filter.state", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: -1}}}},
		{ours, "streamed pod state absurd", invalid, "filter.state", &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: 9}}}},
		{ours, "streamed container state absurd", invalid, "filter.state", &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: 9}}}},
	}, badCIDRs(), badUpdates(pod, running, created))
}

func badCIDRs() []badCall {
	var rows []badCall
	for _, c := range []struct{ name, cidr string }{
		{"nonsense", "here"}, {"an address", "10.0.0.1"}, {"too long a prefix", "10.0.0.0/33"}, {"two of a family", "10.1.0.0/16,10.2.0.0/16"},
		{"three", "10.1.0.0/16,fd00::/64,10.2.0.0/16"}, {"empty part", "10.1.0.0/16,"}, {"zero byte", "10.1.0.0/16\x00"}, {"one address", "10.1.0.0/32"},
	} {
		rows = append(rows, badCall{ours, "pod CIDR: " + c.name, invalid, "pod_cidr", &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: c.cidr}},
		}})
	}
	return rows
}

func badUpdates(pod, running, created string) []badCall {
	var rows []badCall
	for _, r := range badResources {
		rows = append(rows,
			badCall{ours, "update running: " + r.name, invalid, "linux." + r.field, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: running, Linux: r.value}},
			badCall{ours, "update created: " + r.name, invalid, "linux." + r.field, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: created, Linux: r.value}},
			badCall{ours, "update pod: " + r.name, invalid, "resources." + r.field, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: r.value}},
			badCall{ours, "update overhead: " + r.name, invalid, "overhead." + r.field, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: r.value}})
	}
	return rows
}

func (w *world) troupe(n int) troupe {
	w.t.Helper()
	podID, pod := w.pod(fmt.Sprintf("calls-%d", n))
	created, err := w.create(podID, pod, w.config("created", "sleep", "1000"))
	if err != nil {
		w.t.Fatal(err)
	}
	running := w.run(podID, pod, w.config("running", "sleep", "1000"))
	return troupe{podID, running, created, w.exit(podID, pod, w.config("exited", "true")).Id}
}

// state is what the runtime says of all of them.
func (w *world) state(a troupe) []string {
	w.t.Helper()
	r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: a.pod})
	if err != nil {
		w.t.Fatal(err)
	}
	return []string{fmt.Sprint(r.Status), fmt.Sprint(w.status(a.running)), fmt.Sprint(w.status(a.created)), fmt.Sprint(w.status(a.exited))}
}

// ready reports whether each of them still is what it was made for.
func (w *world) ready(a troupe) bool {
	return w.status(a.running).State == runtimeapi.ContainerState_CONTAINER_RUNNING &&
		w.status(a.created).State == runtimeapi.ContainerState_CONTAINER_CREATED &&
		w.status(a.exited).State == runtimeapi.ContainerState_CONTAINER_EXITED
}

// TestCallsRefused: each mistake in a request about what is there is told by
// its field, and changes nothing.
func TestCallsRefused(t *testing.T) {
	w := shared(t)
	actors := w.troupe(0)
	left := w.residue()
	names := map[string]bool{}
	accepted := 0
	for i := range actors.badCalls() {
		row := actors.badCalls()[i]
		if names[row.name] {
			t.Errorf("two rows %q", row.name)
		}
		names[row.name] = true
		t.Run(row.name, func(t *testing.T) {
			w := w.within(t)
			before := w.state(actors)
			_, err := w.call(row.request, false)
			w.refused(err, row.by, row.code, row.text)
			if err == nil {
				accepted++
				return
			}
			for i, is := range w.state(actors) {
				if is != before[i] {
					t.Errorf("refused, and yet it is\n%s, it was\n%s", is, before[i])
				}
			}
		})
		if accepted > 0 && !w.ready(actors) { // a runtime that may accept what davit refuses did
			if err := w.removePod(w.ctx, actors.pod); err != nil {
				t.Fatal(err)
			}
			actors = w.troupe(i + 1)
			left = w.residue()
		}
	}
	if after := w.residue(); !slices.Equal(left, after) {
		t.Errorf("left behind: %v; before: %v", after, left)
	}
	if accepted > 0 {
		return
	}
	// What they were refused for did not hurt them.
	if err := w.start(actors.created); err != nil {
		t.Error(err)
	}
	if r, err := w.exec(actors.running, 5, "echo", "well"); err != nil || string(r.Stdout) != "well\n" {
		t.Error(r, err)
	}
}

// TestStoppedPod: what a pod that is not ready refuses, and what it still does.
func TestStoppedPod(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("stopped")
	ctr := w.run(podID, pod, w.config("main", "sleep", "1000"))
	created, err := w.create(podID, pod, w.config("created", "true"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := w.stopPod(w.ctx, podID)
		must(t, err, codes.OK)
	}
	_, err = w.create(podID, pod, w.config("late", "true"))
	want(t, err, failed, podID)
	want(t, w.start(created), failed)
	want(t, w.start(ctr), failed)
	_, err = w.call(&runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{80}}, false)
	prefer(t, err, failed, podID)
	s := w.status(ctr)
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.FinishedAt == 0 {
		t.Errorf("%v", s)
	}
	if s := w.status(created); s.State == runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt != 0 {
		t.Errorf("%v", s)
	}
	r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil || r.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("%v, %v", r, err)
	}
	for _, id := range []string{ctr, created, ctr} {
		must(t, w.stop(id, 1), codes.OK)
		must(t, w.remove(id), codes.OK)
	}
}
