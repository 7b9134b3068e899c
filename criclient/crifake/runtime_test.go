package crifake_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

func start(t *testing.T, what crifake.Serves) (*crifake.Runtime, *crifake.Socket, *criclient.Client) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	r := crifake.New()
	s, err := r.Listen(filepath.Join(dir, "cri.sock"), what)
	if err != nil {
		t.Fatal(err)
	}
	c, err := criclient.New(criclient.Options{Runtime: s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close(); os.RemoveAll(dir) })
	return r, s, c
}

func want(t *testing.T, what string, err error, is error) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Errorf("%s: %v, want %v", what, err, is)
	}
}

func TestLife(t *testing.T) {
	for name, what := range map[string]crifake.Serves{"v1": crifake.V1(), "v1alpha2": crifake.V1alpha2()} {
		t.Run(name, func(t *testing.T) {
			r, _, c := start(t, what)
			ctx, logs := t.Context(), t.TempDir()
			config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, LogDirectory: logs}
			_, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})
			want(t, "a pod without a name", err, criclient.ErrInvalid)
			p, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "runc"})
			want(t, "run", err, nil)
			again, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			if want(t, "run again", err, nil); again.GetPodSandboxId() != p.PodSandboxId {
				t.Errorf("again: %v, %v", again, p)
			}
			create := func(command ...string) (string, error) {
				r, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
					Metadata: &runtimeapi.ContainerMetadata{Name: command[0]}, Image: &runtimeapi.ImageSpec{Image: "a:1"}, Command: command, LogPath: command[0],
				}})
				return r.GetContainerId(), err
			}
			_, err = create("sleep")
			want(t, "create without the image", err, criclient.ErrNotFound)
			pulled, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "a:1"}})
			want(t, "pull", err, nil)
			sleep, err := create("sleep")
			want(t, "create", err, nil)
			exit, err := create("exit", "3")
			want(t, "create", err, nil)
			_, err = c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: sleep, Cmd: []string{"ls"}})
			want(t, "exec too early", err, criclient.ErrFailedPrecondition)
			for _, id := range []string{sleep, exit} {
				_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
				want(t, "start", err, nil)
				_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
				want(t, "start again", err, criclient.ErrFailedPrecondition)
			}
			state := func(id string) string {
				s, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
				if want(t, "status", err, nil); err != nil {
					return err.Error()
				}
				if s.Status.ImageRef != pulled.ImageRef || s.Status.Image.Image != "a:1" {
					t.Errorf("image %v", s.Status)
				}
				return fmt.Sprintf("%s %d %s", s.Status.State, s.Status.ExitCode, s.Status.Reason)
			}
			if got := state(exit); got != "CONTAINER_EXITED 3 Error" {
				t.Errorf("exit 3 is %s", got)
			}
			if log, err := os.ReadFile(filepath.Join(logs, "exit")); err != nil || !strings.HasSuffix(string(log), "stderr F ends\n") {
				t.Errorf("log %q, %v", log, err)
			}
			e, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: sleep, Cmd: []string{"exit", "9"}})
			if want(t, "exec", err, nil); e.GetExitCode() != 9 {
				t.Errorf("exec = %v", e)
			}
			r.SetStreamURL("http://127.0.0.1:9")
			url, err := c.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: sleep})
			if want(t, "exec", err, nil); !strings.HasPrefix(url.GetUrl(), "http://127.0.0.1:9/exec/") {
				t.Errorf("exec at %v", url)
			}
			stats, err := c.ContainersStats(ctx, nil)
			if want(t, "stats", err, nil); len(stats) != 1 || stats[0].Attributes.Id != sleep {
				t.Errorf("stats %v", stats)
			}
			_, err = c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: sleep, Timeout: 5})
			if want(t, "stop", err, nil); state(sleep) != "CONTAINER_EXITED 143 Error" {
				t.Errorf("stopped, it is %s", state(sleep))
			}
			for range 2 {
				_, err = c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: sleep})
				want(t, "remove", err, nil)
				_, err = c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId})
				want(t, "stop pod", err, nil)
			}
			_, err = create("late")
			want(t, "create in a stopped pod", err, criclient.ErrFailedPrecondition)
			s, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.PodSandboxId})
			if want(t, "pod status", err, nil); s.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || s.Status.RuntimeHandler != "runc" {
				t.Errorf("pod %v", s)
			}
			for range 2 {
				_, err = c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId})
				want(t, "remove pod", err, nil)
				_, err = c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "a:1"}})
				want(t, "remove image", err, nil)
			}
			if len(r.Pods())+len(r.Containers())+len(r.Images()) != 0 {
				t.Errorf("left: %v, %v, %v", r.Pods(), r.Containers(), r.Images())
			}
			_, err = c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.PodSandboxId})
			want(t, "status of a removed pod", err, criclient.ErrNotFound)
		})
	}
}

