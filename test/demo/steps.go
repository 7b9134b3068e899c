package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// What examples/hello.yaml says.
const (
	registryAddress = "127.0.0.1:5050"
	imageName       = registryAddress + "/demo/busybox:1"
	podName         = "hello"
	podPort         = 8080
	hostPort        = 18080
)

// watched are directories where nothing may appear that stays: those of a
// davitd without options, of pods' logs, of volumes.
var watched = []string{"/run/davit", "/run/crun", "/run/runc", "/run/netns", "/var/lib/davit", "/var/lib/davit-play", "/var/log/pods", "/var/lib/kubelet", "/etc/cni"}

// run goes through the whole life of a pod.
func (d *demo) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "davit-demo-")
	if err != nil {
		return err
	}
	d.dir = dir
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return err
	}
	d.baseline = testkit.NewBaseline(append(watched, dir)...)
	for _, s := range []struct {
		text string
		do   func(context.Context) error
	}{
		{"A registry on " + registryAddress + ", and in it a small image", d.serveImage},
		{"davitd, with directories of its own below " + dir, d.startDaemon},
		{"davit status", func(ctx context.Context) error { return d.davit(ctx, "status") }},
		{"davit play examples/hello.yaml", d.play},
		{"davit ps: what runs now", func(ctx context.Context) error { return d.davit(ctx, "ps") }},
		{"The page, by the pod's address and by the host's port", d.fetch},
		{"davit logs: what both containers wrote", d.logs},
		{"davit exec: a command in a container", d.exec},
		{"davit stop, davit rm", d.remove},
		{"End davitd and davit-monitor", d.end},
		{"Look for anything that stayed behind", d.prove},
	} {
		if err := d.step(s.text, func() error { return s.do(ctx) }); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("it took longer than %s", limit)
		}
	}
	return nil
}

func (d *demo) serveImage(context.Context) (err error) {
	dir := filepath.Join(d.dir, "registry")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if d.registry, err = testkit.StartRegistry(dir, registryAddress); err != nil {
		return err
	}
	img, err := testkit.Busybox()
	if err != nil {
		return err
	}
	if err := testkit.Push(imageName, img); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	say("%s is %s", imageName, digest)
	return nil
}

func (d *demo) startDaemon(context.Context) (err error) {
	if d.daemon, err = testkit.StartDaemon(filepath.Join(d.dir, "davit"), ""); err != nil {
		return err
	}
	d.client, err = testkit.Dial("unix://" + d.daemon.Socket)
	return err
}

// command prepares the davit program, pointed at this davitd.
func (d *demo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.daemon.Bin, "davit"), args...)
	cmd.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT=unix://"+d.daemon.Socket)
	cmd.Stderr = os.Stderr
	return cmd
}

// davit runs the program with its output for the person to see.
func (d *demo) davit(ctx context.Context, args ...string) error {
	cmd := d.command(ctx, args...)
	cmd.Stdout = os.Stdout
	return cmd.Run()
}

// output runs the program, shows its output and returns it.
func (d *demo) output(ctx context.Context, args ...string) (string, error) {
	fmt.Println("          $ davit", strings.Join(args, " "))
	cmd := d.command(ctx, args...)
	cmd.Stderr = nil
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		fmt.Print("          ", line)
	}
	return string(out), err
}

func (d *demo) play(ctx context.Context) error {
	top, err := testkit.Top()
	if err != nil {
		return err
	}
	return d.davit(ctx, "play", "--play-dir", filepath.Join(d.dir, "play"), "--log-dir", filepath.Join(d.dir, "podlogs"),
		filepath.Join(top, "examples", "hello.yaml"))
}

// fetch gets the page both ways, and requires that it is the same.
func (d *demo) fetch(ctx context.Context) error {
	list, err := d.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	if len(list.Items) != 1 || list.Items[0].Metadata.Name != podName {
		return fmt.Errorf("there should be one pod, %s: %v", podName, list.Items)
	}
	d.podID = list.Items[0].Id
	status, err := d.client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: d.podID})
	if err != nil {
		return err
	}
	ip := status.Status.GetNetwork().GetIp()
	var pages []string
	for _, url := range []string{fmt.Sprintf("http://%s:%d/", ip, podPort), fmt.Sprintf("http://127.0.0.1:%d/", hostPort)} {
		page, err := get(ctx, url)
		if err != nil {
			return err
		}
		say("GET %s → %s", url, strings.TrimSpace(page))
		pages = append(pages, page)
	}
	if strings.TrimSpace(pages[0]) == "" || pages[0] != pages[1] {
		return errors.New("the page is empty, or not the same both ways")
	}
	return nil
}

// get fetches a page, and gives a server that has only just started a moment.
func get(ctx context.Context, url string) (string, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil && resp.StatusCode != http.StatusOK {
				err = errors.New(resp.Status)
			}
			return string(body), err
		}
		if time.Now().After(deadline) {
			return "", err
		}
	}
}

// containers returns the names of the pod's containers that run.
func (d *demo) containers(ctx context.Context) ([]string, error) {
	list, err := d.client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		PodSandboxId: d.podID,
		State:        &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range list.Containers {
		names = append(names, c.Metadata.Name)
	}
	if len(names) != 2 {
		return nil, fmt.Errorf("two containers should run: %v", names)
	}
	return names, nil
}

func (d *demo) logs(ctx context.Context) error {
	names, err := d.containers(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := d.output(ctx, "logs", podName, "-c", name)
		if err != nil {
			return err
		}
		if strings.TrimSpace(text) == "" {
			return fmt.Errorf("%s wrote nothing", name)
		}
	}
	return nil
}

func (d *demo) exec(ctx context.Context) error {
	names, err := d.containers(ctx)
	if err != nil {
		return err
	}
	out, err := d.output(ctx, "exec", podName, "-c", names[0], "--", "id")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out, "uid=") || strings.HasPrefix(out, "uid=0") {
		return fmt.Errorf("it should run as somebody other than root: %q", out)
	}
	return nil
}
