package contract

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDevicesByCDI: what a spec file says of a device is there in the
// container that asks for it by field or annotation, and broken files next to
// it change nothing.
func TestDevicesByCDI(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, fmt.Sprintf("cdi_spec_dirs = [%q]\n", dir))
	podID, pod := w.pod("devices")
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	asking := func(name, command string, devices ...string) *runtimeapi.ContainerConfig {
		c := w.config(name, "sh", "-c", command)
		for _, d := range devices {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: d})
		}
		return c
	}

	_, err := w.create(podID, pod, asking("early", "true", "vendor.com/gpu=0"))
	want(t, err, codes.FailedPrecondition, "vendor.com/gpu=0", dir)
	_, err = w.create(podID, pod, asking("early", "true", "gpu0"))
	want(t, err, codes.InvalidArgument, "config.CDI_devices[0].name", "gpu0")

	witness := filepath.Join(dir, "witness")
	hook := write("hook.sh", fmt.Sprintf("#!/bin/sh\necho $0 $1 $HOOKED >>%s\n", witness), 0o700)
	write("gpu.json", fmt.Sprintf(`{"cdiVersion":"0.7.0","kind":"vendor.com/gpu",
		"containerEdits":{"env":["DRIVER=yes"],"mounts":[{"hostPath":%q,"containerPath":"/driver","options":["ro","bind"]}]},
		"devices":[
			{"name":"0","containerEdits":{"env":["GPU=0"],"additionalGids":[4242],
				"deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/zero","permissions":"rw"}],
				"hooks":[{"hookName":"createRuntime","path":%q,"args":["hook","made"],"env":["HOOKED=1"]}]}},
			{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/gpu1","hostPath":"/dev/null"}]}}]}`, dir, hook), 0o600)
	for name, text := range map[string]string{"cut.json": `{"cdiVersion":`, "nulls.yaml": "cdiVersion: 0.6.0\nkind: a/b\ndevices: [{name: c, containerEdits: {hooks: [null]}}]\n"} {
		write(name, text, 0o600)
	}

	const look = `echo $DRIVER $GPU; ls /driver/gpu.json; id -G; head -c 3 /dev/gpu0 | wc -c; echo x >/dev/gpu1 && echo written; ls -ld /dev/gpu0`
	c := asking("asks", look, "vendor.com/gpu=0", "vendor.com/gpu=0")
	c.Annotations = map[string]string{"cdi.k8s.io/plugin_1": "vendor.com/gpu=1,vendor.com/gpu=0"}
	s := w.exit(podID, pod, c)
	text, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"F yes 0\n", "F /driver/gpu.json\n", " 4242\n", "F 3\n", "F written\n", "1,   5"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%q is missing", part)
		}
	}
	if t.Failed() {
		t.Logf("%s", text)
	}
	if said, err := os.ReadFile(witness); err != nil || strings.Count(string(said), "made 1\n") != 1 {
		t.Errorf("the hook: %q, %v", said, err)
	}

	// Whoever does not ask has none of it.
	s = w.exit(podID, pod, asking("plain", "ls /dev/gpu0 /driver; mknod /dev/own c 1 5 2>/dev/null; head -c 3 /dev/own; exit 0"))
	if text, err := os.ReadFile(s.LogPath); err != nil || !strings.Contains(string(text), "/dev/gpu0: No such file") {
		t.Errorf("%s, %v", text, err)
	}
	_, err = w.create(podID, pod, asking("broken", "true", "a/b=c"))
	want(t, err, codes.FailedPrecondition, "a/b=c", "nulls.yaml")
}
