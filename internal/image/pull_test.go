package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// Several pulls at once of images that share layers fetch each blob once.
func TestConcurrentPulls(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	shared := tarOf("base", strings.Repeat("b", 1<<20))
	var refs []string
	for i := range 3 {
		tag := fmt.Sprint(i)
		reg.image("many", tag, imagespec.Image{Author: tag}, shared, tarOf("own", tag))
		refs = append(refs, reg.host()+"/many:"+tag)
	}
	proceed := hold(reg)
	s := openStore(t, t.TempDir())
	errs := make(chan error)
	for i := range 12 {
		go func() {
			_, err := s.Pull(context.Background(), refs[i%3], PullOptions{})
			errs <- err
		}()
	}
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range s.use.flights {
			if f.waiters == 12 {
				return true
			}
		}
		return false
	})
	close(proceed)
	for range 12 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, image := range s.List() {
		if len(s.view.Load().images[image.ID].Layers) != 2 {
			t.Errorf("%+v", image)
		}
	}
	layers := 0
	for d, n := range reg.fetched {
		if reg.blobs[d][0] == '{' {
			continue // a configuration
		}
		if layers++; n != 1 {
			t.Errorf("blob %s was fetched %d times", d, n)
		}
	}
	if len(s.List()) != 3 || layers != 4 {
		t.Errorf("%d images, %d blobs", len(s.List()), layers)
	}
}

// A layer that a pull counts on stays, although its only image is removed
// meanwhile.
func TestRemoveWhilePulling(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	shared := tarOf("base", "1")
	reg.image("a", "1", imagespec.Image{}, shared)
	reg.image("b", "1", imagespec.Image{}, shared, tarOf("big", strings.Repeat("b", 1<<20)), tarOf("big", strings.Repeat("c", 1<<20)))
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	if _, err := s.Pull(ctx, reg.host()+"/a:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	proceed := hold(reg)
	done := make(chan error, 1)
	go func() { _, err := s.Pull(ctx, reg.host()+"/b:1", PullOptions{}); done <- err }()
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.use.flights) > 0 })
	if err := s.Remove(ctx, reg.host()+"/a:1"); err != nil {
		t.Fatal(err)
	}
	close(proceed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	path, err := s.Mount(ctx, "c", reg.host()+"/b:1", MountOptions{})
	if err != nil || read(t, path, "base") != "1" || read(t, path, "big")[0] != 'c' {
		t.Errorf("%v", err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
}

// hold holds large blobs back until the channel is closed, so that pulls meet.
func hold(reg *fakeRegistry) chan struct{} {
	proceed := make(chan struct{})
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool {
		reg.mu.Lock()
		size := len(reg.blobs[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]])
		reg.mu.Unlock()
		if size > 900 {
			select {
			case <-proceed:
			case <-r.Context().Done():
			}
		}
		return false
	}
	return proceed
}

// A pull that is cancelled neither ends the fetch that another one shares nor
// leaves anything; the last one to go ends it.
func TestCancelShared(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("a", "1", imagespec.Image{}, tarOf("f", strings.Repeat("x", 1<<20)))
	proceed := hold(reg)
	dir := t.TempDir()
	s := openStore(t, dir)
	ref := reg.host() + "/a:1"
	leaving, leave := context.WithCancel(context.Background())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Pull(leaving, ref, PullOptions{}); first <- err }()
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.use.flights) == 1 })
	go func() { _, err := s.Pull(context.Background(), ref, PullOptions{}); second <- err }()
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range s.use.flights {
			return f.waiters == 2
		}
		return true
	})
	leave()
	if err := <-first; !fault.Is(err, fault.Canceled) {
		t.Errorf("the one that left: %v", err)
	}
	close(proceed)
	if err := <-second; err != nil {
		t.Errorf("the one that stayed: %v", err)
	}

	reg.image("b", "1", imagespec.Image{}, tarOf("g", strings.Repeat("y", 1<<20)))
	hold(reg)
	leaving, leave = context.WithCancel(context.Background())
	go func() { _, err := s.Pull(leaving, reg.host()+"/b:1", PullOptions{}); first <- err }()
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.use.flights) == 1 })
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.use.flights) == 0 })
	s.wg.Wait()
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
	if len(s.use.pins)+len(s.use.fresh)+len(s.use.dying) != 0 {
		t.Errorf("%+v", s.use)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) { // the other side is a real server
		if time.Now().After(end) {
			t.Fatal("did not happen within 5 s")
		}
	}
}

