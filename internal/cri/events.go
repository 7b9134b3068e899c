package cri

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/pod"
)

// Events tells what becomes of pods and containers. *pod.Pods implements it.
type Events interface {
	Subscribe(ctx context.Context) *pod.Subscription
}

// readers counts those of events, for verbose Status.
type readers struct {
	now  atomic.Int64
	lost atomic.Uint64
}

// complainEvery is how often the log is told that a reader is too slow.
const complainEvery = 10 * time.Second

var eventTypes = map[pod.EventKind]runtimeapi.ContainerEventType{
	pod.EventCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	pod.EventStarted: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	pod.EventStopped: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	pod.EventDeleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// GetContainerEvents sends events until the client goes or davitd stops. What
// becomes of a pod comes under the pod's ID.
//
// A client that reads too slowly loses events, the oldest first; its stream
// goes on: the kubelet takes events for hints, and gives up on them for good
// after some streams that ended.
//
// Kubernetes: pkg/kubelet/pleg, EventedPLEG.
func (s *service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	sub := s.Events.Subscribe(stream.Context())
	s.readers.now.Add(1)
	defer s.readers.now.Add(-1)
	// The client learns that the subscription is in force.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	loss := loss{sub: sub, service: s}
	defer loss.tell()
	for {
		select {
		case <-s.config.Stopping:
			return fault.New(fault.Unavailable, "", "davitd is stopping; containers run on")
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		case e, open := <-sub.Events:
			if !open {
				return context.Cause(stream.Context())
			}
			if time.Since(loss.told) > complainEvery {
				loss.tell()
			}
			if err := stream.Send(s.criEvent(e)); err != nil {
				return err
			}
		}
	}
}

// A loss is what one reader has missed, as far as it has been told.
type loss struct {
	sub     *pod.Subscription
	service *service
	n       uint64
	told    time.Time
}

func (l *loss) tell() {
	n := l.sub.Lost() - l.n
	if n == 0 {
		return
	}
	l.n, l.told = l.n+n, time.Now()
	l.service.readers.lost.Add(n)
	l.service.config.Log.Warn("a client reads events too slowly: it has lost some", "events", n, "in_all", l.n)
}

// criEvent shows pod and container as they were when it happened, the pod's
// other containers as they are now.
func (s *service) criEvent(e pod.Event) *runtimeapi.ContainerEventResponse {
	r := &runtimeapi.ContainerEventResponse{
		ContainerId: e.Pod.ID, ContainerEventType: eventTypes[e.Kind], CreatedAt: e.At.UnixNano(), PodSandboxStatus: podStatus(e.Pod),
	}
	if e.Container != nil {
		r.ContainerId = e.Container.ID
	}
	var own []*runtimeapi.ContainerStatus
	size := proto.Size(r)
	for _, c := range s.Views.ContainersOf(e.Pod.ID) {
		if e.Container != nil && c.ID == e.Container.ID {
			continue
		}
		status := containerStatus(c)
		size += sizeIn(status)
		r.ContainersStatuses = append(r.ContainersStatuses, status)
	}
	// One that is gone is not among the pod's containers any more.
	if e.Container != nil && e.Kind != pod.EventDeleted {
		own = append(own, containerStatus(e.Container))
		size += sizeIn(own[0])
	}
	if size > maxMessageBytes {
		r.ContainersStatuses = nil // thousands that have exited: PodSandboxStatus has room for no more, either
	}
	r.ContainersStatuses = append(r.ContainersStatuses, own...)
	return r
}
