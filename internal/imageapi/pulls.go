package imageapi

import (
	"context"
	"strings"

	"github.com/distribution/reference"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
)

func (s *service) WatchPulls(r *imagev1.WatchPullsRequest, to grpc.ServerStreamingServer[imagev1.WatchPullsResponse]) error {
	ctx, cancel := context.WithCancelCause(to.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-s.Stopping:
			cancel(fault.New(fault.Unavailable, "", "davitd is stopping"))
		case <-ctx.Done():
		}
	}()
	quiet := false // nothing was shown last
	for states := range s.Pulls.WatchPulls(ctx) {
		answer := &imagev1.WatchPullsResponse{}
		for _, state := range states {
			if isOf(state.Ref, r.Image) {
				answer.Pulls = append(answer.Pulls, pull(state))
			}
		}
		if quiet && len(answer.Pulls) == 0 {
			continue // another image's pull
		}
		quiet = len(answer.Pulls) == 0
		if err := sendParts(to, answer); err != nil || r.Once {
			return err
		}
	}
	return context.Cause(ctx)
}

// partBytes is about how large an answer of WatchPulls may be. A pull is less.
const partBytes = 1 << 20

// sendParts sends an answer, in several if it is long.
func sendParts(to grpc.ServerStreamingServer[imagev1.WatchPullsResponse], answer *imagev1.WatchPullsResponse) error {
	part, size := &imagev1.WatchPullsResponse{}, 0
	for _, p := range answer.Pulls {
		if size > partBytes {
			if err := to.Send(part); err != nil {
				return err
			}
			part, size = &imagev1.WatchPullsResponse{}, 0
		}
		part.Pulls, size = append(part.Pulls, p), size+proto.Size(p)
	}
	return to.Send(part)
}

// isOf reports whether two references mean the same image; any, if image is empty.
func isOf(ref, image string) bool {
	return image == "" || ref == image || full(ref) == full(image)
}

// full returns a reference as Docker reads it: "busybox" is
// docker.io/library/busybox:latest.
func full(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

var pullPhases = map[image.PullPhase]imagev1.PullPhase{
	image.PullResolving:  imagev1.PullPhase_PULL_PHASE_RESOLVING,
	image.PullVerifying:  imagev1.PullPhase_PULL_PHASE_VERIFYING,
	image.PullFetching:   imagev1.PullPhase_PULL_PHASE_FETCHING,
	image.PullCommitting: imagev1.PullPhase_PULL_PHASE_COMMITTING,
	image.PullDone:       imagev1.PullPhase_PULL_PHASE_DONE,
	image.PullFailed:     imagev1.PullPhase_PULL_PHASE_FAILED,
}

var layerPhases = map[image.Phase]imagev1.LayerPhase{
	image.Waiting:     imagev1.LayerPhase_LAYER_PHASE_WAITING,
	image.Downloading: imagev1.LayerPhase_LAYER_PHASE_DOWNLOADING,
	image.Unpacking:   imagev1.LayerPhase_LAYER_PHASE_UNPACKING,
	image.Done:        imagev1.LayerPhase_LAYER_PHASE_DONE,
}

func pull(s image.PullState) *imagev1.Pull {
	p := &imagev1.Pull{Id: s.ID, Image: utf8(s.Ref), Began: timestamppb.New(s.Began), Phase: pullPhases[s.Phase]}
	if s.Err != nil {
		p.Error = utf8(s.Err.Error())
	}
	for _, l := range s.Layers {
		p.Layers = append(p.Layers, &imagev1.PullLayer{
			Digest: l.Layer, Phase: layerPhases[l.Phase], Bytes: l.Bytes, TotalBytes: l.Total, BytesPerSecond: l.BytesPerSecond,
		})
	}
	return p
}

// utf8 returns what a protobuf string can hold.
func utf8(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
