package cri

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/calls"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// An intercept stands around each call: trace, panics, codes, one log line,
// and the memory of what went wrong.
type intercept struct {
	log   *slog.Logger
	calls *calls.Calls
	// names completes what a call is about by what is known of that.
	names func(*calls.Subject)
}

func (i intercept) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	begun := time.Now()
	ctx, trace := span.Begin(ctx)
	over := i.remember(path.Base(info.FullMethod), req, trace)
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, i.panicked(info.FullMethod, p)
		}
		err = grpcError(err, trace)
		over(resp, err)
		i.line(ctx, info.FullMethod, append(subject(req), created(resp)...), begun, trace, err)
	}()
	return next(ctx, req)
}

func (i intercept) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	begun := time.Now()
	ctx, trace := span.Begin(ss.Context())
	defer func() {
		if p := recover(); p != nil {
			err = i.panicked(info.FullMethod, p)
		}
		err = grpcError(err, trace)
		i.line(ctx, info.FullMethod, nil, begun, trace, err)
	}()
	return next(srv, ss)
}

func (i intercept) panicked(method string, p any) error {
	i.log.Error("panic", "method", path.Base(method), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "", "davitd: panic in %s: %v", path.Base(method), p)
}

func (i intercept) line(ctx context.Context, method string, attrs []slog.Attr, begun time.Time, trace *span.Trace, err error) {
	level := levelOf(path.Base(method), status.Code(err))
	if !i.log.Enabled(ctx, level) {
		return
	}
	all := append([]slog.Attr{slog.String("method", path.Base(method))}, attrs...)
	all = append(all, slog.String("code", status.Code(err).String()),
		slog.Duration("took", time.Since(begun).Round(10*time.Microsecond)), trace.Attr())
	if err != nil {
		all = append(all, slog.String("error", status.Convert(err).Message()))
	}
	i.log.LogAttrs(ctx, level, "rpc", all...)
}

// levelOf keeps what the kubelet asks every second out of the log.
func levelOf(method string, code codes.Code) slog.Level {
	switch code {
	case codes.Internal:
		return slog.LevelError
	case codes.Unavailable, codes.ResourceExhausted, codes.Unknown:
		return slog.LevelWarn
	}
	for _, prefix := range []string{"List", "Stream", "Watch"} {
		if strings.HasPrefix(method, prefix) {
			return slog.LevelDebug
		}
	}
	if strings.HasSuffix(method, "Status") || strings.HasSuffix(method, "Stats") {
		return slog.LevelDebug
	}
	switch method {
	case "Version", "RuntimeConfig", "ImageFsInfo", "Check", "Get": // cAdvisor's, of each control group
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// subject names what a request is about, for the log.
func subject(req any) []slog.Attr {
	var attrs []slog.Attr
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	s := about(req)
	add("pod_id", s.PodID)
	add("container_id", s.ContainerID)
	if s.Pod != "" {
		add("pod", s.Namespace+"/"+s.Pod)
	}
	if r, ok := req.(*runtimeapi.RunPodSandboxRequest); ok {
		add("handler", r.GetRuntimeHandler())
	}
	add("container", s.Container)
	add("image", s.Image)
	return attrs
}

// created names what a call made.
func created(resp any) []slog.Attr {
	var key, id string
	switch r := resp.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		key, id = "pod_id", r.GetPodSandboxId()
	case *runtimeapi.CreateContainerResponse:
		key, id = "container_id", r.GetContainerId()
	case *runtimeapi.PullImageResponse:
		key, id = "image_id", r.GetImageRef()
	}
	if id == "" {
		return nil
	}
	return []slog.Attr{slog.String(key, id)}
}

// remember notes a call that is about something, and returns what is to be
// called at its end.
func (i intercept) remember(method string, req any, trace *span.Trace) (over func(resp any, err error)) {
	s := about(req)
	if s == (calls.Subject{}) {
		return func(any, error) {}
	}
	// After a removal nobody knows the name any more.
	reads := strings.HasSuffix(method, "Status") || strings.HasSuffix(method, "Stats")
	if !reads {
		i.names(&s)
	}
	r := i.calls.Begin(method, s, trace)
	return func(resp any, err error) {
		code := status.Code(err)
		if reads && code == codes.NotFound {
			err = nil // kubelets ask for what they have removed
		}
		if err != nil || r.Slow() {
			complete(&s, resp)
			i.names(&s)
		}
		text := ""
		if err != nil {
			text = status.Convert(err).Message()
		}
		r.End(s, code.String(), text)
	}
}

// about returns what a request itself says that it is about. It picks single
// fields: nothing else of a request, least of all credentials, is kept or logged.
func about(req any) (s calls.Subject) {
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		s.PodID = r.GetPodSandboxId()
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		s.ContainerID = r.GetContainerId()
	}
	var pod *runtimeapi.PodSandboxConfig
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		pod = r.GetConfig()
	case *runtimeapi.CreateContainerRequest:
		pod = r.GetSandboxConfig()
		s.Container, s.Image = r.GetConfig().GetMetadata().GetName(), askedFor(r.GetConfig().GetImage()).GetImage()
	case *runtimeapi.PullImageRequest:
		pod = r.GetSandboxConfig()
		s.Image = r.GetImage().GetImage()
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		s.Image = r.GetImage().GetImage()
	}
	s.Namespace, s.Pod = pod.GetMetadata().GetNamespace(), pod.GetMetadata().GetName()
	return s
}

// complete adds what a call has made.
func complete(s *calls.Subject, resp any) {
	switch r := resp.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		s.PodID = r.GetPodSandboxId()
	case *runtimeapi.CreateContainerResponse:
		s.ContainerID = r.GetContainerId()
	}
}

// names completes a subject by what is known of its container and its pod.
func (s *service) names(of *calls.Subject) {
	if of.ContainerID != "" && of.Container == "" {
		if c, err := s.Views.Container(of.ContainerID); err == nil {
			of.ContainerID, of.Container, of.PodID = c.ID, c.Config.GetMetadata().GetName(), c.PodID
		}
	}
	if of.PodID != "" && of.Pod == "" {
		if p, err := s.Pods.Pod(of.PodID); err == nil {
			of.PodID, of.Namespace, of.Pod = p.ID, p.Config.GetMetadata().GetNamespace(), p.Config.GetMetadata().GetName()
		}
	}
}
