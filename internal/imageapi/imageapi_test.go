package imageapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/imageapi"
	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// dial serves the parts and returns a client.
func dial(t *testing.T, p imageapi.Parts) imagev1.ImagesClient {
	t.Helper()
	s := grpc.NewServer()
	imageapi.Register(s, p)
	l := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///davitd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return imagev1.NewImagesClient(conn)
}

// told is what WatchPulls yields, then nothing until the watch ends.
type told [][]image.PullState

func (t told) WatchPulls(ctx context.Context) iter.Seq[[]image.PullState] {
	return func(yield func([]image.PullState) bool) {
		for _, states := range t {
			if !yield(states) {
				return
			}
		}
		<-ctx.Done()
	}
}

func TestWatchPulls(t *testing.T) {
	began := time.Now()
	layer := image.LayerState{Progress: image.Progress{Layer: "sha256:1", Phase: image.Downloading, Bytes: 3, Total: 4}, BytesPerSecond: 5}
	mine := image.PullState{ID: "1", Ref: "busybox", Began: began, Phase: image.PullFetching, Layers: []image.LayerState{layer}}
	other := image.PullState{ID: "2", Ref: "reg.example/other:1", Began: began}
	ended := image.PullState{ID: "1", Ref: "busybox", Began: began, Phase: image.PullFailed, Err: errors.New("no\xfft there")}
	stopping := make(chan struct{})
	c := dial(t, imageapi.Parts{Pulls: told{{mine, other}, {other}, {other}, {ended, other}}, Stopping: stopping})

	all, err := watch(t, c, &imagev1.WatchPullsRequest{Once: true})
	if err != nil || len(all) != 1 || len(all[0].Pulls) != 2 {
		t.Fatalf("once: %v, %v", all, err)
	}
	p := all[0].Pulls[0]
	if p.Id != "1" || p.Image != "busybox" || !p.Began.AsTime().Equal(began) || p.Phase != imagev1.PullPhase_PULL_PHASE_FETCHING {
		t.Errorf("pull = %v", p)
	}
	if l := p.Layers[0]; l.Digest != "sha256:1" || l.Phase != imagev1.LayerPhase_LAYER_PHASE_DOWNLOADING || l.Bytes != 3 || l.TotalBytes != 4 || l.BytesPerSecond != 5 {
		t.Errorf("layer = %v", l)
	}
	// One image's pulls, by whatever name; nothing is told twice of others.
	close(stopping)
	all, err = watch(t, c, &imagev1.WatchPullsRequest{Image: "docker.io/library/busybox:latest"})
	if err == nil || len(all) != 3 || len(all[0].Pulls) != 1 || len(all[1].Pulls) != 0 || all[2].Pulls[0].Error != "no\uFFFDt there" {
		t.Errorf("of one image: %v, %v", all, err)
	}
}

// watch returns all answers, and the error at the end unless it is io.EOF.
func watch(t *testing.T, c imagev1.ImagesClient, r *imagev1.WatchPullsRequest) (all []*imagev1.WatchPullsResponse, err error) {
	t.Helper()
	s, err := c.WatchPulls(t.Context(), r)
	for err == nil {
		var answer *imagev1.WatchPullsResponse
		if answer, err = s.Recv(); err == nil {
			all = append(all, answer)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, err
}

// archives are functions.
type archives struct {
	load func(ctx context.Context, from io.Reader) ([]image.Image, error)
	save func(ctx context.Context, to io.Writer, refs []string, f imageapi.Format) error
}

func (a archives) Load(ctx context.Context, from io.Reader) ([]image.Image, error) {
	return a.load(ctx, from)
}

func (a archives) Save(ctx context.Context, to io.Writer, refs []string, f imageapi.Format) error {
	return a.save(ctx, to, refs, f)
}

func TestLoad(t *testing.T) {
	var got []byte
	c := dial(t, imageapi.Parts{Archives: archives{load: func(_ context.Context, from io.Reader) (_ []image.Image, err error) {
		got, err = io.ReadAll(from)
		return []image.Image{{ID: "sha256:1", RepoTags: []string{"a:1", "b:1"}}}, err
	}}})
	want := noise(3 << 20)
	s, err := c.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), rand.IntN(1<<20)) // none at all, too
		if err := s.Send(&imagev1.LoadRequest{Data: rest[:n]}); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	r, err := s.CloseAndRecv()
	if err != nil || len(r.Images) != 1 || r.Images[0].Id != "sha256:1" || !slices.Equal(r.Images[0].Names, []string{"a:1", "b:1"}) {
		t.Errorf("%v, %v", r, err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived of %d", len(got), len(want))
	}
}

// TestLoadBrokenOff: a client that goes ends the load; a load that fails ends
// the client's sending.
func TestLoadBrokenOff(t *testing.T) {
	ended := make(chan error, 1)
	c := dial(t, imageapi.Parts{Archives: archives{load: func(_ context.Context, from io.Reader) ([]image.Image, error) {
		_, err := io.Copy(io.Discard, from)
		ended <- err
		return nil, err
	}}})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Load(ctx)
	if err == nil {
		err = s.Send(&imagev1.LoadRequest{Data: []byte("some")})
	}
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("the load ended by %v", err)
	}

	c = dial(t, imageapi.Parts{Archives: archives{load: func(context.Context, io.Reader) ([]image.Image, error) {
		return nil, errors.New("no archive")
	}}})
	if s, err = c.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = s.Send(&imagev1.LoadRequest{Data: make([]byte, 1<<18)})
	}
	if _, err := s.CloseAndRecv(); status.Convert(err).Message() != "no archive" {
		t.Errorf("the client heard %v", err)
	}
}

