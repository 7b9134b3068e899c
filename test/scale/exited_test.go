package scale

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/compact"
	"github.com/davit-runtime/davit/internal/testkit"
)

// exitedBytes is what davitd may take for each container that has exited.
const exitedBytes = 4096

// keptBytes is what davitd may keep of what lists took.
const keptBytes = 40 << 20

// TestManyExited: thousands of containers that have exited cost little memory
// each; streamed lists deliver all of them, and others say why they do not.
// DAVIT_SCALE_EXITED says how many (default 5000).
func TestManyExited(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	testkit.Leftovers(t, dir)
	n := 5_000
	if text := os.Getenv("DAVIT_SCALE_EXITED"); text != "" {
		n, _ = strconv.Atoi(text)
	} else if testing.Short() {
		n = 2_000
	}
	registry := testkit.NewRegistry(t)
	image := registry.PushBusybox(t, "scale/busybox:1")
	d := testkit.NewDaemon(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := d.Client(t)
	if _, err := c.Pull(ctx, image); err != nil {
		t.Fatal(err)
	}
	var pods, exited []string
	for i := range 4 {
		podID, id := exitedContainer(ctx, t, d, c, image, i)
		pods, exited = append(pods, podID), append(exited, id)
	}
	restart := func(between func()) (memory int64, took time.Duration) {
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
		between()
		start := time.Now()
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		took = time.Since(start)
		memory, err := testkit.PSS(d.Pids()["davitd"][0])
		if err != nil {
			t.Fatal(err)
		}
		return memory, took
	}
	few, quick := restart(func() {})
	var made []string
	defer func() {
		restart(func() {
			for _, path := range made {
				_ = os.RemoveAll(path)
			}
		})
	}()
	many, took := restart(func() { made = multiply(t, d, exited, n-len(exited)) })
	each := (many - few) / int64(n)
	t.Logf("figure: %d exited containers: %d bytes of davitd's memory each (%.1f MB instead of %.1f); started in %s instead of %s",
		n, each, float64(many)/1e6, float64(few)/1e6, took.Round(time.Millisecond), quick.Round(time.Millisecond))
	if each > exitedBytes {
		t.Errorf("%d bytes for each exited container, at most %d are allowed", each, exitedBytes)
	}
	checkLists(ctx, t, c, n, pods[0])
	given := time.Now()
	for first := int64(0); ; time.Sleep(100 * time.Millisecond) {
		after, err := testkit.PSS(d.Pids()["davitd"][0])
		if err != nil {
			t.Fatal(err)
		}
		first = max(first, after)
		if after < many+keptBytes {
			t.Logf("figure: after lists of all of them davitd has %.1f MB, and %.1f MB after %s", float64(first)/1e6, float64(after)/1e6, time.Since(given).Round(time.Second))
			return
		}
		if time.Since(given) > 40*time.Second {
			t.Errorf("40 s after lists of all of them davitd has %.1f MB still", float64(after)/1e6)
			return
		}
	}
}

// checkLists asks for n exited containers in every way.
func checkLists(ctx context.Context, t *testing.T, c *testkit.Client, n int, podID string) {
	t.Helper()
	start := time.Now()
	stream, err := c.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen, messages := map[string]bool{}, 0
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		messages++
		for _, item := range r.Containers {
			if seen[item.Id] || item.State != runtimeapi.ContainerState_CONTAINER_EXITED || item.Labels["io.kubernetes.pod.uid"] == "" {
				t.Fatalf("twice, or wrong: %v", item)
			}
			seen[item.Id] = true
		}
		if size := proto.Size(r); len(r.Containers) == 0 || size > 4<<20 {
			t.Errorf("a message of %d containers, %d bytes", len(r.Containers), size)
		}
	}
	if len(seen) != n {
		t.Errorf("%d containers in the stream, want %d", len(seen), n)
	}
	t.Logf("figure: %d containers streamed in %s, %d messages", len(seen), time.Since(start).Round(time.Millisecond), messages)

	start = time.Now()
	all, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil && (status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "StreamContainers")) || err == nil && len(all.Containers) != n {
		t.Errorf("the list of all: %d, %v", len(all.GetContainers()), err)
	}
	t.Logf("figure: one list of all: %d containers in %s, %v", len(all.GetContainers()), time.Since(start).Round(time.Millisecond), err)
	some, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: podID}})
	if err != nil || len(some.Containers) != (n+3)/4 {
		t.Errorf("one pod's: %d, %v", len(some.GetContainers()), err)
	}
	start = time.Now()
	pod, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil || len(pod.ContainersStatuses) != (n+3)/4 {
		t.Errorf("the pod's status: %d containers, %v", len(pod.GetContainersStatuses()), err)
	}
	t.Logf("figure: one pod's status with %d containers in %s", len(pod.GetContainersStatuses()), time.Since(start).Round(time.Millisecond))
}

