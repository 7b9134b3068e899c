package image

import (
	"context"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestPins(t *testing.T) {
	id := "sha256:" + strings.Repeat("a", 64)
	busybox := []string{"docker.io/library/busybox:latest", "docker.io/library/busybox@sha256:" + strings.Repeat("1", 64)}
	for pattern, want := range map[string]bool{
		"busybox": true, "busybox:latest": true, "docker.io/library/busybox": true, id: true, busybox[1]: true, "busybox@" + busybox[1][len(busybox[1])-71:]: true,
		"busybox:1": false, "library": false, "sha256:" + strings.Repeat("b", 64): false,
		"*": true, "docker.io/*": true, "busybox:*": true, "busy*": true, "*busybox*": true, "*:latest": true, "docker.io/*/busybox:*t": true, "b*x:*a*t": true,
		"quay.io/*": false, "*:1": false, "busybox*1:latest": false, "*latest*latest": false,
	} {
		p, err := ParsePins([]string{"registry.example/never:1", pattern})
		if err != nil || p.match(id, busybox) != want {
			t.Errorf("%q: %v, want %v: %v", pattern, !want, want, err)
		}
	}
	for _, bad := range []string{"", "A B", "Busybox", "x@sha256:1"} {
		if _, err := ParsePins([]string{bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A pinned image is shown as such, as long as it has the name; who asks for it
// to be removed has it removed.
func TestPinnedImage(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	_, id := reg.image("r", "1", imagespec.Image{}, tarOf("f", "1"))
	config := testConfig(t.TempDir())
	var err error
	if config.Pinned, err = ParsePins([]string{"*/r:1"}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	ctx := context.Background()
	if got, err := s.Pull(ctx, reg.host()+"/r:1", PullOptions{}); err != nil || !got.Pinned || !s.List()[0].Pinned {
		t.Errorf("%+v, %v", got, err)
	}
	_, second := reg.image("r", "1", imagespec.Image{Author: "new"}, tarOf("f", "1"))
	if got, err := s.Pull(ctx, reg.host()+"/r:1", PullOptions{}); err != nil || !got.Pinned {
		t.Errorf("%+v, %v", got, err)
	}
	if old, err := s.Get(id); err != nil || old.Pinned {
		t.Errorf("without the name: %+v, %v", old, err)
	}
	s.SetPins(Pins{})
	if now, err := s.Get(second); err != nil || now.Pinned {
		t.Errorf("no longer pinned: %+v, %v", now, err)
	}
	s.SetPins(config.Pinned)
	if now, err := s.Get(second); err != nil || !now.Pinned {
		t.Errorf("pinned again: %+v, %v", now, err)
	}
	if err := s.Remove(ctx, second); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(second); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed: %v", err)
	}
}
