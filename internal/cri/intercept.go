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

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// An intercept stands around each call: trace, panics, codes, one log line.
type intercept struct{ log *slog.Logger }

func (i intercept) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	begun := time.Now()
	ctx, trace := span.Begin(ctx)
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, i.panicked(info.FullMethod, p)
		}
		err = grpcError(err, trace)
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

// subject names what a request is about. It picks single fields: nothing else
// of a request, least of all credentials, can reach the log.
func subject(req any) []slog.Attr {
	var attrs []slog.Attr
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		add("pod_id", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		add("container_id", r.GetContainerId())
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		add("pod", m.GetNamespace()+"/"+m.GetName())
		add("handler", r.GetRuntimeHandler())
	case *runtimeapi.CreateContainerRequest:
		add("container", r.GetConfig().GetMetadata().GetName())
		add("image", askedFor(r.GetConfig().GetImage()).GetImage())
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		add("image", r.GetImage().GetImage())
	}
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
