package criclient_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// fill makes n pods with a running container each, and n images.
func (s *server) fill(t *testing.T, c *criclient.Client, n int) {
	t.Helper()
	image := s.AddImage("", "a:1")
	for i := range n {
		config := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprint("p", i), Namespace: "n", Uid: fmt.Sprint("u", i)},
			Labels:   map[string]string{"odd": fmt.Sprint(i%2 == 1)},
		}
		p, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: image}, Labels: config.Labels,
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			s.AddImage("", fmt.Sprint("a:", i+1))
		}
	}
}

// lists are all of them: how many there are, and by which two calls.
var lists = []struct {
	stream, single string
	count          func(context.Context, *criclient.Client) (int, error)
}{
	{"StreamPodSandboxes", "ListPodSandbox", func(ctx context.Context, c *criclient.Client) (int, error) {
		l, err := c.Pods(ctx, nil)
		return len(l), err
	}},
	{"StreamContainers", "ListContainers", func(ctx context.Context, c *criclient.Client) (int, error) {
		l, err := c.Containers(ctx, nil)
		return len(l), err
	}},
	{"StreamImages", "ListImages", func(ctx context.Context, c *criclient.Client) (int, error) {
		l, err := c.Images(ctx, nil)
		return len(l), err
	}},
	{"StreamContainerStats", "ListContainerStats", func(ctx context.Context, c *criclient.Client) (int, error) {
		l, err := c.ContainersStats(ctx, nil)
		return len(l), err
	}},
	{"StreamPodSandboxStats", "ListPodSandboxStats", func(ctx context.Context, c *criclient.Client) (int, error) {
		l, err := c.PodsStats(ctx, nil)
		return len(l), err
	}},
	{"StreamPodSandboxMetrics", "ListPodSandboxMetrics", func(ctx context.Context, c *criclient.Client) (int, error) {
		l, err := c.PodsMetrics(ctx)
		return len(l), err
	}},
}

func TestLists(t *testing.T) {
	s := listen(t, isBoth)
	s.SetChunk(3)
	c := dial(t, s)
	s.fill(t, c, 10)
	for _, l := range lists {
		if n, err := l.count(t.Context(), c); n != 10 || err != nil {
			t.Errorf("%s: %d items, %v", l.stream, n, err)
		}
		if len(s.Calls(l.stream)) != 1 || len(s.Calls(l.single)) != 0 {
			t.Errorf("%s: %v, %v", l.stream, s.Calls(l.stream), s.Calls(l.single))
		}
	}
	odd := map[string]string{"odd": "true"}
	if pods, err := c.Pods(t.Context(), &runtimeapi.PodSandboxFilter{LabelSelector: odd}); len(pods) != 5 || err != nil {
		t.Errorf("%d odd pods, %v", len(pods), err)
	}
	if containers, err := c.Containers(t.Context(), &runtimeapi.ContainerFilter{LabelSelector: odd}); len(containers) != 5 || err != nil {
		t.Errorf("%d odd containers, %v", len(containers), err)
	}
	if images, err := c.Images(t.Context(), &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "a:7"}}); len(images) != 1 || err != nil {
		t.Errorf("%d images, %v", len(images), err)
	}
}

// TestListsWithoutStreams: one list's stream that is missing is asked for
// once, and the others stream on.
func TestListsWithoutStreams(t *testing.T) {
	for i, l := range lists {
		s := listen(t, isV1)
		c := dial(t, s)
		s.fill(t, c, 2)
		s.Fail(l.stream, status.Error(codes.Unimplemented, "unknown method"))
		for range 3 {
			if n, err := l.count(t.Context(), c); n != 2 || err != nil {
				t.Errorf("%s: %d, %v", l.single, n, err)
			}
		}
		if streams, singles := len(s.Calls(l.stream)), len(s.Calls(l.single)); streams != 1 || singles != 3 {
			t.Errorf("%s: %d calls, %s: %d", l.stream, streams, l.single, singles)
		}
		other := lists[(i+1)%len(lists)]
		if _, err := other.count(t.Context(), c); err != nil || len(s.Calls(other.stream)) != 1 || len(s.Calls(other.single)) != 0 {
			t.Errorf("%s after %s: %v", other.stream, l.stream, err)
		}
		// One that comes back with streams is asked for them.
		s.Fail(l.stream, nil)
		s.become(t, isV1, awaitLoss(t, c, criclient.RuntimeService), awaitLoss(t, c, criclient.ImageService))
		if n, err := l.count(t.Context(), c); n != 2 || err != nil || len(s.Calls(l.stream)) != 2 {
			t.Errorf("%s after a restart: %d, %v", l.stream, n, err)
		}
	}
}

// TestListsOfV1alpha2 do not try what it cannot have. It has no metrics.
func TestListsOfV1alpha2(t *testing.T) {
	s := listen(t, isV1alpha2)
	c := dial(t, s)
	s.fill(t, c, 2)
	for _, l := range lists {
		n, err := l.count(t.Context(), c)
		if l.single == "ListPodSandboxMetrics" {
			if !errors.Is(err, criclient.ErrUnimplemented) {
				t.Errorf("%s: %v", l.single, err)
			}
		} else if n != 2 || err != nil {
			t.Errorf("%s: %d, %v", l.single, n, err)
		}
	}
}

// TestListsRenegotiate: the call that finds the streams gone with the version
// is answered all the same.
func TestListsRenegotiate(t *testing.T) {
	for _, l := range lists[:5] {
		s := listen(t, isV1)
		c := s.client(t, s, true)
		s.fill(t, c, 2)
		if n, err := l.count(t.Context(), c); n != 2 || err != nil {
			t.Errorf("%s: %d, %v", l.stream, n, err)
		}
		s.become(t, isV1alpha2, awaitLoss(t, c, criclient.RuntimeService), awaitLoss(t, c, criclient.ImageService))
		if n, err := l.count(t.Context(), c); n != 2 || err != nil {
			t.Errorf("%s in v1alpha2: %d, %v", l.single, n, err)
		}
	}
}

// TestListsFail: a list that breaks off, or is refused, is no list.
func TestListsFail(t *testing.T) {
	for _, l := range lists {
		s := listen(t, isV1)
		c := dial(t, s)
		s.fill(t, c, 2)
		s.Fail(l.stream, status.Error(codes.Internal, "disk on fire"))
		if n, err := l.count(t.Context(), c); n != 0 || status.Code(err) != codes.Internal || len(s.Calls(l.single)) != 0 {
			t.Errorf("%s: %d, %v", l.stream, n, err)
		}
		s.Hold(l.stream)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for len(s.Calls(l.stream)) < 2 {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		if _, err := l.count(ctx, c); !errors.Is(err, criclient.ErrCanceled) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", l.stream, err)
		}
	}
}

// TestLongList: what is too long for one message comes by a stream, and is
// said to be where there is none.
func TestLongList(t *testing.T) {
	s := listen(t, isV1)
	s.SetChunk(1)
	c := dial(t, s)
	for i := range 5 {
		s.AddImage("", fmt.Sprint(i, strings.Repeat("x", 4<<20)))
	}
	if images, err := c.Images(t.Context(), nil); len(images) != 5 || err != nil {
		t.Errorf("%d images, %v", len(images), err)
	}
	s.Fail("StreamImages", status.Error(codes.Unimplemented, ""))
	if images, err := c.Images(t.Context(), nil); images != nil || !errors.Is(err, criclient.ErrMessageTooLarge) {
		t.Errorf("%d images, %v", len(images), err)
	}
}