// The credentials of one pull must not decide on another's: who waits for a
// fetch that is refused tries for itself.
func TestOthersTrouble(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("a", "1", imagespec.Image{}, tarOf("f", strings.Repeat("x", 1<<20)))
	reg.image("bad", "1", imagespec.Image{Author: "other"}, tarOf("f", strings.Repeat("x", 1<<20)))
	var entered atomic.Bool
	proceed := make(chan struct{})
	layerBlob := ""
	for d, b := range reg.blobs {
		if len(b) > 900 {
			layerBlob = d
		}
	}
	reg.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/bad/blobs/"+layerBlob) {
			entered.Store(true)
			<-proceed
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	s := openStore(t, t.TempDir())
	bad, good := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Pull(context.Background(), reg.host()+"/bad:1", PullOptions{}); bad <- err }()
	waitFor(t, entered.Load)
	go func() { _, err := s.Pull(context.Background(), reg.host()+"/a:1", PullOptions{}); good <- err }()
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range s.use.flights {
			return f.waiters == 2
		}
		return false
	})
	close(proceed)
	if err := <-bad; !fault.Is(err, fault.Denied) {
		t.Errorf("%v", err)
	}
	if err := <-good; err != nil {
		t.Errorf("%v", err)
	}
}

func TestRefused(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	hostile := tarOf("../../x", "x")
	reg.image("hostile", "1", imagespec.Image{}, tarOf("ok", "1"), hostile)
	m, _ := reg.image("lies", "1", imagespec.Image{}, tarOf("a", "1"))
	lies := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
	lies.Config = reg.blob(imagespec.MediaTypeImageConfig, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["`+m.Digest.String()+`"]}}`))
	lies.Layers = []imagespec.Descriptor{reg.blob(imagespec.MediaTypeImageLayer, tarOf("b", "1"))}
	reg.manifest("lies", "1", imagespec.MediaTypeImageManifest, lies)
	chart := lies
	chart.Layers = []imagespec.Descriptor{reg.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", tarOf("b", "1"))}
	reg.manifest("chart", "1", imagespec.MediaTypeImageManifest, chart)
	strange := lies
	strange.Config = reg.blob("application/x", []byte("{}"))
	reg.manifest("strange", "1", imagespec.MediaTypeImageManifest, strange)
	uneven := lies
	uneven.Layers = nil
	reg.manifest("uneven", "1", imagespec.MediaTypeImageManifest, uneven)
	windows := lies
	windows.Config = reg.blob(imagespec.MediaTypeImageConfig, []byte(`{"os":"windows"}`))
	reg.manifest("windows", "1", imagespec.MediaTypeImageManifest, windows)
	reg.manifest("arm", "1", imagespec.MediaTypeImageIndex, imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []imagespec.Descriptor{
		{MediaType: imagespec.MediaTypeImageManifest, Digest: m.Digest, Size: m.Size, Platform: &imagespec.Platform{OS: "linux", Architecture: "arm64"}},
	}})
	reg.image("damaged", "1", imagespec.Image{Author: "s"}, tarOf("c", "1"))
	blob := lastLayer(reg, "damaged:1")
	reg.blobs[blob] = bytes.Clone(reg.blobs[blob])
	reg.blobs[blob][len(reg.blobs[blob])-1] ^= 1
	dir := t.TempDir()
	s := openStore(t, dir)
	for _, c := range []struct {
		ref  string
		kind fault.Kind
		text string
	}{
		{reg.host() + "/hostile:1", fault.Unknown, "leads out of the layer"},
		{reg.host() + "/lies:1", fault.Unknown, "other content"},
		{reg.host() + "/chart:1", fault.Unimplemented, "helm"},
		{reg.host() + "/strange:1", fault.Unknown, `of type "application/x" says 0`},
		{reg.host() + "/uneven:1", fault.Unknown, "0 layers"},
		{reg.host() + "/windows:1", fault.Unknown, "windows"},
		{reg.host() + "/arm:1", fault.NotFound, "only for linux/arm64"},
		{reg.host() + "/absent:1", fault.NotFound, "manifest 1 of repository absent"},
		{reg.host() + "/UPPER:1", fault.Invalid, "UPPER"},
		{reg.host() + "/damaged:1", fault.Unknown, ""},
		{"", fault.Invalid, "reference"},
		{"127.0.0.1:1/x", fault.Unknown, "RegistryUnavailable: 127.0.0.1:1"},
	} {
		_, err := s.Pull(context.Background(), c.ref, PullOptions{})
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: kind %v: %v", c.ref, fault.KindOf(err), err)
		}
		if strings.HasPrefix(c.text, "Registry") && !strings.HasPrefix(err.Error(), c.text) {
			t.Errorf("the kubelet would not see that: %v", err)
		}
	}
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 || len(s.List()) != 0 {
		t.Errorf("left: %v, %v", left, s.List())
	}
}

func lastLayer(reg *fakeRegistry, key string) string {
	body := string(reg.manifests[key])
	at := strings.LastIndex(body, "sha256:")
	return body[at : at+71]
}

// The disk fills during a pull: Exhausted, nothing left, and with room again
// the same pull succeeds.
func TestDiskFull(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("big", "1", imagespec.Image{}, tarOf("small", "1"), tarOf("big", strings.Repeat("0123456789", 1<<20)))
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := openStore(t, dir)
	_, err := s.Pull(context.Background(), reg.host()+"/big:1", PullOptions{})
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("kind %v: %v", fault.KindOf(err), err)
	}
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 || len(s.List()) != 0 {
		t.Errorf("left: %v, %v", left, s.List())
	}
	s.trash.Wait()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=30m"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(context.Background(), reg.host()+"/big:1", PullOptions{}); err != nil {
		t.Errorf("with room: %v", err)
	}
	// Not a byte is free: the store opens, and an image can be removed.
	fill(t, filepath.Join(dir, "filler"))
	closeStore(t, s)
	s = openStore(t, dir)
	if len(s.List()) != 1 {
		t.Errorf("%v", s.List())
	}
	if err := s.Remove(context.Background(), reg.host()+"/big:1"); err != nil {
		t.Errorf("on a full disk: %v", err)
	}
	s.trash.Wait()
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 1 || len(s.List()) != 0 {
		t.Errorf("left: %v, %v", left, s.List())
	}
	closeStore(t, s)
	s = openStore(t, dir)
	if len(s.List()) != 0 {
		t.Errorf("it came back: %v", s.List())
	}
}

func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestDamagedDatabase(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	_, id := reg.image("a", "1", imagespec.Image{}, tarOf("f", "1"), tarOf("g", "1"))
	ref := reg.host() + "/a:1"
	for name, harm := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"cut":       func(path string) error { return os.Truncate(path, 9000) },
		"cut short": func(path string) error { return os.Truncate(path, 20480) },
		"noise":     func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("noise", 9000)), 0o600) },
		"one page": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			for page := int64(2); page < 6; page++ {
				if _, err := f.WriteAt([]byte(strings.Repeat("\xff", 4096)), page*4096); err != nil {
					return err
				}
			}
			return f.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			path, err := s.Mount(context.Background(), "c", id, MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			closeUnchecked(t, s)
			if err := harm(filepath.Join(dir, "root/images.db")); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir)
			s.trash.Wait()
			// It is made again of what lies beside it.
			if got, err := s.Get(ref); err != nil || got.ID != id || len(s.List()) != 1 {
				t.Error(s.List(), err)
			}
			if aside := names(t, filepath.Join(dir, "root/damaged")); len(aside) != 1 {
				t.Errorf("aside: %v", aside)
			}
			if read(t, path, "f") != "1" {
				t.Error("a container lost its layers")
			}
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
			if err := s.Unmount(context.Background(), "c"); err != nil {
				t.Error(err)
			}
			if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 3 {
				t.Errorf("layers: %v", left)
			}
		})
	}
}

// An image whose layer somebody deleted is not shown, and can be pulled again.
func TestLostLayer(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("a", "1", imagespec.Image{}, tarOf("f", "1"), tarOf("g", "1"))
	reg.image("b", "1", imagespec.Image{}, tarOf("g", "1"))
	dir := t.TempDir()
	s := openStore(t, dir)
	for _, name := range []string{"/a:1", "/b:1"} {
		if _, err := s.Pull(context.Background(), reg.host()+name, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	e, err := s.find(reg.host() + "/a:1")
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.RemoveAll(layerPath(t, dir, e.layers[1])); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	s.trash.Wait()
	if left := names(t, filepath.Join(dir, "root/layers")); len(left) != 2 {
		t.Errorf("layers: %v", left)
	}
	if list := s.List(); len(list) != 1 || list[0].RepoTags[0] != reg.host()+"/b:1" {
		t.Errorf("%+v", list)
	}
	if _, err := s.Pull(context.Background(), reg.host()+"/a:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestOneProcess(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	openStore(t, dir)
	if _, err := Open(testConfig(dir)); !fault.Is(err, fault.Precondition) {
		t.Errorf("opened twice: %v", err)
	}
}
