package imageapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
)

func (s *service) DiskUsage(ctx context.Context, _ *imagev1.DiskUsageRequest) (*imagev1.DiskUsageResponse, error) {
	u, err := s.Store.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	answer := &imagev1.DiskUsageResponse{
		At: timestamppb.New(u.At),
		FileSystem: &imagev1.FileSystem{
			Path: utf8(u.FileSystem.Path), TotalBytes: int64(u.FileSystem.TotalBytes), UsedBytes: int64(u.FileSystem.UsedBytes), FreeBytes: int64(u.FileSystem.FreeBytes),
		},
	}
	for _, i := range u.Images {
		answer.Images = append(answer.Images, &imagev1.ImageUsage{
			Id: i.ID, Names: i.Names, Bytes: int64(i.Bytes), SharedBytes: int64(i.SharedBytes), Containers: int32(i.Containers), Pinned: i.Pinned,
		})
	}
	for _, l := range u.Layers {
		answer.Layers = append(answer.Layers, &imagev1.LayerUsage{
			Id: l.ID, Bytes: int64(l.Bytes), Images: int32(l.Images), Kind: l.Kind, Mounted: l.Mounted,
		})
	}
	for _, w := range u.Writable {
		answer.Writable = append(answer.Writable, &imagev1.WritableUsage{ContainerId: w.Container, Bytes: int64(w.Bytes)})
	}
	for _, o := range u.Other {
		answer.Other = append(answer.Other, &imagev1.OtherUsage{What: o.What, Bytes: int64(o.Bytes)})
	}
	return answer, nil
}
