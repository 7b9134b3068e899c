package image

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// A mirror that sends something else costs a download; the image is whole.
func TestMirrorSendsOtherContent(t *testing.T) {
	for name, harm := range map[string]func([]byte){
		"with another time in its header": func(b []byte) { b[4]++ },
		"with a bit changed":              func(b []byte) { b[len(b)/2] ^= 4 },
		"rubbish":                         func(b []byte) { copy(b[2:], bytes.Repeat([]byte("x"), len(b))) },
	} {
		reg, mirror := newFakeRegistry(t), newFakeRegistry(t)
		reg.image("a", "1", imagespec.Image{}, tarOf("a", strings.Repeat("one", 20000)))
		layer := lastLayer(reg, "a:1")
		mirror.manifests, mirror.types = reg.manifests, reg.types
		for d, b := range reg.blobs {
			mirror.blobs[d] = bytes.Clone(b)
		}
		harm(mirror.blobs[layer])
		s := openWith(t, registry.Config{Route: route.Config{Hosts: map[string]route.Host{reg.host(): {Endpoints: []string{mirror.URL}}}}})
		if _, err := s.Pull(context.Background(), reg.host()+"/a:1", PullOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if reg.fetched[layer] != 1 || mirror.fetched[layer] != 1 {
			t.Errorf("%s: the registry was asked %d times, its mirror %d times", name, reg.fetched[layer], mirror.fetched[layer])
		}
	}
}

// A short name is what registries.conf makes of it, to pull and to look up, and
// its credentials are for Docker Hub alone.
func TestShortNames(t *testing.T) {
	reg := newFakeRegistry(t)
	_, id := reg.image("tools/box", "1", imagespec.Image{}, tarOf("a", "1"))
	var sent atomic.Bool
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			sent.Store(true)
		}
		return false
	}
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf("[aliases]\nbox = %q\n", reg.host()+"/tools/box")), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openWith(t, registry.Config{Route: route.Config{Conf: conf}})
	ctx := context.Background()
	if _, err := s.Get("box:1"); err == nil {
		t.Error("it is there before it was pulled")
	}
	image, err := s.Pull(ctx, "box:1", PullOptions{Auth: Auth{Username: "ann", Password: "s3cret"}})
	if err != nil || image.ID != id || len(image.RepoTags) != 1 || image.RepoTags[0] != reg.host()+"/tools/box:1" || sent.Load() {
		t.Errorf("%+v %v; credentials sent: %v", image, err, sent.Load())
	}
	for _, ref := range []string{"box:1", reg.host() + "/tools/box:1"} {
		if found, err := s.Get(ref); err != nil || found.ID != id {
			t.Errorf("%s: %v", ref, err)
		}
	}
	x, err := s.Explain(ctx, "box:1", Auth{}, true)
	if err != nil || len(x) != 1 || x[0].Short.Source != conf+":2" || x[0].Endpoints[0].Answer.Err != "" {
		t.Errorf("%+v %v", x, err)
	}
	if err := s.Remove(ctx, "box:1"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("box:1"); err == nil {
		t.Error("it is there after it was removed")
	}
}

// Nothing of what lets somebody in is written down.
func TestNoSecretsOnDisk(t *testing.T) {
	reg := newFakeRegistry(t)
	reg.image("a", "1", imagespec.Image{}, tarOf("a", "1"))
	reg.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			_, _ = fmt.Fprint(w, `{"token":"t0ken-from-server"}`)
			return true
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+reg.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	s := openWith(t, registry.Config{})
	auth := Auth{Username: "us3rname", Password: "p4ssword"}
	if _, err := s.Pull(context.Background(), reg.host()+"/a:1", PullOptions{Auth: auth}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(s.config.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, secret := range []string{"us3rname", "p4ssword", "t0ken-from-server", "dXMzcm5hbWU6cDRzc3dvcmQ"} {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s has %s", path, secret)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func openWith(t *testing.T, c registry.Config) *Store {
	config := testConfig(t.TempDir())
	config.Registry = c
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}
