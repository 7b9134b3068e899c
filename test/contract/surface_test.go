package contract

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// subscribe returns what receives events, once the subscription is in force.
func (w *world) subscribe(ctx context.Context) func() (*runtimeapi.ContainerEventResponse, error) {
	w.t.Helper()
	stream, err := w.c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return stream.Recv
}

// TestSubscriber: a subscriber hears of everything, in order, with the whole pod;
// its stream ends when davitd does, at once.
func TestSubscriber(t *testing.T) {
	w := newWorld(t, "")
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	next := w.subscribe(ctx)
	podID, pod := w.pod("heard")
	id := w.run(podID, pod, w.config("quick", "sh", "-c", "exit 3"))
	heard := func() (all []string) {
		t.Helper()
		for {
			e, err := next()
			if err != nil {
				t.Fatalf("after %q: %v", all, err)
			}
			s := e.PodSandboxStatus
			if s.GetId() != podID || s.GetMetadata().GetName() != "heard" || s.GetMetadata().GetUid() == "" || time.Since(time.Unix(0, e.CreatedAt)) > time.Minute {
				t.Errorf("event %v", e)
			}
			what, own := "pod", (*runtimeapi.ContainerStatus)(nil)
			if e.ContainerId != podID {
				what = "quick"
				for _, c := range e.ContainersStatuses {
					if c.Id == e.ContainerId {
						own = c
					}
				}
				if own == nil && e.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
					t.Errorf("event without its container: %v", e)
				}
			}
			kind := strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
			all = append(all, what+" "+kind)
			if kind == "STOPPED" && what == "quick" && (own.GetExitCode() != 3 || own.GetFinishedAt() == 0 || own.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED) {
				t.Errorf("stopped: %v", own)
			}
			if kind == "STOPPED" || kind == "DELETED" {
				return all
			}
		}
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			got = append(got, heard()...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	expect("pod CREATED", "pod STARTED", "quick CREATED", "quick STARTED", "quick STOPPED")
	if err := w.remove(id); err != nil {
		t.Fatal(err)
	}
	expect("quick DELETED")

	begun := time.Now()
	ended := make(chan error, 1)
	go func() {
		_, err := next()
		ended <- err
	}()
	if err := w.d.Stop(); err != nil {
		t.Fatal(err)
	}
	want(t, <-ended, codes.Unavailable)
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("davitd took %s to end beside a subscriber", took)
	}
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
	next = w.subscribe(ctx)
	if err := w.c.RemovePod(ctx, podID); err != nil {
		t.Fatal(err)
	}
	expect("pod STOPPED", "pod DELETED")
}

