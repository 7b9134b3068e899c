package cri

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/pod"
)

// streamingWorld knows containers and pods in every state.
func streamingWorld(t *testing.T) *world {
	host := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)
	return &world{
		pods: []*pod.Snapshot{
			{ID: "ready", Config: host, State: pod.Ready, Paths: map[string]string{"net": "/ns/net"}},
			{ID: "onhost", Config: host, State: pod.Ready},
			{ID: "stopped", Config: host, State: pod.NotReady, Paths: map[string]string{"net": "/ns/net"}},
			{ID: "coming", Config: host, State: pod.Preparing},
		},
		containers: []*pod.ContainerSnapshot{
			{ID: "plain", PodID: "ready", Config: &runtimeapi.ContainerConfig{}, State: pod.Running},
			{ID: "terminal", PodID: "ready", Config: &runtimeapi.ContainerConfig{Tty: true}, State: pod.Running},
			{ID: "created", PodID: "ready", Config: &runtimeapi.ContainerConfig{}, State: pod.Created},
			{ID: "exited", PodID: "ready", Config: &runtimeapi.ContainerConfig{}, State: pod.Exited},
		},
	}
}

func TestStreamingChecks(t *testing.T) {
	const invalid, precondition = codes.InvalidArgument, codes.FailedPrecondition
	ctx := context.Background()
	w := streamingWorld(t)
	rt, _, _, _ := server(t, w)
	// Each row holds for Exec, to which cmd is added, and for Attach.
	for _, tt := range []struct {
		request string
		want    want
	}{
		{`container_id: "plain" stdin: true`, want{}},
		{`container_id: "plain" stdout: true stderr: true`, want{}},
		{`container_id: "terminal" stdin: true stdout: true tty: true`, want{}},
		{`stdout: true`, want{invalid, "container_id: is empty"}},
		{`container_id: "plain"`, want{invalid, "stdout: none of stdin, stdout and stderr"}},
		{`container_id: "plain" tty: true`, want{invalid, "stdout: none of"}},
		{`container_id: "terminal" tty: true stdout: true stderr: true`, want{invalid, "stderr: is asked for together with tty"}},
		{`container_id: "nobody" stdout: true`, want{codes.NotFound, "no container nobody"}},
		{`container_id: "created" stdout: true`, want{precondition, "container created is not running, it is created"}},
		{`container_id: "exited" stdout: true`, want{precondition, "container exited is not running, it is exited"}},
	} {
		exec, err := rt.Exec(ctx, parse(t, &runtimeapi.ExecRequest{}, tt.request, `cmd: "sh"`))
		tt.want.check(t, err)
		if err == nil && exec.GetUrl() != "http://exec" {
			t.Error(exec)
		}
		attach, err := rt.Attach(ctx, parse(t, &runtimeapi.AttachRequest{}, tt.request))
		tt.want.check(t, err)
		if err == nil && attach.GetUrl() != "http://attach" {
			t.Error(attach)
		}
	}
	for request, want := range map[string]want{
		``:                     {invalid, "cmd: is empty"},
		`cmd: ""`:              {invalid, "cmd: is empty"},
		`cmd: "a" cmd: "\x00"`: {invalid, "cmd[1]: contains a zero byte"},
	} {
		_, err := rt.Exec(ctx, parse(t, &runtimeapi.ExecRequest{}, `container_id: "plain" stdout: true`, request))
		want.check(t, err)
	}
	for request, want := range map[string]want{
		`pod_sandbox_id: "ready"`:                     {},
		`pod_sandbox_id: "ready" port: 1 port: 65535`: {},
		`pod_sandbox_id: "onhost" port: 80`:           {},
		`port: 80`:                                    {invalid, "pod_sandbox_id: is empty"},
		`pod_sandbox_id: "ready" port: 80 port: 0`:    {invalid, "port[1]: 0 is not from 1 to 65535"},
		`pod_sandbox_id: "ready" port: -1`:            {invalid, "port[0]: -1"},
		`pod_sandbox_id: "ready" port: 65536`:         {invalid, "port[0]: 65536"},
		`pod_sandbox_id: "nobody" port: 80`:           {codes.NotFound, "no pod nobody"},
		`pod_sandbox_id: "stopped" port: 80`:          {precondition, "pod stopped is not ready, it is notready"},
		`pod_sandbox_id: "coming" port: 80`:           {precondition, "pod coming is not ready, it is preparing"},
	} {
		resp, err := rt.PortForward(ctx, parse(t, &runtimeapi.PortForwardRequest{}, request))
		want.check(t, err)
		if err == nil && resp.GetUrl() != "http://forward" {
			t.Error(resp)
		}
	}
	w.fail = fault.New(fault.Exhausted, "", "1000 sessions wait")
	_, err := rt.Exec(ctx, parse(t, &runtimeapi.ExecRequest{}, `container_id: "plain" stdout: true cmd: "sh"`))
	want{codes.ResourceExhausted, "1000 sessions"}.check(t, err)
}

// What a client has opened reaches the container and the port that were named.
func TestStreamingReaches(t *testing.T) {
	ctx := context.Background()
	w := streamingWorld(t)
	rt, _, _, _ := server(t, w)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(rt.Exec(ctx, parse(t, &runtimeapi.ExecRequest{}, `container_id: "plain" cmd: "ls" stdin: true stdout: true tty: true`)))
	if c := w.command; c.Container != "plain" || !c.Stdin || !c.Stdout || c.Stderr || !c.TTY {
		t.Errorf("%+v", c)
	}
	if code, err := w.command.Run(ctx, monitor.Stream{TTY: true}); code != 4 || err != nil || !w.joined.TTY {
		t.Errorf("exec: %d, %v, %+v", code, err, w.joined)
	}
	// Whether there is a terminal is the container's to say.
	for _, tt := range []struct {
		request  string
		terminal bool
		merged   bool
	}{
		{`container_id: "plain" stdout: true stderr: true`, false, false},
		{`container_id: "plain" stdout: true tty: true`, false, true},
		{`container_id: "terminal" stdout: true tty: true`, true, false},
		{`container_id: "terminal" stdout: true stderr: true`, true, false},
	} {
		must(rt.Attach(ctx, parse(t, &runtimeapi.AttachRequest{}, tt.request)))
		var out bytes.Buffer
		_, err := w.command.Run(ctx, monitor.Stream{Stdout: &out, TTY: w.command.TTY})
		if err != nil || w.joined.TTY != tt.terminal || (w.joined.Stderr == &out) != tt.merged || w.joined.Stdout != &out {
			t.Errorf("%s: %v, %+v", tt.request, err, w.joined)
		}
	}
	for _, id := range []string{"ready", "onhost"} {
		must(rt.PortForward(ctx, parse(t, &runtimeapi.PortForwardRequest{}, `port: 80 pod_sandbox_id: "`+id+`"`)))
		if w.forward.Pod != id || !slices.Equal(w.forward.Ports, []int32{80}) {
			t.Errorf("%+v", w.forward)
		}
		if _, err := w.forward.Dial(ctx, 80); err != nil {
			t.Error(err)
		}
	}
	if end := w.done[len(w.done)-3:]; end[0] != "dial /ns/net:80" || end[2] != "dial :80" {
		t.Errorf("%q", w.done)
	}
	w.pods[1].State = pod.NotReady // it has stopped since
	if _, err := w.forward.Dial(ctx, 80); !fault.Is(err, fault.Precondition) {
		t.Error(err)
	}
}
