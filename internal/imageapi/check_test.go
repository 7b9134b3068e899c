package imageapi_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/imageapi"
)

// checked is a store that is checked.
type checked struct {
	check  func(ctx context.Context, found func(image.Finding), progress func(layer string, bytes, total int64)) error
	summed image.CheckSummary
}

func (k *checked) Check(ctx context.Context, quick bool, found func(image.Finding), progress func(string, int64, int64)) (image.CheckSummary, error) {
	return k.summed, k.check(ctx, found, progress)
}

func TestCheck(t *testing.T) {
	finding := image.Finding{Subject: "layer sha256:1", Problem: "it has changed", Images: []string{"a:1"}, Done: "it goes"}
	store := &checked{summed: image.CheckSummary{Images: 1, Layers: 2, Bytes: 3, Damaged: 1}}
	store.check = func(_ context.Context, found func(image.Finding), progress func(string, int64, int64)) error {
		for i := range int64(1000) {
			progress("sha256:1", i, 1000)
		}
		time.Sleep(150 * time.Millisecond) // longer than progress is told at most
		progress("sha256:2", 1000, 1000)
		found(finding)
		return nil
	}
	c := dial(t, imageapi.Parts{Checker: store})
	s, err := c.Check(t.Context(), &imagev1.CheckRequest{})
	var all []*imagev1.CheckResponse
	for err == nil {
		var answer *imagev1.CheckResponse
		if answer, err = s.Recv(); err == nil {
			all = append(all, answer)
		}
	}
	if !errors.Is(err, io.EOF) || len(all) < 3 || len(all) > 10 {
		t.Fatalf("%d answers, %v", len(all), err)
	}
	last := all[len(all)-3:]
	if p := last[0].GetProgress(); p.GetBytes() != 1000 || p.GetTotalBytes() != 1000 {
		t.Errorf("progress = %v", p)
	}
	if f := last[1].GetFinding(); f.GetSubject() != finding.Subject || f.GetProblem() != finding.Problem || f.GetDone() != finding.Done || f.GetImages()[0] != "a:1" {
		t.Errorf("finding = %v", f)
	}
	if sum := last[2].GetSummary(); sum.GetLayers() != 2 || sum.GetImages() != 1 || sum.GetBytes() != 3 || sum.GetDamaged() != 1 || sum.GetTook().AsDuration() < 150*time.Millisecond {
		t.Errorf("summary = %v", sum)
	}
	// A client that goes ends it.
	begun, ended := make(chan struct{}), make(chan error, 1)
	store.check = func(ctx context.Context, _ func(image.Finding), _ func(string, int64, int64)) error {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.Check(ctx, &imagev1.CheckRequest{}); err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the check ended by %v", err)
	}
}
