package crifake

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type imageService struct {
	runtimeapi.UnimplementedImageServiceServer
	*Runtime
}

// imageBytes is what an image that was pulled takes.
const imageBytes = 1300 << 10

// Images returns all images, oldest first.
func (r *Runtime) Images() []*runtimeapi.Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.Image
	for _, i := range r.images {
		out = append(out, proto.CloneOf(i))
	}
	return out
}

// AddImage adds an image, or another name to one that is there, as a pull
// does, and returns its ID. An empty id makes a new image.
func (r *Runtime) AddImage(id, tag string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addImage(id, tag).Id
}

// addImage is AddImage. r.mu must be held.
func (r *Runtime) addImage(id, tag string) *runtimeapi.Image {
	i := r.image(id)
	if i == nil {
		i = &runtimeapi.Image{Id: id, Size: imageBytes}
		if id == "" {
			i.Id = "sha256:" + r.id("11")
		}
		r.images = append(r.images, i)
	}
	i.RepoTags = append(i.RepoTags, tag)
	return i
}

// image finds by ID or tag. r.mu must be held.
func (r *Runtime) image(name string) *runtimeapi.Image {
	for _, i := range r.images {
		if name != "" && (i.Id == name || slices.Contains(i.RepoTags, name)) {
			return i
		}
	}
	return nil
}

func (r imageService) imagesLike(f *runtimeapi.ImageFilter) []*runtimeapi.Image {
	all := r.Images()
	name := f.GetImage().GetImage()
	if name == "" {
		return all
	}
	return slices.DeleteFunc(all, func(i *runtimeapi.Image) bool { return i.Id != name && !slices.Contains(i.RepoTags, name) })
}

func (r imageService) ListImages(_ context.Context, q *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: r.imagesLike(q.Filter)}, nil
}

func (r imageService) StreamImages(q *runtimeapi.StreamImagesRequest, s grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return send(r.Runtime, r.imagesLike(q.Filter), func(part []*runtimeapi.Image) error {
		return s.Send(&runtimeapi.StreamImagesResponse{Images: part})
	})
}

func (r imageService) ImageStatus(_ context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ImageStatusResponse{}
	if i := r.image(q.Image.GetImage()); i != nil {
		out.Image = proto.CloneOf(i)
	}
	return out, nil
}

func (r imageService) PullImage(_ context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	name := q.Image.GetImage()
	if name == "" {
		return nil, status.Error(codes.InvalidArgument, "image: is required")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.image(name)
	if i == nil {
		i = r.addImage("", name)
	}
	return &runtimeapi.PullImageResponse{ImageRef: i.Id}, nil
}

func (r imageService) RemoveImage(_ context.Context, q *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.image(q.Image.GetImage()); i != nil {
		r.images = slices.DeleteFunc(r.images, func(o *runtimeapi.Image) bool { return o == i })
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (r imageService) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	used := uint64(len(r.Images())) * imageBytes
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"},
		UsedBytes: &runtimeapi.UInt64Value{Value: used}, InodesUsed: &runtimeapi.UInt64Value{Value: 1},
	}}}, nil
}
