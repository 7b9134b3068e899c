package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/monitor"
)

// A container's files are not looked for in a process that is not its own.
func TestCpRefuses(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	for _, tt := range []struct{ from, to, says string }{
		{"a", "b", "one of the two must be POD:PATH"},
		{"web:/a", "web:/b", "one of the two must be POD:PATH"},
		{"./web:/a", "b", "one of the two must be POD:PATH"},
		{"web:/a", "b", "several containers; choose one by -c: first, second, server, helper"},
		{"web/server:/a", "b", "container server: the runtime does not tell its process"},
		{"shop/web/server:/a", "b", "container server: the runtime does not tell its process"},
		{"web/setup:/a", "b", "container setup: it is exited, and can be reached only while it runs"},
		{"web/none:/a", "b", `there is no container "web/none"`},
		{"none/server:/a", "b", `there is no pod or container "none/server"`},
	} {
		s.davit(1, "", "cp", tt.from, tt.to)
		s.has(s.errOut, tt.says)
	}
	s.cri.SetInfo(map[string]string{"info": fmt.Sprintf(`{"pid": %d}`, os.Getpid())})
	s.davit(1, "", "cp", "web/server:/etc/hosts", s.dir)
	s.has(s.errOut, `container server: process \d+ on this node is of no control group of container cc0+\d: its runtime is on another node`)
	s.davit(1, "", "debug", "web/server")
	s.has(s.errOut, `its runtime is on another node`)
}

// What is made for debugging is removed, whatever comes of it.
func TestDebugByImage(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	before := len(s.cri.Containers())
	s.davit(0, "", "debug", "web/server", "--image", "tools:1", "--", "ls", "-l")
	s.has(s.out, `^debug-\w{5}: \["ls" "-l"\]\n$`)
	s.has(s.errOut, `image +tools:1 +pulled`)
	s.davit(5, "", "debug", "web", "-c", "helper", "--image", "tools:1", "--", "exit", "5")
	s.davit(1, "", "debug", "web", "--image", "tools:1")
	s.has(s.errOut, "several containers; choose one by -c")

	made := s.cri.Calls("CreateContainer")
	r := made[len(made)-2].Request.(*runtimeapi.CreateContainerRequest)
	options := r.Config.Linux.SecurityContext.NamespaceOptions
	if options.Pid != runtimeapi.NamespaceMode_TARGET || !strings.HasPrefix(options.TargetId, "cc") || r.Config.Labels["io.kubernetes.pod.name"] != "web" {
		t.Errorf("%+v", r.Config)
	}
	if r.SandboxConfig.GetMetadata().GetName() != "web" {
		t.Errorf("the pod's: %+v", r.SandboxConfig)
	}

	s.cri.Fail("StartContainer", status.Error(codes.Internal, "no program"))
	s.davit(1, "", "debug", "web/server", "--image", "tools:1")
	s.has(s.errOut, "container with tools:1: no program")
	s.cri.Fail("StartContainer", nil)
	s.cri.Fail("CreateContainer", status.Error(codes.Internal, "no room"))
	s.davit(1, "", "debug", "web/server", "--image", "tools:1")
	s.has(s.errOut, "container with tools:1: no room")
	s.cri.Fail("CreateContainer", nil)
	s.program = func(string, []string, monitor.Stream) (int, error) { return 0, errors.New("no such program") }
	s.davit(1, "", "debug", "web/server", "--image", "tools:1")
	s.has(s.errOut, "sh of tools:1: .*no such program")
	if after := len(s.cri.Containers()); after != before {
		t.Errorf("%d containers, and %d before", after, before)
	}

	s.program = func(_ string, _ []string, io monitor.Stream) (int, error) {
		fmt.Fprintln(io.Stdout, "begun")
		_, _ = io.Stdin.Read(make([]byte, 1))
		return 0, nil
	}
	r0, w0, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r0.Close()
	defer w0.Close()
	var out, errOut shared
	wait := s.background(r0, &out, &errOut, "debug", "web/server", "--image", "tools:1")
	out.await(t, "begun")
	_ = unix.Kill(os.Getpid(), syscall.SIGTERM)
	if code := wait(); code != 130 {
		t.Errorf("exit code %d: %s", code, &errOut)
	}
	if after := len(s.cri.Containers()); after != before {
		t.Errorf("interrupted: %d containers, and %d before", after, before)
	}
}

func TestTop(t *testing.T) {
	s := newShell(t)
	s.davit(0, "", "top", "--interval", "100ms")
	s.has(s.out, `^POD/CONTAINER +CPU`)
	s.play(0, twoContainers)
	s.davit(0, "", "top", "--interval", "100ms", "--sort", "name")
	const table = `(?m)^POD/CONTAINER .*\nshop/web +0m +4(.00)? MiB +- .*\n  first +0m +1(.00)? MiB .*\n  helper .*\n  second .*\n  server .*\n`
	s.has(s.out, table)
	s.davit(0, "", "top", "web", "--interval", "100ms", "--pods")
	if strings.Contains(s.out, "server") {
		t.Errorf("--pods: %s", s.out)
	}
	s.davit(0, "", "top", "-o", "json")
	var pods struct{ Stats []json.RawMessage }
	if err := json.Unmarshal([]byte(s.out), &pods); err != nil || len(pods.Stats) != 1 {
		t.Errorf("%v: %s", err, s.out)
	}
	for flag, says := range map[string]string{"--sort=size": "want cpu, memory, disk or name", "--interval=1ms": "want 100ms or more"} {
		s.davit(1, "", "top", flag)
		s.has(s.errOut, says)
	}
	s.davit(1, "", "top", "none")
	s.has(s.errOut, `there is no pod "none"`)
}

// A runtime without statistics of pods has those of containers.
func TestTopOfContainers(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	none := status.Error(codes.Unimplemented, "unknown method")
	s.cri.Fail("StreamPodSandboxStats", none)
	s.cri.Fail("ListPodSandboxStats", none)
	s.davit(0, "", "top", "--interval", "100ms")
	s.has(s.out, `(?m)^shop/web +0m +4(.00)? MiB .*\n  first `)
	s.davit(0, "", "top", "-o", "json")
	s.has(s.out, `"workingSetBytes"`)
}

// On a terminal it goes on, within the screen, which is as it was in the end.
func TestTopOnATerminal(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	keyboard, screen := pty(t)
	resize(t, screen, 20, 4)
	var seen shared
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := keyboard.Read(buffer)
			if err != nil {
				return
			}
			_, _ = seen.Write(buffer[:n])
		}
	}()
	wait := s.background(nil, screen, &seen, "top", "--interval", "100ms")
	seen.await(t, "shop/web")
	for deadline := time.Now().Add(20 * time.Second); strings.Count(seen.String(), "shop/web") < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not go on: %q", &seen)
		}
	}
	_ = unix.Kill(os.Getpid(), syscall.SIGINT)
	if code := wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	seen.await(t, "\x1b[?25h\x1b[?1049l")
	frame := strings.Split(seen.String(), "\x1b[H")[1]
	if lines := strings.Split(frame, "\r\n"); len(lines) != 4 || len(strings.TrimSuffix(lines[1], "\x1b[K")) > 20 {
		t.Errorf("%q", frame)
	}
}
