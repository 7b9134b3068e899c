package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/nri"
	"github.com/davit-runtime/davit/internal/nri/nritest"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestNRIConfig(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for _, tt := range []struct{ state, text, want string }{
		{defaultState, "", nri.DefaultSocket},
		{defaultState + "/", "", nri.DefaultSocket},
		{"/tmp/state", "", "/tmp/state/nri/nri.sock"},
		{"/tmp/state", "[nri]\nsocket = \"/a/b\"\n", "/a/b"},
	} {
		c := defaults("f")
		c.State = tt.state
		if err := c.parse("f", []byte(tt.text)); err != nil {
			t.Fatal(err)
		}
		if got := c.nri(log).Socket; got != tt.want {
			t.Errorf("%s %q: socket %s, want %s", tt.state, tt.text, got, tt.want)
		}
	}
	c := defaults("f")
	const all = "[nri]\ndisable = true\nplugin_dir = \"/p\"\nconfig_dir = \"/c\"\nregistration_timeout = \"1s\"\nrequest_timeout = \"1500ms\"\n" +
		"[nri.validator]\nenable = true\nreject_oci_hook_adjustment = true\nrequired_plugins = [\"a\"]\n"
	if err := c.parse("f", []byte(all)); err != nil {
		t.Fatal(err)
	}
	n := c.nri(log)
	if !c.NRI.Disable || n.RequestTimeout != 1500*time.Millisecond || n.Validator == nil || !n.Validator.Hooks || n.Validator.Required[0] != "a" {
		t.Errorf("%+v", n)
	}
	for text, want := range map[string]string{
		"[nri]\nsocket = \"a\"\n":              "f:2:1: nri.socket:",
		"[nri]\nrequest_timeout = \"2 min\"\n": "f:2:1: nri.request_timeout: \"2 min\" is not a time",
		"[nri]\nrequest_timeout = \"2h\"\n":    "f:2:1: nri.request_timeout: 2h0m0s is not from",
	} {
		if err := defaults("f").parse("f", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// A plugin changes a container for real, and davitd is killed while it is asked
// about another, and about a start: nothing is left of the one, the other is
// started, and plugins that come back learn what there is.
func TestNRI(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	plugins := t.TempDir()
	d := testkit.NewDaemon(t, "[nri]\nplugin_dir = \""+plugins+"\"\nrequest_timeout = \"30s\"\n")
	socket := filepath.Join(d.State, "nri", "nri.sock")
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
	if err := os.WriteFile(filepath.Join(plugins, "text"), []byte("from a mount\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var id string
	t.Run("adjust", func(t *testing.T) {
		p := &nritest.Plugin{OnCreate: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("BY", "a plugin")
			a.AddMount(&api.Mount{Destination: "/given", Source: plugins, Type: "bind", Options: []string{"rbind", "ro"}})
			a.SetLinuxMemoryLimit(64 << 20)
			a.SetLinuxCPUShares(300)
			return a, nil, nil
		}}
		p.Join(t, socket)
		main := testkit.ContainerConfig("main", ref, "sh", "-c", "echo $BY; cat /given/text; exec sleep 1000")
		if id, err = c.RunContainer(ctx, podID, config, main); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(config.LogDirectory, main.LogPath)
		for log := ""; !strings.Contains(log, "F a plugin\n") || !strings.Contains(log, "F from a mount\n"); {
			data, _ := os.ReadFile(file)
			if log = string(data); ctx.Err() != nil {
				t.Fatalf("log %q", log)
			}
			time.Sleep(5 * time.Millisecond)
		}
		st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		if r := st.Status.GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuShares() != 300 {
			t.Errorf("resources %v", r)
		}
	})
	// crash kills davitd while a plugin is asked by begin, and starts it again.
	crash := func(p *nritest.Plugin, reached <-chan string, begin func()) (about string) {
		t.Helper()
		p.Join(t, socket)
		done := make(chan struct{})
		go func() { defer close(done); begin() }()
		about = <-reached
		d.Kill()
		<-done
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		return about
	}
	reached, end := make(chan string, 1), make(chan struct{})
	defer close(end)
	var never string
	t.Run("killed in CreateContainer", func(t *testing.T) {
		p := &nritest.Plugin{OnCreate: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			reached <- c.GetId()
			<-end
			return nil, nil, nil
		}}
		never = crash(p, reached, func() {
			_, _ = c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: testkit.ContainerConfig("never", ref, "true"), SandboxConfig: config})
		})
		for len(entries(t, d.Root, "containers"))+len(entries(t, d.State, "containers")) > 2 {
			if ctx.Err() != nil {
				t.Fatal("something is left of the container that was being made")
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	t.Run("killed in StartContainer", func(t *testing.T) {
		made, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: testkit.ContainerConfig("late", ref, "sleep", "1000"), SandboxConfig: config})
		if err != nil {
			t.Fatal(err)
		}
		p := &nritest.Plugin{OnStart: func(_ context.Context, c *api.Container) error { reached <- c.GetId(); <-end; return nil }}
		crash(p, reached, func() {
			_, _ = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
		})
		for state := runtimeapi.ContainerState_CONTAINER_CREATED; state != runtimeapi.ContainerState_CONTAINER_RUNNING; {
			st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: made.ContainerId})
			if err != nil {
				t.Fatal(err)
			}
			state = st.Status.State
			time.Sleep(5 * time.Millisecond)
		}
	})
	p := &nritest.Plugin{}
	p.Join(t, socket)
	if err := c.RemovePod(ctx, podID); err != nil {
		t.Error(err)
	}
	if got := p.Of(id); !slices.Equal(got, []string{"SyncContainer", "StopContainer", "RemoveContainer"}) {
		t.Errorf("told of the running container: %q", got)
	}
	if got := p.Of(never); len(got) > 0 {
		t.Errorf("told of the container that never was: %q", got)
	}
}

func entries(t *testing.T, dirs ...string) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(filepath.Join(dirs...))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