func TestSave(t *testing.T) {
	want := noise(3<<20 + 7)
	var asked string
	c := dial(t, imageapi.Parts{Archives: archives{save: func(_ context.Context, to io.Writer, refs []string, f imageapi.Format) error {
		asked = fmt.Sprint(refs, f)
		for rest := want; len(rest) > 0; {
			n := min(len(rest), rand.IntN(1<<20))
			if written, err := to.Write(rest[:n]); err != nil || written != n {
				return fmt.Errorf("%d written of %d: %w", written, n, err)
			}
			rest = rest[n:]
		}
		return nil
	}}})
	got, largest, err := receive(t.Context(), c, &imagev1.SaveRequest{Images: []string{"a", "b"}, Format: imagev1.ArchiveFormat_ARCHIVE_FORMAT_DOCKER})
	if err != nil || !bytes.Equal(got, want) || largest > 1<<20 || asked != fmt.Sprint([]string{"a", "b"}, imageapi.Docker) {
		t.Errorf("%d bytes, the largest piece %d, asked for %s, %v", len(got), largest, asked, err)
	}
	for _, bad := range []*imagev1.SaveRequest{{}, {Images: []string{"a"}, Format: 77}} {
		if _, _, err := receive(t.Context(), c, bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func receive(ctx context.Context, c imagev1.ImagesClient, r *imagev1.SaveRequest) (all []byte, largest int, err error) {
	s, err := c.Save(ctx, r)
	if err != nil {
		return nil, 0, err
	}
	for {
		piece, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, largest, nil
		}
		if err != nil {
			return all, largest, err
		}
		all, largest = append(all, piece.Data...), max(largest, len(piece.Data))
	}
}

// TestSlowReader: an archive that nobody takes waits, in little memory, and
// ends when the client goes.
func TestSlowReader(t *testing.T) {
	written, ended := make(chan int, 1<<20), make(chan error, 1)
	c := dial(t, imageapi.Parts{Archives: archives{save: func(_ context.Context, to io.Writer, _ []string, _ imageapi.Format) error {
		for piece := make([]byte, 1<<20); ; {
			n, err := to.Write(piece)
			if err != nil {
				ended <- err
				return err
			}
			written <- n
		}
	}}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Save(ctx, &imagev1.SaveRequest{Images: []string{"a"}})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	// It stands still once the buffers on the way are full.
	total := 0
	for standing := false; !standing; {
		select {
		case n := <-written:
			if total += n; total > 64<<20 {
				t.Fatal("it does not wait for who reads")
			}
		case <-time.After(300 * time.Millisecond):
			standing = true
		}
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d bytes are held", grown)
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("the save ended by %v", err)
	}
}

func noise(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	return data
}

// explained is what Explain returns.
type explained struct {
	all   []registry.Explanation
	asked string
}

func (e *explained) Explain(_ context.Context, ref string, auth image.Auth, probe bool) ([]registry.Explanation, error) {
	e.asked = fmt.Sprint(ref, auth, probe)
	return e.all, nil
}

func TestExplain(t *testing.T) {
	from := route.Setting{Key: "server", Value: "m.example", Source: "/etc/x:3"}
	e := &explained{all: []registry.Explanation{{Name: "reg/a:1", Short: &from, Endpoints: []registry.Explained{
		{URL: "https://m.example/v2/a", Pull: true, Settings: []route.Setting{from}, Answer: &registry.Answer{Digest: "sha256:1", Took: time.Second}},
		{URL: "https://reg/v2/a", Home: true, Resolve: true},
	}}, {Name: "other/a:1", Blocked: &from}}}
	c := dial(t, imageapi.Parts{Registries: e})
	r, err := c.Explain(t.Context(), &imagev1.ExplainRequest{Image: "a:1", Probe: true, Credentials: &imagev1.Credentials{Username: "me", Password: "secret"}})
	if err != nil || len(r.Routes) != 2 || e.asked != fmt.Sprint("a:1", image.Auth{Username: "me", Password: "secret"}, true) {
		t.Fatalf("%v, %v, asked for %s", r, err, e.asked)
	}
	if x := r.Routes[0]; x.Image != "reg/a:1" || x.Short.From != "/etc/x:3" || x.Blocked != nil || len(x.Endpoints) != 2 {
		t.Errorf("route = %v", x)
	}
	if p := r.Routes[0].Endpoints[0]; p.Url != "https://m.example/v2/a" || !p.Pull || p.Home || p.Settings[0].Name != "server" || p.Probe.Digest != "sha256:1" || p.Probe.Took.AsDuration() != time.Second {
		t.Errorf("mirror = %v", p)
	}
	if p := r.Routes[0].Endpoints[1]; !p.Home || !p.Resolve || p.Pull || p.Probe != nil {
		t.Errorf("registry = %v", p)
	}
	if x := r.Routes[1]; x.Blocked.Value != "m.example" || len(x.Endpoints) != 0 {
		t.Errorf("blocked = %v", x)
	}
}
