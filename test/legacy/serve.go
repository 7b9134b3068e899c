package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	old "k8s.io/cri-api/pkg/apis/runtime/v1alpha2"
)

// serve answers at path, until it is ended, as a runtime of 2022 would whose
// interface is cri-api 0.25, unchanged. It keeps what it is given and runs
// nothing. In v1 it has lists only.
func serve(path string, versions []string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	if slices.Contains(versions, "v1alpha2") {
		s := &oldServer{pods: map[string]*old.PodSandboxConfig{}, containers: map[string]*old.ContainerConfig{}}
		old.RegisterRuntimeServiceServer(g, s)
		old.RegisterImageServiceServer(g, &oldImages{})
	}
	if slices.Contains(versions, "v1") {
		v1.RegisterRuntimeServiceServer(g, &v1Server{})
		v1.RegisterImageServiceServer(g, &v1Images{})
	}
	fmt.Println("serves", versions)
	return g.Serve(l)
}

type oldServer struct {
	old.UnimplementedRuntimeServiceServer

	mu         sync.Mutex
	pods       map[string]*old.PodSandboxConfig
	containers map[string]*old.ContainerConfig
}

func (s *oldServer) Version(context.Context, *old.VersionRequest) (*old.VersionResponse, error) {
	return &old.VersionResponse{Version: "0.1.0", RuntimeName: "legacy", RuntimeVersion: "0.25.16", RuntimeApiVersion: "v1alpha2"}, nil
}

func (s *oldServer) RunPodSandbox(_ context.Context, q *old.RunPodSandboxRequest) (*old.RunPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := fmt.Sprint("pod", len(s.pods))
	s.pods[id] = q.Config
	return &old.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *oldServer) ListPodSandbox(context.Context, *old.ListPodSandboxRequest) (*old.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &old.ListPodSandboxResponse{}
	for id, p := range s.pods {
		out.Items = append(out.Items, &old.PodSandbox{Id: id, Metadata: p.Metadata, Labels: p.Labels, Annotations: p.Annotations})
	}
	return out, nil
}

func (s *oldServer) CreateContainer(_ context.Context, q *old.CreateContainerRequest) (*old.CreateContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[q.PodSandboxId] == nil {
		return nil, status.Errorf(codes.NotFound, "no pod %s", q.PodSandboxId)
	}
	id := fmt.Sprint("container", len(s.containers))
	s.containers[id] = q.Config
	return &old.CreateContainerResponse{ContainerId: id}, nil
}

// ExecSync prints the container's environment and its profile.
func (s *oldServer) ExecSync(_ context.Context, q *old.ExecSyncRequest) (*old.ExecSyncResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[q.ContainerId]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "no container %s", q.ContainerId)
	}
	out := &old.ExecSyncResponse{ExitCode: 3}
	for _, e := range c.Envs {
		out.Stdout = append(out.Stdout, e.Key+"="+e.Value+"\n"...)
	}
	out.Stderr = []byte(c.Linux.GetSecurityContext().GetSeccomp().GetLocalhostRef())
	return out, nil
}

type oldImages struct {
	old.UnimplementedImageServiceServer
}

func (*oldImages) ImageFsInfo(context.Context, *old.ImageFsInfoRequest) (*old.ImageFsInfoResponse, error) {
	return &old.ImageFsInfoResponse{}, nil
}

func (*oldImages) ListImages(context.Context, *old.ListImagesRequest) (*old.ListImagesResponse, error) {
	return &old.ListImagesResponse{Images: []*old.Image{{Id: "old", Size_: 1}}}, nil
}

type v1Server struct {
	v1.UnimplementedRuntimeServiceServer
}

func (*v1Server) Version(context.Context, *v1.VersionRequest) (*v1.VersionResponse, error) {
	return &v1.VersionResponse{Version: "0.1.0", RuntimeName: "legacy", RuntimeVersion: "0.25.16", RuntimeApiVersion: "v1"}, nil
}

func (*v1Server) ListPodSandbox(context.Context, *v1.ListPodSandboxRequest) (*v1.ListPodSandboxResponse, error) {
	return &v1.ListPodSandboxResponse{Items: []*v1.PodSandbox{{Id: "new"}}}, nil
}

type v1Images struct {
	v1.UnimplementedImageServiceServer
}

func (*v1Images) ImageFsInfo(context.Context, *v1.ImageFsInfoRequest) (*v1.ImageFsInfoResponse, error) {
	return &v1.ImageFsInfoResponse{}, nil
}

func (*v1Images) ListImages(context.Context, *v1.ListImagesRequest) (*v1.ListImagesResponse, error) {
	return &v1.ListImagesResponse{Images: []*v1.Image{{Id: "new", Size_: 1}}}, nil
}
