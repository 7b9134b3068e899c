package trial

import (
	"context"
	"sync"
	"testing"
	"time"
)

// TestConcurrentPulls: however many pulls of images with layers in common there
// are at once, each byte of each blob is fetched once.
func TestConcurrentPulls(t *testing.T) {
	w, registry := newWorld(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for round := range 2 {
		registry.Fetched()
		var pulls sync.WaitGroup
		for range 10 {
			for _, s := range w.samples[:1+round] { // the second round has two images at once
				pulls.Go(func() {
					if _, err := w.c.Pull(ctx, s.ref()); err != nil {
						t.Errorf("pull %s: %v", s.tag, err)
					}
				})
			}
		}
		pulls.Wait()
		fetched := registry.Fetched()
		if len(fetched) < 6 { // five layers and a configuration
			t.Errorf("only %d blobs were fetched", len(fetched))
		}
		for id, bytes := range fetched {
			if size := registry.Size(id); bytes != size {
				t.Errorf("of blob %s, which has %d bytes, %d were fetched", id, size, bytes)
			}
		}
		if listed := w.check(ctx); len(listed) != 1+round {
			t.Errorf("%d images are there, want %d", len(listed), 1+round)
		}
		w.removeImages(ctx)
	}
}