func TestEventsOfALife(t *testing.T) {
	r, _, c := start(t, crifake.V1())
	var got []string
	for e, err := range c.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Gap != nil {
			id := r.AddImage("", "a:1")
			p, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p"}}})
			want(t, "run", err, nil)
			q, err := c.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: id},
			}})
			want(t, "create", err, nil)
			_, err = c.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: q.ContainerId})
			want(t, "start", err, nil)
			r.Exit(q.ContainerId, 1)
			_, err = c.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId})
			want(t, "remove", err, nil)
			continue
		}
		got = append(got, e.ContainerId[:2]+" "+strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		if len(got) == 6 {
			break
		}
	}
	if s := strings.Join(got, ", "); s != "aa CREATED, aa STARTED, cc CREATED, cc STARTED, cc STOPPED, aa DELETED" {
		t.Errorf("events: %s", s)
	}
}

func TestFaults(t *testing.T) {
	r, s, c := start(t, crifake.Both())
	status1 := func(ctx context.Context) error {
		_, err := c.RuntimeServiceClient.Status(ctx, &runtimeapi.StatusRequest{})
		return err
	}
	want(t, "status", status1(t.Context()), nil)
	r.Fail("Status", status.Error(codes.Internal, "oh"))
	r.Fail("/runtime.v1.RuntimeService/Status", status.Error(codes.NotFound, "no")) // the longer name wins
	want(t, "failing", status1(t.Context()), criclient.ErrNotFound)
	r.Fail("/runtime.v1.RuntimeService/Status", nil)
	if err := status1(t.Context()); status.Code(err) != codes.Internal {
		t.Errorf("failing: %v", err)
	}
	r.Delay("Status", time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	want(t, "delayed", status1(ctx), criclient.ErrTimeout)
	r.Delay("Status", time.Millisecond)
	want(t, "delayed", status1(t.Context()), nil)
	release := r.Hold("Status")
	time.AfterFunc(10*time.Millisecond, release)
	want(t, "held", status1(t.Context()), nil)
	release() // once more does no harm

	r.SetCondition(runtimeapi.NetworkReady, false, "NoNetwork", "none")
	q, err := c.RuntimeServiceClient.Status(t.Context(), &runtimeapi.StatusRequest{})
	if want(t, "status", err, nil); q.Status.Conditions[1].Reason != "NoNetwork" {
		t.Errorf("status %v", q)
	}
	calls := r.Calls("Status")
	if last := calls[len(calls)-1]; last.Version != criclient.V1 || last.Service != criclient.RuntimeService || last.Request == nil {
		t.Errorf("call %v", last)
	}

	// A held call does not outlive the socket.
	r.Hold("Status")
	failed := make(chan error, 1)
	go func() { failed <- status1(context.Background()) }()
	for len(r.Calls("Status")) == len(calls) {
		time.Sleep(time.Millisecond)
	}
	s.Vanish()
	want(t, "cut off", <-failed, criclient.ErrUnavailable)
	if _, err := os.Stat(s.Path()); !os.IsNotExist(err) || s.Up() {
		t.Errorf("after Vanish: %v, %t", err, s.Up())
	}
	r.Fail("Status", nil)
	if err := s.Return(crifake.V1()); err != nil {
		t.Fatal(err)
	}
	if err := s.Return(crifake.V1()); err == nil {
		t.Error("it returned twice")
	}
	s.Crash()
	if _, err := os.Stat(s.Path()); err != nil || s.Up() {
		t.Errorf("after Crash: %v, %t", err, s.Up())
	}
	if err := s.Return(crifake.Serves{}); err != nil {
		t.Fatal(err)
	}
}
