package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// What goes wrong says what and why, with the right code, and leaves nothing.
func TestErrors(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	registry := testkit.NewRegistry(t)
	image := registry.PushBusybox(t, "busybox:1")
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
	create := func(name, image string, change func(*runtimeapi.ContainerConfig)) (string, error) {
		ctr := testkit.ContainerConfig(name, image, "sleep", "1000")
		change(ctr)
		r, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: ctr, SandboxConfig: config})
		return r.GetContainerId(), err
	}
	same := func(*runtimeapi.ContainerConfig) {}
	id, err := create("good", ref, same)
	if err != nil {
		t.Fatal(err)
	}
	again, err := create("good", ref, same)
	if err != nil || again != id {
		t.Errorf("created twice: %s, then %s, %v", id, again, err)
	}
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what string
		err  error
		code codes.Code
		text string
	}{
		{"an absent image", second(create("a", "sha256:"+strings.Repeat("0", 64), same)), codes.NotFound, "sha256:000"},
		{"an absent mount", second(create("b", ref, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/no/such/place", ContainerPath: "/x"}}
		})), codes.FailedPrecondition, "/no/such/place"},
		{"an absent user", second(create("c", ref, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nosuchuser"}
		})), codes.InvalidArgument, "nosuchuser"},
		{"an absent seccomp profile", second(create("d", ref, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/profile.json"},
			}
		})), codes.FailedPrecondition, "/no/profile.json"},
		{"a broken seccomp profile", second(create("e", ref, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile},
			}
		})), codes.InvalidArgument, "seccomp"},
		{"exec in a container that does not run", second(c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})), codes.FailedPrecondition, "created"},
		{"start of an unknown one", second(c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "beef"})), codes.NotFound, "beef"},
		{"stop of an unknown one", second(c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "beef"})), codes.OK, ""},
		{"remove of an unknown one", second(c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "beef"})), codes.OK, ""},
		{"stop of an unknown pod", second(c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "beef"})), codes.OK, ""},
		{"remove of an unknown pod", second(c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "beef"})), codes.OK, ""},
		{"removal of an unknown image", second(c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "docker.io/no/image"}})), codes.OK, ""},
		{"an update of an unknown one", second(c.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: "beef", Linux: &runtimeapi.LinuxContainerResources{},
		})), codes.NotFound, "beef"},
		{"a malformed reference", second(c.Pull(ctx, "Not A Reference")), codes.InvalidArgument, "Not A Reference"},
		{"a registry that is down", second(c.Pull(ctx, "127.0.0.1:1/busybox:1")), codes.Unknown, "RegistryUnavailable"},
		{"an image that is not there", second(c.Pull(ctx, strings.Replace(image, "busybox:1", "nothing:1", 1))), codes.NotFound, "nothing"},
	} {
		if status.Code(tt.err) != tt.code || tt.err != nil && !strings.Contains(tt.err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v with %q", tt.what, tt.err, tt.code, tt.text)
		}
	}
	if err := second(c.Pull(ctx, "127.0.0.1:1/busybox:1")); !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable: ") {
		t.Errorf("the kubelet would not know it: %v", err)
	}
	bad, err := create("f", ref, func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/command"} })
	if err == nil {
		_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: bad})
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such/command") {
		t.Errorf("a command that is not there: %v", err)
	}
	if err := second(c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})); err != nil {
		t.Error(err)
	}
	if _, err := create("late", ref, same); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a container in a stopped pod: %v", err)
	}
	list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ctr := range list.Containers {
		if ctr.Id != id && ctr.Id != bad {
			t.Errorf("a refused container is listed: %v", ctr)
		}
	}
}

func second[T any](_ T, err error) error { return err }
