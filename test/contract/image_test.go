package contract

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// small returns an image of one file, unlike any other.
func (w *world) small(mark string, config v1.Config) v1.Image {
	w.t.Helper()
	img, err := testkit.NewImage(testkit.ImageSpec{Layers: [][]testkit.File{{{Name: "mark", Data: []byte(mark + w.own)}}}, Config: config})
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

func (w *world) imageStatus(ref string) *runtimeapi.Image {
	w.t.Helper()
	r, err := w.c.ImageStatus(w.ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		w.t.Fatalf("ImageStatus of %s: %v", ref, err)
	}
	return r.Image
}

// TestImageForms: an image is found by its tag, its digest, both, its ID, and
// the ID without its algorithm; a list's filter takes the same; each tells the same.
func TestImageForms(t *testing.T) {
	w := shared(t)
	img := w.small("forms", v1.Config{})
	ref := w.push("contract/forms:1", img)
	again := w.push("contract/forms:2", img)
	elsewhere := w.push("contract/other:1", img)
	repository, _ := strings.CutSuffix(ref, ":1")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	var id string
	for _, r := range []string{ref, again, elsewhere} {
		got, err := w.c.Pull(w.ctx, r)
		if err != nil || id != "" && got != id {
			t.Fatalf("pull of %s: %s, %v; before %s", r, got, err, id)
		}
		id = got
	}
	first := w.imageStatus(ref)
	forms := []string{ref, again, elsewhere, repository + "@" + digest.String(), ref + "@" + digest.String(), id, strings.TrimPrefix(id, "sha256:")}
	t.Run("status", func(t *testing.T) {
		w := w.within(t)
		for _, form := range forms {
			i := w.imageStatus(form)
			if i.GetId() != id || i.GetSize() == 0 || !slices.Equal(i.RepoTags, first.RepoTags) || !slices.Equal(i.RepoDigests, first.RepoDigests) {
				t.Errorf("%s: %v, want %v", form, i, first)
			}
		}
		same(t, "tags", nil, first.RepoTags, []string{ref, again, elsewhere})
		same(t, "digests", nil, first.RepoDigests, []string{repository + "@" + digest.String(), strings.TrimSuffix(elsewhere, ":1") + "@" + digest.String()})
		if i := w.imageStatus(repository + "@sha256:" + strings.Repeat("1", 64)); i != nil {
			t.Errorf("another digest: %v", i)
		}
		if i := w.imageStatus(id[:20]); i.GetId() != id {
			differs(t, "an image ID cut short: %v", i)
		}
	})
	t.Run("list", func(t *testing.T) {
		w := w.within(t)
		for _, form := range forms {
			list, err := w.c.ListImages(w.ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: form}}})
			if err == nil && len(list.Images) == 1 && list.Images[0].Id == id {
				continue
			}
			if form == ref {
				t.Errorf("list of %s: %v, %v", form, list, err)
			} else {
				differs(t, "list of %s: %d images, %v", form, len(list.GetImages()), err)
			}
		}
	})
	t.Run("removal", func(t *testing.T) { // by one tag: it has none left, in any repository
		w := w.within(t)
		for range 2 {
			if _, err := w.c.RemoveImage(w.ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: again}}); err != nil {
				t.Fatal(err)
			}
		}
		for _, form := range []string{ref, again, elsewhere, id} {
			if i := w.imageStatus(form); i != nil {
				t.Errorf("%s after its removal: %v", form, i)
			}
		}
	})
}

// TestImageUsers: the user that an image names is told as a number or a name.
func TestImageUsers(t *testing.T) {
	w := shared(t)
	for i, test := range []struct {
		user, name string
		uid        int64
	}{{"", "", 0}, {"1000", "", 1000}, {"web", "web", -1}, {"1000:5", "", 1000}, {"web:extra", "web", -1}, {"0", "", 0}} {
		ref := w.push(fmt.Sprintf("contract/user:%d", i), w.small("user"+test.user, v1.Config{User: test.user}))
		if _, err := w.c.Pull(w.ctx, ref); err != nil {
			t.Fatal(err)
		}
		image := w.imageStatus(ref)
		switch {
		case image.GetUsername() != test.name, test.name != "" && image.GetUid() != nil, test.name == "" && image.GetUid().GetValue() != test.uid:
			t.Errorf("user %q: %v, %q", test.user, image.GetUid(), image.GetUsername())
		case test.user != "" && test.name == "" && image.GetUid() == nil:
			t.Errorf("user %q: no number", test.user)
		}
	}
}