// TestStreamedLists: they say what the lists say.
func TestStreamedLists(t *testing.T) {
	w := newWorld(t, "")
	for i := range 3 {
		id, pod := w.pod(fmt.Sprint("p", i), func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"big": strings.Repeat("x", 900_000)}
		})
		if _, err := w.create(id, pod, w.config("c", "true")); err != nil {
			t.Fatal(err)
		}
	}
	pods, err := w.c.ListPodSandbox(w.ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	podStream, err := w.c.StreamPodSandboxes(w.ctx, &runtimeapi.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i, item := range pods.Items {
		r, err := podStream.Recv() // each too big to be with another
		if err != nil || len(r.PodSandboxes) != 1 || !proto.Equal(r.PodSandboxes[0], item) {
			t.Errorf("pod %d: %v, %v", i, r, err)
		}
	}
	containers, err := w.c.ListContainers(w.ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	containerStream, err := w.c.StreamContainers(w.ctx, &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := containerStream.Recv(); err != nil || !proto.Equal(&runtimeapi.ListContainersResponse{Containers: r.Containers}, containers) {
		t.Errorf("containers: %v, %v", r, err)
	}
	images, err := w.c.ListImages(w.ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	imageStream, err := w.c.StreamImages(w.ctx, &runtimeapi.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := imageStream.Recv(); err != nil || !proto.Equal(&runtimeapi.ListImagesResponse{Images: r.Images}, images) {
		t.Errorf("images: %v, %v", r, err)
	}
	for what, err := range map[string]error{"pods": end(podStream.Recv()), "containers": end(containerStream.Recv()), "images": end(imageStream.Recv())} {
		if err == nil || err.Error() != "EOF" {
			t.Errorf("%s end with %v", what, err)
		}
	}
	none, err := w.c.StreamPodSandboxes(w.ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "zz"}})
	if err == nil {
		_, err = none.Recv()
	}
	if err == nil || err.Error() != "EOF" {
		t.Errorf("an empty list: %v", err)
	}
}

func end[M any](_ M, err error) error { return err }

func connect(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestImageSocket: images on a socket of their own, and beside the runtime.
func TestImageSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "images.sock")
	w := newWorld(t, fmt.Sprintf("image_socket = %q\n", socket))
	info, err := os.Stat(socket)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v", info, err)
	}
	conn := connect(t, socket)
	list, err := runtimeapi.NewImageServiceClient(conn).ListImages(w.ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 1 {
		t.Errorf("images: %v, %v", list, err)
	}
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(w.ctx, &runtimeapi.VersionRequest{})
	want(t, err, codes.Unimplemented, "unknown service")
	if r, err := healthpb.NewHealthClient(conn).Check(w.ctx, &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	if _, err := w.c.ListImages(w.ctx, &runtimeapi.ListImagesRequest{}); err != nil {
		t.Errorf("images on the runtime's socket: %v", err)
	}
	if err := w.d.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("after davitd's end: %v", err)
	}
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
}

// TestV1alpha2: a pod's life by the older name, with the fields of older kubelets.
func TestV1alpha2(t *testing.T) {
	w := newWorld(t, "")
	conn := connect(t, w.d.Socket)
	call := func(method string, request, response proto.Message) error {
		return conn.Invoke(w.ctx, "/runtime.v1alpha2."+method, request, response)
	}
	must := func(method string, request, response proto.Message) {
		t.Helper()
		if err := call("RuntimeService/"+method, request, response); err != nil {
			t.Fatalf("%s: %v", method, err)
		}
	}
	var v runtimeapi.VersionResponse
	must("Version", &runtimeapi.VersionRequest{}, &v)
	if v.RuntimeApiVersion != "v1alpha2" || v.Version != "0.1.0" {
		t.Errorf("%v", &v)
	}
	pod := testkit.PodConfig("older", w.d.Logs)
	var run runtimeapi.RunPodSandboxResponse
	must("RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod}, &run)
	seccomp := func(profile string) string {
		t.Helper()
		config := w.config("c-"+strings.ReplaceAll(profile, "/", "-"), "grep", "Seccomp:", "/proc/self/status")
		config.Linux.SecurityContext.SeccompProfilePath = profile //nolint // what kubelets below 1.19 set
		var made runtimeapi.CreateContainerResponse
		must("CreateContainer", &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: config, SandboxConfig: pod}, &made)
		must("StartContainer", &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}, &runtimeapi.StartContainerResponse{})
		if s, err := w.c.AwaitExit(w.ctx, made.ContainerId); err != nil || s.ExitCode != 0 {
			t.Fatalf("%v, %v", s, err)
		}
		text, err := os.ReadFile(filepath.Join(pod.LogDirectory, config.LogPath))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for profile, mode := range map[string]string{"runtime/default": "\t2\n", "unconfined": "\t0\n", "": "\t0\n"} {
		if log := seccomp(profile); !strings.HasSuffix(log, mode) {
			t.Errorf("seccomp %q: %q", profile, log)
		}
	}
	config := w.config("bad", "true")
	config.Linux.SecurityContext.SeccompProfilePath = "localhost//no/such" //nolint // see above
	err := call("RuntimeService/CreateContainer", &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: config, SandboxConfig: pod}, &runtimeapi.CreateContainerResponse{})
	if err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a profile that is not there: %v", err)
	}
	var list runtimeapi.ListContainersResponse
	must("ListContainers", &runtimeapi.ListContainersRequest{}, &list)
	if len(list.Containers) != 3 {
		t.Errorf("%v", &list)
	}
	must("StopPodSandbox", &runtimeapi.StopPodSandboxRequest{PodSandboxId: run.PodSandboxId}, &runtimeapi.StopPodSandboxResponse{})
	must("RemovePodSandbox", &runtimeapi.RemovePodSandboxRequest{PodSandboxId: run.PodSandboxId}, &runtimeapi.RemovePodSandboxResponse{})
	want(t, call("RuntimeService/RuntimeConfig", &runtimeapi.RuntimeConfigRequest{}, &runtimeapi.RuntimeConfigResponse{}), codes.Unimplemented, "RuntimeConfig")
	want(t, call("ImageService/StreamImages", &runtimeapi.StreamImagesRequest{}, &runtimeapi.StreamImagesResponse{}), codes.Unimplemented, "StreamImages")
}

// TestPodCIDR: pods to come are where the kubelet says, also after a restart.
func TestPodCIDR(t *testing.T) {
	w := newWorld(t, "")
	ip := func(podID string) netip.Addr {
		t.Helper()
		r, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
		if err != nil {
			t.Fatal(err)
		}
		return netip.MustParseAddr(r.Status.Network.Ip)
	}
	update := func(cidr string) error {
		_, err := w.c.UpdateRuntimeConfig(w.ctx, &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	first, _ := w.pod("first")
	was := ip(first)
	if err := update("10.99.3.0/24"); err != nil {
		t.Fatal(err)
	}
	want(t, update("10.99.3/24"), codes.InvalidArgument, "pod_cidr")
	subnet := netip.MustParsePrefix("10.99.3.0/24")
	second, _ := w.pod("second")
	if a := ip(second); !subnet.Contains(a) {
		t.Errorf("address %s", a)
	}
	if err := w.d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := w.d.Start(); err != nil {
		t.Fatal(err)
	}
	third, _ := w.pod("third")
	if a := ip(third); !subnet.Contains(a) || ip(first) != was {
		t.Errorf("addresses %s, %s before %s", a, ip(first), was)
	}
}
