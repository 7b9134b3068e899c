package criclient_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/criclient"
)

// TestImageEndpoint's rows are the second table: two endpoints at first dial.
var imageRows = []struct {
	runtime, image string // "with it": at the runtime's socket; "not with it": that serves the runtime only
	runtimeWant    string
	imageWant      string
}{
	{isV1, "with it", useV1, useV1},
	{isV1, "not with it", useV1, noVersion},
	{isV1alpha2, "not with it", useV1alpha2, noVersion},
	{isBoth, "not with it", useV1, noVersion},
	{isV1, isV1, useV1, useV1},
	{isV1, isV1alpha2, useV1, useV1alpha2},
	{isV1alpha2, isV1, useV1alpha2, useV1},
	{isV1alpha2, isBoth, useV1alpha2, useV1},
	{isBoth, isV1alpha2, useV1, useV1alpha2},
	{isV1, isNeither, useV1, noVersion},
	{isV1, isDown, useV1, noAnswer},
	{isV1, isBad, useV1, v1Bad},
	{isNeither, isV1, noVersion, useV1},
	{isDown, isV1, noAnswer, useV1},
	{isDown, isDown, noAnswer, noAnswer},
}

func TestImageEndpoint(t *testing.T) {
	for _, row := range imageRows {
		t.Run(row.runtime+"/"+row.image, func(t *testing.T) {
			t.Parallel()
			runtime := newServer(t)
			image := runtime
			switch row.image {
			case "with it":
				runtime.become(t, row.runtime)
			case "not with it":
				runtime.runtimeOnly = true
				runtime.become(t, row.runtime)
			default:
				image = newServer(t)
				runtime.become(t, row.runtime)
				image.become(t, row.image)
			}
			want := [2]string{row.runtimeWant, row.imageWant}
			if got := outcome(t, runtime.client(t, image, false), runtime, image); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			// Dial is both or nothing.
			c, err := criclient.Dial(t.Context(), runtime.options(image, false))
			if both := !strings.HasPrefix(want[0]+want[1], "none") && !strings.Contains(want[1], "none"); (err == nil) != both || (c != nil) != both {
				t.Errorf("Dial = %v, %v", c, err)
			}
			if c != nil {
				c.Close()
			}
		})
	}
}

// TestImageServiceGoes: its rows are the third table: one socket for both
// services, at which images come or go with a restart.
var goingRows = []struct {
	server, after string // "…, no images": the runtime service only
	renegotiate   string
	runtimeWant   string
	imageWant     string
}{
	{isV1, isV1 + noImages, off, useV1, lostToNone},
	{isV1, isV1 + noImages, on, useV1, noVersion},
	{isV1alpha2, isBoth + noImages, off, useV1alpha2, lostToNone},
	{isV1alpha2, isBoth + noImages, on, useV1, noVersion},
	{isBoth, isV1alpha2 + noImages, off, lostToOld, lostToNone},
	{isBoth, isV1alpha2 + noImages, on, useV1alpha2, noVersion},
	{isV1 + noImages, isV1, either, useV1, useV1},
	{isV1alpha2 + noImages, isBoth, off, useV1alpha2, useV1}, // each service settles its own
	{isV1alpha2 + noImages, isBoth, on, useV1, useV1},
}

const noImages = ", no images"

func TestImageServiceGoes(t *testing.T) {
	for _, row := range goingRows {
		for _, renegotiate := range []string{off, on} {
			if row.renegotiate != either && row.renegotiate != renegotiate {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s/%s", row.server, row.after, renegotiate), func(t *testing.T) {
				t.Parallel()
				s := newServer(t)
				c := s.client(t, s, renegotiate == on)
				var got [2]string
				for _, state := range []string{row.server, row.after} {
					state, s.runtimeOnly = strings.CutSuffix(state, noImages)
					s.become(t, state, awaitLoss(t, c, criclient.RuntimeService), awaitLoss(t, c, criclient.ImageService))
					got = outcome(t, c, s, s)
				}
				if want := [2]string{row.runtimeWant, row.imageWant}; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}
