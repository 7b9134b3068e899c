package image

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// One image under several names, also of two registries, is one image; removing
// it by any name removes all of them.
func TestNames(t *testing.T) {
	testkit.Root(t)
	one, two := newFakeRegistry(t), newFakeRegistry(t)
	l := tarOf("f", "1")
	m, id := one.image("x/a", "1", imagespec.Image{}, l)
	one.image("x/a", "2", imagespec.Image{}, l)
	two.image("y", "latest", imagespec.Image{}, l)
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	refs := []string{one.host() + "/x/a:1", one.host() + "/x/a:2", two.host() + "/y", one.host() + "/x/a@" + m.Digest.String(), one.host() + "/x/a:1@" + m.Digest.String()}
	for _, ref := range refs {
		got, err := s.Pull(ctx, ref, PullOptions{})
		if err != nil || got.ID != id {
			t.Fatalf("%s: %s %v", ref, got.ID, err)
		}
	}
	tags := []string{one.host() + "/x/a:1", one.host() + "/x/a:2", two.host() + "/y:latest"}
	digests := []string{one.host() + "/x/a@" + m.Digest.String(), two.host() + "/y@" + m.Digest.String()}
	slices.Sort(tags)
	slices.Sort(digests)
	list := s.List()
	if len(list) != 1 || !slices.Equal(list[0].RepoTags, tags) || !slices.Equal(list[0].RepoDigests, digests) {
		t.Fatalf("%+v", list)
	}

	// The tag moves: the older image keeps its digest.
	m2, id2 := two.image("y", "latest", imagespec.Image{Author: "new"}, l)
	if _, err := s.Pull(ctx, two.host()+"/y", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	older, err := s.Get(id)
	if err != nil || slices.Contains(older.RepoTags, two.host()+"/y:latest") || !slices.Equal(older.RepoDigests, digests) {
		t.Errorf("%+v %v", older, err)
	}
	newer, err := s.Get(two.host() + "/y")
	if err != nil || newer.ID != id2 || !slices.Equal(newer.RepoDigests, []string{two.host() + "/y@" + m2.Digest.String()}) {
		t.Errorf("%+v %v", newer, err)
	}

	if err := s.Remove(ctx, one.host()+"/x/a:2"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range append(refs[:2], refs[3:]...) {
		if _, err := s.Get(ref); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if list := s.List(); len(list) != 1 || list[0].ID != id2 {
		t.Errorf("%+v", list)
	}
	path, err := s.Mount(ctx, "c", two.host()+"/y", MountOptions{}) // the layer that both had is still there
	if err != nil || read(t, path, "f") != "1" {
		t.Errorf("%v", err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	named := func(names ...string) *record { return &record{Names: names, Config: []byte("{}")} }
	idA, idB, idC := "sha256:"+strings.Repeat("a", 64), "sha256:aaab"+strings.Repeat("b", 60), "sha256:cafe"+strings.Repeat("c", 60)
	d := "sha256:" + strings.Repeat("1", 64)
	v := newView(content{images: map[string]*record{
		idA: named("docker.io/library/busybox:latest", "docker.io/library/busybox@"+d),
		idB: named("ghcr.io/o/p:1"),
		idC: named("localhost:5000/cafe:v"),
	}}, Pins{})
	for ref, want := range map[string]string{
		"busybox": idA, "busybox:latest": idA, "library/busybox": idA, "docker.io/busybox": idA, "index.docker.io/library/busybox:latest": idA,
		"busybox@" + d: idA, "busybox:any@" + d: idA, idA: idA, idA[7:]: idA, idA[:20]: idA, "aaaa": idA, "aaab": idB, "sha256:cafe": idC, "caf": idC,
		"ghcr.io/o/p:1": idB, "localhost:5000/cafe:v": idC,
		"busybox:1": "", "ghcr.io/o/p": "", "o/p:1": "", "cafe:latest": "", "ca": "", "dead": "", "": "", "sha256:": "", d: "", "BUSYBOX": "", "busybox@sha256:12": "",
	} {
		e, err := v.find(ref)
		switch {
		case want == "" && !fault.Is(err, fault.NotFound):
			t.Errorf("%q: %+v %v", ref, e, err)
		case want != "" && (err != nil || e.ID != want):
			t.Errorf("%q: %+v %v", ref, e, err)
		}
	}
	if _, err := v.find("aaa"); !fault.Is(err, fault.Invalid) {
		t.Errorf("an ambiguous prefix: %v", err)
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:5000/c/d:e@sha256:" + strings.Repeat("0", 64), "sha256:abc", "[::1]:5000/x", "../x", "A/b"} {
		f.Add(s)
	}
	v := newView(content{images: map[string]*record{"sha256:" + strings.Repeat("a", 64): {Names: []string{"docker.io/library/busybox:latest"}, Config: []byte("{}")}}}, Pins{})
	f.Fuzz(func(t *testing.T, ref string) {
		_, _ = v.find(ref)
		named, err := parseRef(ref)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%v", err)
			}
			return
		}
		for _, name := range namesOf(named, digest.FromString("x")) {
			again, err := parseRef(name)
			if err != nil || again.String() != name {
				t.Errorf("%q gives %q: %v", ref, name, err)
			}
		}
	})
}

func TestChoose(t *testing.T) {
	p := func(texts ...string) (all []imagespec.Descriptor) {
		for i, text := range texts {
			d := imagespec.Descriptor{Size: int64(i)}
			if text != "" {
				parts := strings.Split(text+"//", "/")
				d.Platform = &imagespec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
			}
			all = append(all, d)
		}
		return all
	}
	for _, c := range []struct {
		want string
		have []imagespec.Descriptor
		pick int64 // -1: none
	}{
		{"linux/amd64/v3", p("linux/arm64", "linux/amd64", "unknown/unknown"), 1},
		{"linux/amd64/v3", p("linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"), 2},
		{"linux/amd64/v4", p("linux/amd64/v2", "linux/amd64"), 0},
		{"linux/amd64/v1", p("linux/amd64/v2", "linux/amd64"), 1},
		{"linux/amd64", p("linux/amd64/v2", "linux/amd64"), 1},
		{"linux/amd64/v1", p("linux/amd64/v2"), -1},
		{"linux/arm64/v8", p("linux/arm/v7", "linux/arm64"), 1},
		{"linux/arm64/v8", p("linux/arm64", "linux/arm64/v8", "linux/arm64/v9"), 1},
		{"linux/arm64", p("linux/arm64/v8"), 0},
		{"linux/amd64/v3", p("linux/amd64", "linux/amd64"), 0},
		{"linux/amd64/v3", p("windows/amd64", ""), 1},
		{"linux/amd64/v3", p("windows/amd64", "linux/386"), -1},
		{"linux/amd64/v3", p("linux/amd64/strange"), -1},
		{"linux/amd64/v3", nil, -1},
	} {
		want, err := parsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := choose(c.have, want)
		if ok != (c.pick >= 0) || (ok && got.Size != c.pick) {
			t.Errorf("%s: %+v", c.want, got)
		}
	}
	for _, bad := range []string{"windows/amd64", "linux", "linux/", "linux/a/b/c"} {
		if _, err := parsePlatform(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if p, err := parsePlatform(""); err != nil || p.Architecture != runtime.GOARCH {
		t.Errorf("%+v %v", p, err)
	}
}

func TestIndex(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	amd, amdID := reg.image("i", "amd", imagespec.Image{}, tarOf("arch", "amd64"))
	arm, armID := reg.image("i", "arm", imagespec.Image{Author: "arm"}, tarOf("arch", "arm64"))
	amd.Platform = &imagespec.Platform{OS: "linux", Architecture: "amd64"}
	arm.Platform = &imagespec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	inner := reg.manifest("i", "inner", "application/vnd.docker.distribution.manifest.list.v2+json",
		imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []imagespec.Descriptor{arm, amd}})
	for _, c := range []struct{ tag, platform, want string }{{"inner", "", amdID}, {"inner", "linux/arm64", armID}} {
		s := openStore(t, t.TempDir())
		got, err := s.Pull(context.Background(), reg.host()+"/i:"+c.tag, PullOptions{Platform: c.platform})
		if err != nil || got.ID != c.want {
			t.Errorf("%+v: %s %v", c, got.ID, err)
		}
		if diff := cmp.Diff([]string{reg.host() + "/i@" + inner.Digest.String()}, got.RepoDigests); diff != "" {
			t.Error(diff)
		}
	}
	// What the index does not tell, configurations do: of others' images and of what is none.
	chart := reg.manifest("i", "chart", imagespec.MediaTypeImageManifest, imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, Config: reg.blob("application/vnd.cncf.helm.config.v1+json", []byte("{}")),
		Layers: []imagespec.Descriptor{reg.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", gzipped(tarOf("a", "b")))},
	})
	bare := func(d imagespec.Descriptor) imagespec.Descriptor {
		return imagespec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	foreign, _ := reg.image("i", "foreign", imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: "riscv64"}}, tarOf("arch", "riscv64"))
	for tag, c := range map[string]struct {
		all  []imagespec.Descriptor
		want string
	}{
		"bare":    {[]imagespec.Descriptor{bare(chart), bare(foreign), bare(amd)}, amdID},
		"nothing": {[]imagespec.Descriptor{bare(chart), bare(foreign)}, ""},
	} {
		reg.manifest("i", tag, imagespec.MediaTypeImageIndex, imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: c.all})
		got, err := openStore(t, t.TempDir()).Pull(context.Background(), reg.host()+"/i:"+tag, PullOptions{})
		if got.ID != c.want || c.want == "" && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %s %v", tag, got.ID, err)
		}
	}
}
