package criclient

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pods returns all pods that fit filter; nil fits all. Like the lists below it
// uses the streaming call, which has no limit of size, and where the runtime
// has none the single one, which fails with ErrMessageTooLarge above 16 MiB.
// A list that breaks off is an error, never a part of a list.
//
// CRI: api.proto, StreamPodSandboxes, ListPodSandbox; KEP-5825.
func (c *Client) Pods(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	return list(ctx, c.runtime,
		func(ctx context.Context) (grpc.ServerStreamingClient[runtimeapi.StreamPodSandboxesResponse], error) {
			return c.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: filter})
		},
		(*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes,
		func() ([]*runtimeapi.PodSandbox, error) {
			r, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
			return r.GetItems(), err
		})
}

// Containers returns all containers that fit filter; nil fits all.
func (c *Client) Containers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	return list(ctx, c.runtime,
		func(ctx context.Context) (grpc.ServerStreamingClient[runtimeapi.StreamContainersResponse], error) {
			return c.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: filter})
		},
		(*runtimeapi.StreamContainersResponse).GetContainers,
		func() ([]*runtimeapi.Container, error) {
			r, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
			return r.GetContainers(), err
		})
}

// Images returns all images that fit filter; nil fits all.
func (c *Client) Images(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	return list(ctx, c.image,
		func(ctx context.Context) (grpc.ServerStreamingClient[runtimeapi.StreamImagesResponse], error) {
			return c.StreamImages(ctx, &runtimeapi.StreamImagesRequest{Filter: filter})
		},
		(*runtimeapi.StreamImagesResponse).GetImages,
		func() ([]*runtimeapi.Image, error) {
			r, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: filter})
			return r.GetImages(), err
		})
}

// ContainersStats returns statistics of all containers that fit filter.
func (c *Client) ContainersStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	return list(ctx, c.runtime,
		func(ctx context.Context) (grpc.ServerStreamingClient[runtimeapi.StreamContainerStatsResponse], error) {
			return c.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: filter})
		},
		(*runtimeapi.StreamContainerStatsResponse).GetContainerStats,
		func() ([]*runtimeapi.ContainerStats, error) {
			r, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: filter})
			return r.GetStats(), err
		})
}

// PodsStats returns statistics of all pods that fit filter.
func (c *Client) PodsStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	return list(ctx, c.runtime,
		func(ctx context.Context) (grpc.ServerStreamingClient[runtimeapi.StreamPodSandboxStatsResponse], error) {
			return c.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: filter})
		},
		(*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats,
		func() ([]*runtimeapi.PodSandboxStats, error) {
			r, err := c.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
			return r.GetStats(), err
		})
}

// PodsMetrics returns the metrics of all pods.
func (c *Client) PodsMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return list(ctx, c.runtime,
		func(ctx context.Context) (grpc.ServerStreamingClient[runtimeapi.StreamPodSandboxMetricsResponse], error) {
			return c.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
		},
		(*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics,
		func() ([]*runtimeapi.PodSandboxMetrics, error) {
			r, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return r.GetPodMetrics(), err
		})
}

// list reads a stream of l to its end, or where there is none calls whole.
func list[Item, Chunk any](ctx context.Context, l *link, open func(context.Context) (grpc.ServerStreamingClient[Chunk], error),
	items func(*Chunk) []Item, whole func() ([]Item, error),
) ([]Item, error) {
	all, err := drain(ctx, open, items)
	if l.renegotiate && errors.Is(err, ErrVersionLost) {
		all, err = drain(ctx, open, items) // in another version
	}
	if errors.Is(err, ErrUnimplemented) {
		return whole()
	}
	return all, err
}

func drain[Item, Chunk any](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[Chunk], error), items func(*Chunk) []Item) ([]Item, error) {
	ctx, cancel := context.WithCancel(ctx) // ends a stream that is left before its end
	defer cancel()
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	var all []Item
	for {
		chunk, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all = append(all, items(chunk)...)
	}
}
