package main

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// Containers, and commands in them, have the limits that are configured,
// whatever davitd was started with.
func TestUlimits(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "busybox:1")
	d := testkit.NewDaemon(t, "[ulimits]\nnofile = \"600:700\"\ncore = \"0\"\nstack = \"1048576:2097152\"\n")
	c := d.Client(t)
	ref, err := c.Pull(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	config := testkit.PodConfig("web", d.Logs)
	for _, handler := range []string{"crun", "runc"} {
		config.Metadata.Name = handler
		r, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		id, err := c.RunContainer(ctx, r.PodSandboxId, config, testkit.ContainerConfig("main", ref, "sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"/proc/1/limits", "/proc/self/limits"} {
			out, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", file}, Timeout: 20})
			if err != nil {
				t.Fatal(err)
			}
			open := "Max open files 600 700 files"
			if handler == "runc" && file != "/proc/1/limits" {
				open = " 700 files" // runc may raise the first for what it executes, by chance
			}
			for _, line := range []string{open, "Max core file size 0 0 bytes", "Max stack size 1048576 2097152 bytes"} {
				if got := strings.Join(strings.Fields(string(out.Stdout)), " "); !strings.Contains(got, line) {
					t.Errorf("%s: %s has not %q:\n%s", handler, file, line, out.Stdout)
				}
			}
		}
		if err := c.RemovePod(ctx, r.PodSandboxId); err != nil {
			t.Error(err)
		}
	}
}
