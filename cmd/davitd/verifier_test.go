package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// A verifier's refusal reaches the kubelet in the words it knows; a pinned image
// is shown as such, and removed if somebody asks.
func TestVerifiersAndPins(t *testing.T) {
	testkit.Root(t)
	ctx := soon(t)
	bin := t.TempDir()
	script := "#!/bin/sh\ncase $2 in *:bad) echo not signed; exit 1;; esac\n"
	if err := os.WriteFile(filepath.Join(bin, "a"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	registry := testkit.NewRegistry(t)
	good, bad := registry.PushBusybox(t, "busybox:1"), registry.PushBusybox(t, "busybox:bad")
	d := testkit.NewDaemon(t, "[images]\npinned = [\"*/busybox:1\"]\n[images.verifiers]\nbin_dir = \""+bin+"\"\n")
	c := d.Client(t)
	err := second(c.Pull(ctx, bad))
	if status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("refused: %v", err)
	}
	list := func() []*runtimeapi.Image {
		t.Helper()
		r, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetImages()
	}
	if left := list(); len(left) != 0 {
		t.Errorf("of an image that was refused: %v", left)
	}
	if err := second(c.Pull(ctx, good)); err != nil {
		t.Fatal(err)
	}
	if got := list(); len(got) != 1 || !got[0].GetPinned() {
		t.Errorf("pinned: %v", got)
	}
	if r, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: good}}); err != nil || !r.GetImage().GetPinned() {
		t.Errorf("pinned: %v, %v", r, err)
	}
	if err := second(c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: good}})); err != nil {
		t.Errorf("removal of a pinned image: %v", err)
	}
	if left := list(); len(left) != 0 {
		t.Errorf("after removal: %v", left)
	}
}
