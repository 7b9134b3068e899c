package contract

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/testkit"
)

// clientOf returns a client of the two sockets, or of one, that settles its
// versions at the first calls.
func clientOf(t *testing.T, runtime, image string, renegotiate bool) *criclient.Client {
	t.Helper()
	c, err := criclient.New(criclient.Options{Runtime: runtime, Image: image, Renegotiate: renegotiate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// spoken is what calls of both services come to: the versions they went out
// in, or why they did not.
func spoken(ctx context.Context, c *criclient.Client) string {
	_, runtimeErr := c.Pods(ctx, nil)
	_, imageErr := c.Images(ctx, nil)
	word := func(s criclient.Service, err error) string {
		var none *criclient.NegotiationError
		switch {
		case errors.Is(err, criclient.ErrVersionLost):
			return "lost"
		case errors.As(err, &none):
			return "none"
		case err != nil:
			return err.Error()
		}
		return string(c.Choice(s).Version)
	}
	return word(criclient.RuntimeService, runtimeErr) + " " + word(criclient.ImageService, imageErr)
}

// TestVersionsOfDavitd: davitd is restarted with each setting of cri_versions,
// under clients that keep their version and clients that do not; images are on
// the same socket, and on their own.
func TestVersionsOfDavitd(t *testing.T) {
	if *endpoint != "" {
		t.Skip("starts davitd itself")
	}
	testkit.Root(t)
	if err := common.close(); err != nil {
		t.Error(err)
	}
	testkit.Leftovers(t)
	images := filepath.Join(t.TempDir(), "images.sock")
	config := func(versions string) string {
		return fmt.Sprintf("cri_versions = [%s]\nimage_socket = %q\n", versions, images)
	}
	const v1, old, both = `"v1"`, `"v1alpha2"`, `"v1", "v1alpha2"`
	d := testkit.NewDaemon(t, config(both))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	keeps, keepsTwo := clientOf(t, d.Socket, "", false), clientOf(t, d.Socket, images, false)
	follows, followsTwo := clientOf(t, d.Socket, "", true), clientOf(t, d.Socket, images, true)
	var oldKeeps *criclient.Client
	for i, step := range []struct{ versions, fresh, keeps, follows, oldKeeps string }{
		{both, "v1 v1", "v1 v1", "v1 v1", ""},
		{old, "v1alpha2 v1alpha2", "lost lost", "v1alpha2 v1alpha2", "v1alpha2 v1alpha2"},
		{both, "v1 v1", "v1 v1", "v1 v1", "v1alpha2 v1alpha2"},
		{v1, "v1 v1", "v1 v1", "v1 v1", "lost lost"},
		{both, "v1 v1", "v1 v1", "v1 v1", "v1alpha2 v1alpha2"},
	} {
		if i > 0 {
			if err := os.WriteFile(d.Config, []byte(config(step.versions)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.Stop(), d.Start()); err != nil {
				t.Fatal(err)
			}
		}
		if step.versions == old {
			oldKeeps = clientOf(t, d.Socket, images, false)
		}
		for _, c := range []struct {
			who  string
			c    *criclient.Client
			want string
		}{
			{"a new client", clientOf(t, d.Socket, "", false), step.fresh},
			{"a new client of two sockets", clientOf(t, d.Socket, images, false), step.fresh},
			{"one that keeps its version", keeps, step.keeps},
			{"one of two sockets that keeps its version", keepsTwo, step.keeps},
			{"one that renegotiates", follows, step.follows},
			{"one of two sockets that renegotiates", followsTwo, step.follows},
			{"one that began with v1alpha2", oldKeeps, step.oldKeeps},
		} {
			if c.c == nil {
				continue
			}
			if got := spoken(ctx, c.c); got != c.want {
				t.Errorf("step %d, cri_versions = [%s]: %s: %s; want %s", i, step.versions, c.who, got, c.want)
			}
		}
	}
	// The socket for images has no runtime service.
	if got := spoken(ctx, clientOf(t, images, "", false)); got != "none v1" {
		t.Errorf("the socket for images: %s", got)
	}
	report, err := criclient.Probe(ctx, images)
	if err != nil || len(report.Serves(criclient.RuntimeService)) != 0 || len(report.Serves(criclient.ImageService)) != 2 {
		t.Errorf("Probe = %v, %v", report, err)
	}
}

// TestEventsGoOn: a subscriber hears what becomes of pods before and after
// davitd was killed, and in between that it must list them.
func TestEventsGoOn(t *testing.T) {
	w := newWorld(t, "")
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	next, stop := iter.Pull2(clientOf(t, w.d.Socket, "", false).Events(ctx))
	defer stop()
	for i := range 3 {
		e, err, _ := next()
		if err != nil || e.Gap == nil || (e.Gap.Cause == nil) != (i == 0) {
			t.Fatalf("subscription %d begins with %v, %v", i, e, err)
		}
		id, _ := w.pod(fmt.Sprint("events-", i))
		for _, kind := range []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT} {
			if e, err, _ := next(); err != nil || e.Gap != nil || e.ContainerId != id || e.ContainerEventType != kind {
				t.Fatalf("subscription %d: %v, %v; want %v of %s", i, e, err, kind, id)
			}
		}
		w.restart()
	}
}

// TestOldServer: criclient against the unchanged server code of cri-api 0.25
// and its gRPC, in v1alpha2 and in the v1 of then.
func TestOldServer(t *testing.T) {
	if *endpoint != "" {
		t.Skip("starts a runtime itself")
	}
	program := *legacyProgram
	if program == "" {
		program = buildLegacy(t)
	}
	socket := filepath.Join(t.TempDir(), "old.sock")
	for _, versions := range []string{"v1alpha2", "v1,v1alpha2"} {
		_ = os.Remove(socket)
		cmd := exec.Command(program, "-serve", socket, "-versions", versions)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		c := clientOf(t, socket, "", false)
		if versions == "v1alpha2" {
			oldLife(t, c)
		} else {
			// This v1 is so old that it has no streamed lists.
			pods, err := c.Pods(t.Context(), nil)
			if got := spoken(t.Context(), c); got != "v1 v1" || len(pods) != 1 || pods[0].Id != "new" {
				t.Errorf("%s: %v, %v", got, pods, err)
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// oldLife sends what both versions have and what only the newer has; of the
// old, all arrives.
func oldLife(t *testing.T, c *criclient.Client) {
	t.Helper()
	ctx := t.Context()
	if got := spoken(ctx, c); got != "v1alpha2 v1alpha2" {
		t.Fatal(got)
	}
	if v, err := c.CheckVersion(ctx); err != nil || v.RuntimeVersion != "0.25.16" || v.RuntimeApiVersion != "v1alpha2" {
		t.Errorf("Version = %v, %v", v, err)
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u", Attempt: 3}, Labels: map[string]string{"a": "b"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}}, // not known to it
		}},
	}
	p, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := c.Pods(ctx, nil)
	if err != nil || len(pods) != 1 || pods[0].Id != p.PodSandboxId || pods[0].Metadata.Attempt != 3 || pods[0].Labels["a"] != "b" {
		t.Errorf("Pods = %v, %v", pods, err)
	}
	created, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Envs:       []*runtimeapi.KeyValue{{Key: "BYTES", Value: []byte("a\xff\x00b")}},
		StopSignal: runtimeapi.Signal_SIGNAL_SIGUSR1, // not known to it
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/profile"},
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: created.ContainerId})
	if err != nil || r.ExitCode != 3 || string(r.Stdout) != "BYTES=a\xff\x00b\n" || string(r.Stderr) != "/profile" {
		t.Errorf("ExecSync = %v, %v", r, err)
	}
	if _, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "none"}); !errors.Is(err, criclient.ErrNotFound) {
		t.Errorf("ExecSync of none: %v", err)
	}
	if _, err := c.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); !errors.Is(err, criclient.ErrUnimplemented) {
		t.Errorf("RuntimeConfig = %v", err)
	}
	for range 2 {
		if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{}); !errors.Is(err, criclient.ErrUnimplemented) {
			t.Errorf("StopContainer = %v", err) // v1alpha2 has it, this server does not
		}
	}
}
