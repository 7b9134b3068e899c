package cri

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/pod"
)

func ctrSnapshot(podID, id string, state pod.State) *pod.ContainerSnapshot {
	return &pod.ContainerSnapshot{
		ID: id, PodID: podID, State: state, ImageID: "sha256:i", CreatedAt: time.Unix(1, 0),
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "name-" + id}, Image: &runtimeapi.ImageSpec{Image: "i"},
		},
	}
}

func podSnapshot(id string, state pod.State) *pod.Snapshot {
	return &pod.Snapshot{ID: id, State: state, CreatedAt: time.Unix(1, 0), Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"},
	}}
}

func events(t *testing.T, w *world) func() (*runtimeapi.ContainerEventResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	rt, _, _, _ := server(t, w)
	stream := must[runtimeapi.RuntimeService_GetContainerEventsClient](t)(rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{}))
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return stream.Recv
}

func TestGetContainerEvents(t *testing.T) {
	p, was := podSnapshot("p", pod.Ready), ctrSnapshot("p", "c1", pod.Running)
	w := &world{
		events: make(chan pod.Event, 10), stopping: make(chan struct{}),
		// By now it has exited: the event shows it as it was then.
		containers: []*pod.ContainerSnapshot{ctrSnapshot("p", "c1", pod.Exited), ctrSnapshot("p", "c2", pod.Created), ctrSnapshot("other", "c3", pod.Running)},
	}
	next := events(t, w)
	for _, test := range []struct {
		event pod.Event
		id    string
		kind  runtimeapi.ContainerEventType
		all   string
	}{
		{pod.Event{Kind: pod.EventCreated, Pod: p}, "p", runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, "c1 EXITED, c2 CREATED"},
		{pod.Event{Kind: pod.EventStarted, Pod: p, Container: was}, "c1", runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, "c2 CREATED, c1 RUNNING"},
		{pod.Event{Kind: pod.EventStopped, Pod: p, Container: was}, "c1", runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, "c2 CREATED, c1 RUNNING"},
		{pod.Event{Kind: pod.EventDeleted, Pod: p, Container: was}, "c1", runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, "c2 CREATED"},
	} {
		test.event.At = time.Unix(0, 12345)
		w.events <- test.event
		e, err := next()
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, c := range e.ContainersStatuses {
			all = append(all, c.Id+" "+strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		}
		if e.ContainerId != test.id || e.ContainerEventType != test.kind || e.CreatedAt != 12345 ||
			e.PodSandboxStatus.GetMetadata().GetUid() != "u1" || e.PodSandboxStatus.State != runtimeapi.PodSandboxState_SANDBOX_READY ||
			strings.Join(all, ", ") != test.all {
			t.Errorf("%s: %v", test.kind, e)
		}
	}
	close(w.stopping)
	_, err := next()
	want{codes.Unavailable, "davitd is stopping"}.check(t, err)
}

// A pod with more exited containers than fit into a message: its events, and
// its status, do without them.
func TestStatusesThatDoNotFit(t *testing.T) {
	w := &world{events: make(chan pod.Event, 1), pods: []*pod.Snapshot{podSnapshot("p", pod.Ready)}}
	for i := range 20 {
		c := ctrSnapshot("p", fmt.Sprint("c", i), pod.Exited)
		c.Config.Annotations = map[string]string{"long": strings.Repeat("x", 1<<20)}
		w.containers = append(w.containers, c)
	}
	next := events(t, w)
	w.events <- pod.Event{Kind: pod.EventStopped, Pod: w.pods[0], Container: w.containers[3]}
	e, err := next()
	if err != nil || len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].Id != "c3" {
		t.Errorf("%d statuses, %v", len(e.GetContainersStatuses()), err)
	}
	rt, _, _, _ := server(t, w)
	status := func() *runtimeapi.PodSandboxStatusResponse {
		return must[*runtimeapi.PodSandboxStatusResponse](t)(rt.PodSandboxStatus(context.Background(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "p"}))
	}
	if s := status(); len(s.ContainersStatuses) != 0 || s.Timestamp != 0 || s.Status.GetId() != "p" {
		t.Errorf("%d statuses, time %d", len(s.ContainersStatuses), s.Timestamp)
	}
	w.containers = w.containers[:2]
	// A time would make kubelets run init containers for ever.
	if s := status(); len(s.ContainersStatuses) != 2 || s.Timestamp != 0 {
		t.Errorf("%d statuses, time %d", len(s.ContainersStatuses), s.Timestamp)
	}
}

// Lists longer than a message: refused as one, whole as streams.
func TestLongLists(t *testing.T) {
	ctx, w := context.Background(), &world{}
	for i := range 30 {
		c, p := ctrSnapshot("p", fmt.Sprint("c", i), pod.Exited), podSnapshot(fmt.Sprint("p", i), pod.NotReady)
		c.Config.Annotations = map[string]string{"long": strings.Repeat("x", 600_000)}
		p.Config.Annotations = c.Config.Annotations
		w.containers, w.pods = append(w.containers, c), append(w.pods, p)
	}
	rt, im, _, _ := server(t, w)
	_, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	want{codes.ResourceExhausted, "the list is longer than the 16 MiB of one message: use StreamContainers"}.check(t, err)
	_, err = rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	want{codes.ResourceExhausted, "the list is longer than the 16 MiB of one message: use StreamPodSandboxes"}.check(t, err)

	containers := must[runtimeapi.RuntimeService_StreamContainersClient](t)(rt.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{}))
	n := drain(t, containers.Recv, func(r *runtimeapi.StreamContainersResponse) int { return len(r.Containers) })
	pods := must[runtimeapi.RuntimeService_StreamPodSandboxesClient](t)(rt.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{
		Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}},
	}))
	m := drain(t, pods.Recv, func(r *runtimeapi.StreamPodSandboxesResponse) int { return len(r.PodSandboxes) })
	images := must[runtimeapi.ImageService_StreamImagesClient](t)(im.StreamImages(ctx, &runtimeapi.StreamImagesRequest{}))
	if k := drain(t, images.Recv, func(r *runtimeapi.StreamImagesResponse) int { return len(r.Images) }); n != 30 || m != 30 || k != 0 {
		t.Errorf("%d containers, %d pods, %d images", n, m, k)
	}
}

// drain counts the items of a stream, whose messages must have some, but not too many.
func drain[M proto.Message](t *testing.T, recv func() (M, error), count func(M) int) (n int) {
	t.Helper()
	for {
		m, err := recv()
		if err != nil {
			want{codes.Unknown, "EOF"}.check(t, err) // io.EOF is no status
			return n
		}
		if count(m) == 0 || proto.Size(m) > batchBytes {
			t.Errorf("a message of %d items, %d bytes", count(m), proto.Size(m))
		}
		n += count(m)
	}
}
