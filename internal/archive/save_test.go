package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// What is saved is an OCI layout and a docker-archive that others read and find
// right; loaded again, the image has the ID and the layers that it had.
func TestSave(t *testing.T) {
	testkit.Root(t)
	ctx := context.Background()
	one, two := newSample("amd64"), newSample("arm64") // of which the second layer is the same
	from := openStore(t)
	for i, s := range []*sample{one, two} {
		full := []string{"docker.io/library/sample:1", "registry.example/two:x"}[i]
		a, err := OpenDir(s.index(full, strings.Replace(full, ":", ":again-", 1)).dir(t))
		imported(t, from, a, err)
	}
	refs := []string{"sample:1", "sample:again-1", two.config.String()}
	var saved bytes.Buffer
	if err := Save(ctx, from, refs, &saved); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for r := tar.NewReader(bytes.NewReader(saved.Bytes())); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || seen[h.Name] {
			t.Fatalf("%v, twice: %v", err, h)
		}
		seen[h.Name] = true
	}
	if len(seen) != 3+2+2+3 { // layers, configurations, manifests, and what makes it an archive
		t.Errorf("%d files: %v", len(seen), seen)
	}

	again := openStore(t)
	a, err := Read(ctx, bytes.NewReader(saved.Bytes()), t.TempDir())
	if got := imported(t, again, a, err); len(got) != 2 {
		t.Errorf("loaded again: %+v", got)
	}
	for ref, s := range map[string]*sample{"sample:1": one, "sample:again-1": one, "registry.example/two:x": two, "registry.example/two:again-x": two} {
		if got, err := again.Get(ref); err != nil || got.ID != s.config.String() {
			t.Errorf("%s: %s, %v", ref, got.ID, err)
		}
	}

	path := filepath.Join(t.TempDir(), "saved.tar")
	if err := os.WriteFile(path, saved.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"sample:1", "sample:again-1", "registry.example/two:x"} {
		tag, err := name.NewTag(text)
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(path, &tag)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := validate.Image(img); err != nil {
			t.Errorf("%s as a docker-archive: %v", text, err)
		}
	}
	dir := t.TempDir()
	if err := SaveDir(ctx, from, refs, dir); err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range list.Manifests {
		names = append(names, d.Annotations[imagespec.AnnotationRefName])
		img, err := index.Image(d.Digest)
		if err == nil {
			err = validate.Image(img, validate.Fast) // it takes every layer to be compressed
		}
		if err != nil {
			t.Errorf("%s in an OCI layout: %v", names, err)
		}
	}
	slices.Sort(names)
	if want := []string{"docker.io/library/sample:1", "docker.io/library/sample:again-1", "registry.example/two:again-x", "registry.example/two:x"}; !slices.Equal(names, want) {
		t.Errorf("listed: %v", names)
	}
	if err := Save(ctx, from, []string{"nothing:1"}, io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("an absent image: %v", err)
	}
	if err := Save(ctx, from, nil, io.Discard); !fault.Is(err, fault.Invalid) {
		t.Errorf("nothing: %v", err)
	}
	if err := from.Remove(ctx, "sample:1"); err != nil {
		t.Error(err)
	}
	if err := Save(ctx, from, []string{two.config.String()}, failing{}); err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("nowhere to write: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }
