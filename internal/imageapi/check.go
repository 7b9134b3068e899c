package imageapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/image"
)

// Checker compares what is on the disk with what was pulled. *image.Store
// implements it.
type Checker interface {
	// Check calls found and progress as it goes on, by one goroutine.
	Check(ctx context.Context, quick bool, found func(image.Finding), progress func(layer string, bytes, total int64)) (image.CheckSummary, error)
}

// progressEvery is how often, at most, a client is told how far a check is.
const progressEvery = 100 * time.Millisecond

func (s *service) Check(r *imagev1.CheckRequest, to grpc.ServerStreamingServer[imagev1.CheckResponse]) error {
	ctx, cancel := context.WithCancelCause(to.Context())
	defer cancel(nil)
	send := func(answer *imagev1.CheckResponse) {
		if err := to.Send(answer); err != nil {
			cancel(err)
		}
	}
	begun := time.Now()
	told := begun
	sum, err := s.Checker.Check(ctx, r.Quick,
		func(f image.Finding) {
			send(&imagev1.CheckResponse{Event: &imagev1.CheckResponse_Finding{Finding: &imagev1.CheckFinding{
				Subject: utf8(f.Subject), Problem: utf8(f.Problem), Images: f.Images, Done: utf8(f.Done),
			}}})
		},
		func(layer string, bytes, total int64) {
			if now := time.Now(); now.Sub(told) >= progressEvery {
				told = now
				send(&imagev1.CheckResponse{Event: &imagev1.CheckResponse_Progress{Progress: &imagev1.CheckProgress{
					Layer: layer, Bytes: bytes, TotalBytes: total,
				}}})
			}
		})
	if err != nil {
		return err
	}
	return to.Send(&imagev1.CheckResponse{Event: &imagev1.CheckResponse_Summary{Summary: &imagev1.CheckSummary{
		Layers: int32(sum.Layers), Images: int32(sum.Images), Bytes: sum.Bytes, Damaged: int32(sum.Damaged), Took: durationpb.New(time.Since(begun)),
	}}})
}
