package cri

import (
	"context"
	"iter"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
)

func (s *service) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	all, err := s.listedImages(r.GetFilter())
	if err != nil {
		return nil, err
	}
	images, err := inOne(all, "StreamImages")
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: images}, nil
}

func (s *service) StreamImages(r *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	all, err := s.listedImages(r.GetFilter())
	if err != nil {
		return err
	}
	return inBatches(all, func(batch []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: batch})
	})
}

// listedImages are the images that pass f.
func (s *service) listedImages(f *runtimeapi.ImageFilter) (iter.Seq[*runtimeapi.Image], error) {
	var images []image.Image
	if ref := f.GetImage().GetImage(); ref == "" {
		images = s.Images.List()
	} else if one, err := s.Images.Get(ref); err == nil {
		images = append(images, one)
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return func(yield func(*runtimeapi.Image) bool) {
		for _, i := range images {
			if !yield(criImage(i)) {
				return
			}
		}
	}, nil
}

// ImageStatus answers without an image if there is none: the kubelet asks so
// before each pull.
func (s *service) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	var c validate.Check
	c.Image("image", r.GetImage(), &s.config.Node)
	if c.Err != nil {
		return nil, c.Err
	}
	i, err := s.Images.Get(r.GetImage().GetImage())
	if fault.Is(err, fault.NotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(i)}
	if r.GetVerbose() {
		resp.Info = imageInfo(i)
	}
	return resp, nil
}

func (s *service) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	var c validate.Check
	c.Image("image", r.GetImage(), &s.config.Node)
	auth := checkAuth(&c, "auth", r.GetAuth(), r.GetImage().GetImage())
	if c.Err != nil {
		return nil, c.Err
	}
	i, err := s.Images.Pull(ctx, r.GetImage().GetImage(), image.PullOptions{Auth: auth})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: i.ID}, nil
}

func (s *service) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	var c validate.Check
	c.Image("image", r.GetImage(), &s.config.Node)
	if c.Err != nil {
		return nil, c.Err
	}
	err := s.Images.Remove(ctx, r.GetImage().GetImage())
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo fills every field: the kubelet reads used_bytes unchecked. Layers
// of images and writable ones are on one file system, counted apart.
func (s *service) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{filesystemUsage(s.Images.Usage())},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{filesystemUsage(s.Stats.Layers())},
	}, nil
}

func filesystemUsage(u image.Usage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  u.At.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  value(u.Bytes),
		InodesUsed: value(u.Inodes),
	}
}

func criImage(i image.Image) *runtimeapi.Image {
	uid, name := imageUser(i.Config.Config.User)
	return &runtimeapi.Image{
		Id:          i.ID,
		RepoTags:    i.RepoTags,
		RepoDigests: i.RepoDigests,
		Size:        max(i.SizeBytes, 1), // the kubelet takes 0 for an error
		Uid:         uid,
		Username:    name,
		Spec:        &runtimeapi.ImageSpec{Image: i.ID},
		Pinned:      i.Pinned,
	}
}

// imageUser splits an image's USER, "user[:group]", into a number or a name.
func imageUser(user string) (*runtimeapi.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return nil, ""
	}
	if uid, err := strconv.ParseUint(user, 10, 32); err == nil {
		return &runtimeapi.Int64Value{Value: int64(uid)}, ""
	}
	return nil, user
}