// Texts of the containers' configuration that become others in each copy.
const (
	uidText  = "8d3c6f3e-5d0c-4c4b-9d0e-aaaaaaaaaaaa"
	nameText = "worker-x7k2p9zq"
)

// exitedContainer runs a container, as a kubelet would ask for it, to its end.
func exitedContainer(ctx context.Context, t *testing.T, d *testkit.Daemon, c *testkit.Client, image string, i int) (podID, id string) {
	t.Helper()
	pod := testkit.PodConfig(fmt.Sprintf("batch-%d", i), d.Logs)
	podID, err := c.RunPod(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	config := testkit.ContainerConfig(nameText, image, "true")
	config.Labels = map[string]string{
		"io.kubernetes.container.name": nameText, "io.kubernetes.pod.name": "batch-" + nameText,
		"io.kubernetes.pod.namespace": "batch", "io.kubernetes.pod.uid": uidText,
	}
	config.Annotations = map[string]string{
		"io.kubernetes.container.hash": "9f1c2b3a", "io.kubernetes.container.restartCount": "3",
		"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
		"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
		"io.kubernetes.container.ports": `[{"name":"http","containerPort":8080,"protocol":"TCP"}]`,
	}
	for _, service := range []string{"KUBERNETES", "REDIS", "POSTGRES", "QUEUE"} {
		for _, v := range []string{"_SERVICE_HOST", "_SERVICE_PORT", "_PORT", "_PORT_80_TCP", "_PORT_80_TCP_PROTO", "_PORT_80_TCP_PORT", "_PORT_80_TCP_ADDR"} {
			config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: service + v, Value: []byte("tcp://10.96.12.7:80")})
		}
	}
	for n, to := range []string{"/var/run/secrets/kubernetes.io/serviceaccount", "/etc/worker", "/etc/hosts", "/dev/termination-log"} {
		from := filepath.Join(d.Logs, "kubelet", "pods", uidText, "volumes", "kubernetes.io~projected", fmt.Sprint("kube-api-access-7xk2", n))
		if err := os.MkdirAll(filepath.Dir(from), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(from, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if n < 2 {
			to += "/file"
		}
		config.Mounts = append(config.Mounts, &runtimeapi.Mount{HostPath: from, ContainerPath: to})
	}
	if id, err = c.RunContainer(ctx, podID, pod, config); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitExit(ctx, id); err != nil {
		t.Fatal(err)
	}
	return podID, id
}

// multiply writes n records of containers like those given, and returns their directories.
func multiply(t *testing.T, d *testkit.Daemon, ids []string, n int) (made []string) {
	t.Helper()
	var like []original
	for _, id := range ids {
		like = append(like, readOriginal(t, filepath.Join(d.Root, "containers", id, "record.json")))
	}
	for i := range n {
		id := fmt.Sprintf("%056x%08x", i*2654435761, i)
		other := strings.NewReplacer(ids[i%len(ids)], id, uidText, uidText[:24]+fmt.Sprintf("%012x", i), nameText, fmt.Sprintf("worker-%08x", i))
		dir := filepath.Join(d.Root, "containers", id)
		made = append(made, dir)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "record.json"), like[i%len(ids)].copy(t, other), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// An original is a record that others are made of: what is packed in it apart.
type original struct {
	before, after   string
	config          string // on the wire: replacements have the same length
	rest, resources string
}

func readOriginal(t *testing.T, path string) (o original) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var record struct {
		Data struct{ Packed []byte }
	}
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	whole, err := compact.Whole(record.Data.Packed)
	if err != nil {
		t.Fatal(err)
	}
	config, err := proto.Marshal(whole.Config)
	if err != nil {
		t.Fatal(err)
	}
	resources, err := proto.Marshal(whole.Resources)
	if err != nil {
		t.Fatal(err)
	}
	o.config, o.resources, o.rest = string(config), string(resources), string(whole.Rest)
	o.before, o.after, _ = strings.Cut(string(text), base64.StdEncoding.EncodeToString(record.Data.Packed))
	o.before = regexp.MustCompile(`"sum": "[0-9a-f]*", `).ReplaceAllString(o.before, "") // that of the original
	return o
}

func (o original) copy(t *testing.T, other *strings.Replacer) []byte {
	t.Helper()
	c := compact.Container{Config: &runtimeapi.ContainerConfig{}, Resources: &runtimeapi.LinuxContainerResources{}, Rest: []byte(other.Replace(o.rest))}
	if err := proto.Unmarshal([]byte(other.Replace(o.config)), c.Config); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal([]byte(o.resources), c.Resources); err != nil {
		t.Fatal(err)
	}
	packed, err := compact.Pack(c)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(other.Replace(o.before) + base64.StdEncoding.EncodeToString(packed) + other.Replace(o.after))
}
