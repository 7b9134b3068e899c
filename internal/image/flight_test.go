package image

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/internal/turn"
)

// A registry that is slow to answer is asked for as many layers at a time as
// ever, even if only one may be unpacked.
func TestSlowRegistryInParallel(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	reg.image("a", "1", imagespec.Image{}, tarOf("a", "1"), tarOf("b", "2"), tarOf("c", "3"))
	var asked atomic.Int32
	all := make(chan struct{})
	config := ""
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && d != config {
			if asked.Add(1) == 3 {
				close(all)
			}
			select {
			case <-all:
			case <-r.Context().Done():
			}
		}
		return false
	}
	for d, b := range reg.blobs {
		if b[0] == '{' {
			config = d
		}
	}
	s := openStore(t, t.TempDir())
	s.turns = turn.NewQueue(1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := s.Pull(ctx, reg.host()+"/a:1", PullOptions{}); err != nil {
		t.Error(err)
	}
}

// A watched source writes down in which order layers are asked for.
type watched struct {
	Source
	mu    sync.Mutex
	asked []int64 // sizes
}

func (w *watched) Layer(ctx context.Context, d imagespec.Descriptor, diffID digest.Digest) (io.ReadCloser, error) {
	w.mu.Lock()
	w.asked = append(w.asked, d.Size)
	w.mu.Unlock()
	return w.Source.Layer(ctx, d, diffID)
}

// The largest layer, which takes the longest, is the first to be unpacked.
func TestLargestFirst(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	m, _ := reg.image("a", "1", imagespec.Image{}, tarOf("a", "1"), tarOf("b", "1"), tarOf("c", strings.Repeat("3", 1<<20)), tarOf("d", "4"))
	s := openStore(t, t.TempDir())
	s.turns = turn.NewQueue(1)
	repo, err := s.registry.Find(context.Background(), reg.host()+"/a:1", registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	from := &watched{Source: repository{repo}}
	_, err = s.Import(context.Background(), Offer{Digest: m.Digest, Source: from}, PullOptions{})
	if err != nil || len(from.asked) != 4 || from.asked[0] < 1<<20 {
		t.Errorf("layers of %d bytes: %v", from.asked, err)
	}
}