// TestPullsRefused: what a pull fails of is told as the kubelet reads it.
func TestPullsRefused(t *testing.T) {
	w := shared(t)
	ref := w.push("contract/there:1", w.small("there", v1.Config{}))
	host, _, _ := strings.Cut(ref, "/")
	for name, test := range map[string]struct {
		by    demand
		image *runtimeapi.ImageSpec
		code  codes.Code
		text  string
	}{
		"tag absent":        {cri, &runtimeapi.ImageSpec{Image: host + "/contract/there:absent"}, codes.NotFound, "absent"},
		"repository absent": {cri, &runtimeapi.ImageSpec{Image: host + "/no/such/repository:1"}, codes.NotFound, "no/such/repository"},
		"digest absent":     {cri, &runtimeapi.ImageSpec{Image: host + "/contract/there@sha256:" + strings.Repeat("0", 64)}, codes.NotFound, "sha256:000"},
		"registry down":     {cri, &runtimeapi.ImageSpec{Image: "127.0.0.1:1/contract/there:1"}, codes.Unknown, "desc = RegistryUnavailable: "},
		"nonsense":          {cri, &runtimeapi.ImageSpec{Image: "NOT//an image"}, invalid, "NOT//an image"},
		"climbs":            {cri, &runtimeapi.ImageSpec{Image: host + "/../../etc:1"}, invalid, "etc"},
		"zero byte":         {cri, &runtimeapi.ImageSpec{Image: host + "/contract/there:1\x00"}, invalid, "image"},
		"digest too short":  {cri, &runtimeapi.ImageSpec{Image: host + "/contract/there@sha256:0"}, invalid, "sha256:0"},
		"empty":             {cri, &runtimeapi.ImageSpec{}, invalid, "image"},
		"handler unknown":   {ours, &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: "nosuch"}, invalid, "nosuch"},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			before := w.images()
			_, err := w.c.PullImage(w.ctx, &runtimeapi.PullImageRequest{Image: test.image})
			w.refused(err, test.by, test.code, test.text)
			if err != nil && !slices.Equal(w.images(), before) {
				t.Errorf("images: %v, before %v", w.images(), before)
			}
		})
	}
	secret := "s3cret-" + w.own
	_, err := w.c.PullImage(w.ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: host + "/contract/there:absent"}, Auth: &runtimeapi.AuthConfig{Username: "u", Password: secret},
	})
	if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(w.log(), secret) {
		t.Errorf("%v: an answer or the log tells the password, or there is no error", err)
	}
}

func (w *world) images() []string {
	w.t.Helper()
	list, err := w.c.ListImages(w.ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, i := range list.Images {
		all = append(all, fmt.Sprint(i.Id, i.RepoTags, i.RepoDigests))
		if i.Id == "" || i.Size == 0 || i.Spec == nil && !foreign {
			w.t.Errorf("%v", i)
		}
	}
	slices.Sort(all)
	return all
}

// TestImageFsInfo: there is a file system, with figures, that exists here.
func TestImageFsInfo(t *testing.T) {
	w := shared(t)
	r, err := w.c.ImageFsInfo(w.ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(r.ImageFilesystems) == 0 {
		t.Fatal(r, err)
	}
	for _, fs := range slices.Concat(r.ImageFilesystems, r.ContainerFilesystems) {
		if fs.Timestamp <= 0 || fs.UsedBytes == nil || fs.InodesUsed == nil || !strings.HasPrefix(fs.GetFsId().GetMountpoint(), "/") {
			t.Errorf("%v", fs)
		}
	}
}
