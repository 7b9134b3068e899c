package image

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// However many pulls want an image at a time, each blob is fetched once, and
// each of them asks for the manifest itself.
func TestPullsOfOneImage(t *testing.T) {
	testkit.Root(t)
	const n = 10
	reg := newFakeRegistry(t)
	var layers [][]byte
	for i := range 4 {
		data := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(data)
		layers = append(layers, tarOf(fmt.Sprint("f", i), string(data)))
	}
	_, id := reg.image("r", "1", imagespec.Image{}, layers...)
	var manifests atomic.Int32
	var once sync.Once
	all := make(chan struct{})
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && manifests.Add(1) == n {
			once.Do(func() { close(all) })
		}
		if strings.Contains(r.URL.Path, "/blobs/") { // not before all of them have begun
			<-all
		}
		return false
	}
	s := openStore(t, t.TempDir())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if got, err := s.Pull(context.Background(), reg.host()+"/r:1", PullOptions{}); err != nil || got.ID != id {
				t.Errorf("%s, %v", got.ID, err)
			}
		})
	}
	wg.Wait()
	if got := manifests.Load(); got != n {
		t.Errorf("%d requests for the manifest by %d pulls", got, n)
	}
	if len(reg.fetched) != 5 {
		t.Errorf("blobs fetched: %v", reg.fetched)
	}
	for blob, times := range reg.fetched {
		if times != 1 {
			t.Errorf("%s was fetched %d times", blob, times)
		}
	}
	if len(s.use.configs) != 0 || len(s.use.pins) != 0 || len(s.Pulls()) != 0 {
		t.Errorf("kept: %d configurations, %d pins, %d pulls", len(s.use.configs), len(s.use.pins), len(s.Pulls()))
	}
}

// When the one that fetches a configuration fails, the next one does it.
func TestConfigOfAnother(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("r", "1", imagespec.Image{}, tarOf("f", "1"))
	var asked atomic.Int32
	begun := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && asked.Add(1) == 1 {
			close(begun)
			<-r.Context().Done()
		}
		return false
	}
	s := openStore(t, t.TempDir())
	first, second := make(chan error, 1), make(chan error, 1)
	pull := func(ctx context.Context, to chan error) {
		_, err := s.Pull(ctx, reg.host()+"/r:1", PullOptions{})
		to <- err
	}
	go pull(ctx, first)
	<-begun
	go pull(context.Background(), second)
	cancel()
	if err := <-first; err == nil {
		t.Error("a pull that was cancelled succeeded")
	}
	if err := <-second; err != nil {
		t.Errorf("the other pull: %v", err)
	}
}

// Who watches sees each pull through its phases to its end, also those that
// share the work of another, and how fast bytes come.
func TestWatchPulls(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	data := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
	reg.image("r", "1", imagespec.Image{}, tarOf("big", string(data)), tarOf("small", "1"))
	hold := make(chan struct{})
	reg.before = func(w http.ResponseWriter, r *http.Request) bool {
		_, ref, ok := strings.Cut(r.URL.Path, "/blobs/")
		reg.mu.Lock()
		blob := reg.blobs[ref]
		reg.mu.Unlock()
		if !ok || len(blob) < 1<<20 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(blob[:1<<20])
		_ = http.NewResponseController(w).Flush()
		at, drop := 1<<20, time.NewTicker(20*time.Millisecond) // not so fast that there is no rate
		defer drop.Stop()
		for waiting := true; waiting; {
			select {
			case <-hold:
				waiting = false
			case <-drop.C:
				_, _ = w.Write(blob[at : at+1024])
				_ = http.NewResponseController(w).Flush()
				at += 1024
			}
		}
		_, _ = bytes.NewReader(blob[at:]).WriteTo(w)
		return true
	}
	config := testConfig(t.TempDir())
	config.Verify = func(_ context.Context, name string, _ imagespec.Descriptor) error {
		if strings.HasSuffix(name, ":1") {
			return nil
		}
		return fmt.Errorf("no")
	}
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	reg.image("r", "bad", imagespec.Image{Author: "x"})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := map[string]PullState{}
	released, rated, told := false, false, 0
	for states := range s.WatchPulls(ctx) {
		if told++; told == 1 {
			if len(states) != 0 {
				t.Errorf("at first: %+v", states)
			}
			for _, tag := range []string{"1", "1", "bad"} {
				wg.Go(func() { _, _ = s.Pull(ctx, reg.host()+"/r:"+tag, PullOptions{}) })
			}
		}
		halfway := 0
		for _, p := range states {
			if p.Phase >= PullDone {
				if _, twice := ended[p.ID]; twice {
					t.Errorf("told twice: %+v", p)
				}
				ended[p.ID] = p
				continue
			}
			if len(p.Layers) == 2 && p.Layers[0].Bytes >= 1<<20 && p.Layers[0].Total > 1<<20 && p.Layers[1].Phase == Done {
				halfway++
				rated = rated || p.Layers[0].BytesPerSecond > 0
			}
		}
		if halfway == 2 && rated && !released {
			released = true
			if under := s.Pulls(); len(under) != 2 || under[0].Phase != PullFetching || under[0].Ref != reg.host()+"/r:1" {
				t.Errorf("under way: %+v", under)
			}
			close(hold)
		}
		if len(ended) == 3 {
			break
		}
	}
	if !released {
		t.Error("no two pulls were seen halfway")
		close(hold)
	}
	for _, p := range ended {
		bad := strings.HasSuffix(p.Ref, "bad")
		if bad != (p.Phase == PullFailed) || bad != (p.Err != nil) || !bad && p.Layers[0].Phase != Done {
			t.Errorf("ended: %+v", p)
		}
	}
	if ctx.Err() != nil || len(s.Pulls()) != 0 || len(s.pulls.watchers) != 0 {
		t.Errorf("%v; left: %v, %d watchers", ctx.Err(), s.Pulls(), len(s.pulls.watchers))
	}
}
