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
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/archive"
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

// TestManyPulls: a state that is too long for one message comes in several.
func TestManyPulls(t *testing.T) {
	var many []image.PullState
	for i := range 2000 {
		p := image.PullState{ID: fmt.Sprint(i), Ref: "reg.example/a:1"}
		for range 100 {
			p.Layers = append(p.Layers, image.LayerState{Progress: image.Progress{Layer: "sha256:" + strings.Repeat("a", 64), Bytes: 1 << 30, Total: 1 << 40}})
		}
		many = append(many, p)
	}
	c := dial(t, imageapi.Parts{Pulls: told{many}})
	all, err := watch(t, c, &imagev1.WatchPullsRequest{Once: true})
	seen, largest := map[string]bool{}, 0
	for _, answer := range all {
		largest = max(largest, proto.Size(answer))
		for _, p := range answer.Pulls {
			seen[p.Id] = true
		}
	}
	if err != nil || len(seen) != len(many) || largest > 2<<20 {
		t.Errorf("%d pulls in %d answers of at most %d bytes, %v", len(seen), len(all), largest, err)
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
	imageapi.Archives
	read  func(ctx context.Context, from io.Reader) (*archive.Archive, error)
	save  func(ctx context.Context, refs []string, to io.Writer) error
	store *archive.Archive // another runtime's
}

func (a archives) Read(ctx context.Context, from io.Reader) (*archive.Archive, error) {
	return a.read(ctx, from)
}

func (a archives) Save(ctx context.Context, refs []string, to io.Writer) error {
	return a.save(ctx, refs, to)
}

func (a archives) Storage(root string) (*archive.Archive, error) {
	if root != "/store" {
		return nil, fmt.Errorf("there is no %s", root)
	}
	return a.store, nil
}

// kept is a store that takes what it is offered.
type kept struct {
	names []string
	fail  string // an image that it does not take
	usage image.DiskUsage
}

func (k *kept) Import(_ context.Context, o image.Offer, _ image.PullOptions) (image.Image, error) {
	if k.fail != "" && slices.Contains(o.Names, k.fail) {
		return image.Image{}, errors.New("no such luck")
	}
	k.names = append(k.names, o.Names...)
	return image.Image{ID: "sha256:1"}, nil
}

func (k *kept) DiskUsage(context.Context) (image.DiskUsage, error) { return k.usage, nil }

func offers(names ...string) *archive.Archive {
	a := &archive.Archive{}
	for _, n := range names {
		a.Offers = append(a.Offers, image.Offer{Names: []string{n}})
	}
	return a
}

func TestLoad(t *testing.T) {
	var got []byte
	store := &kept{}
	c := dial(t, imageapi.Parts{Store: store, Archives: archives{read: func(_ context.Context, from io.Reader) (_ *archive.Archive, err error) {
		got, err = io.ReadAll(from)
		return offers("a:1", "b:1"), err
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
	if err != nil || len(r.Images) != 2 || r.Images[0].Id != "sha256:1" || r.Images[1].Names[0] != "b:1" || !slices.Equal(store.names, []string{"a:1", "b:1"}) {
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
	c := dial(t, imageapi.Parts{Archives: archives{read: func(_ context.Context, from io.Reader) (*archive.Archive, error) {
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

	c = dial(t, imageapi.Parts{Archives: archives{read: func(context.Context, io.Reader) (*archive.Archive, error) {
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
	c := dial(t, imageapi.Parts{Archives: archives{save: func(_ context.Context, refs []string, to io.Writer) error {
		asked = fmt.Sprint(refs)
		for rest := want; len(rest) > 0; {
			n := min(len(rest), rand.IntN(1<<20))
			if written, err := to.Write(rest[:n]); err != nil || written != n {
				return fmt.Errorf("%d written of %d: %w", written, n, err)
			}
			rest = rest[n:]
		}
		return nil
	}}})
	got, largest, err := receive(t.Context(), c, &imagev1.SaveRequest{Images: []string{"a", "b"}})
	if err != nil || !bytes.Equal(got, want) || largest > 1<<20 || asked != fmt.Sprint([]string{"a", "b"}) {
		t.Errorf("%d bytes, the largest piece %d, asked for %s, %v", len(got), largest, asked, err)
	}
	if _, _, err := receive(t.Context(), c, &imagev1.SaveRequest{}); err == nil {
		t.Error("an archive of nothing was made")
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
	c := dial(t, imageapi.Parts{Archives: archives{save: func(_ context.Context, _ []string, to io.Writer) error {
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

func TestImport(t *testing.T) {
	store := &kept{fail: "reg/b:1"}
	c := dial(t, imageapi.Parts{Store: store, Archives: archives{store: offers("docker.io/library/a:latest", "reg/b:1", "reg/c:1")}})
	ask := func(r *imagev1.ImportRequest) string {
		s, err := c.Import(t.Context(), r)
		var told []string
		for err == nil {
			var answer *imagev1.ImportResponse
			if answer, err = s.Recv(); err == nil {
				told = append(told, fmt.Sprintf("%s:%s%s", answer.Name, answer.Error, answer.GetImage().GetId()))
			}
		}
		if !errors.Is(err, io.EOF) {
			told = append(told, status.Convert(err).Message())
		}
		return fmt.Sprint(told)
	}
	crio := imagev1.ForeignStore_FOREIGN_STORE_CRIO
	for _, test := range []struct {
		request *imagev1.ImportRequest
		want    string
	}{
		{&imagev1.ImportRequest{Store: crio, Root: "/store"}, "[docker.io/library/a:latest:sha256:1 reg/b:1:no such luck reg/c:1:sha256:1]"},
		{&imagev1.ImportRequest{Store: crio, Root: "/store", Images: []string{"a", "reg/d:1"}}, "[reg/d:1:it is not there docker.io/library/a:latest:sha256:1]"},
		{&imagev1.ImportRequest{Store: crio, Root: "/other"}, "[there is no /other]"},
		{&imagev1.ImportRequest{}, "[store: 0 is not known]"},
	} {
		if got := ask(test.request); got != test.want {
			t.Errorf("%v: %s, want %s", test.request, got, test.want)
		}
	}
	if want := []string{"docker.io/library/a:latest", "reg/c:1", "docker.io/library/a:latest"}; !slices.Equal(store.names, want) {
		t.Errorf("imported %q", store.names)
	}
}

func TestDiskUsage(t *testing.T) {
	c := dial(t, imageapi.Parts{Store: &kept{usage: image.DiskUsage{
		Images:   []image.ImageUsage{{ID: "sha256:1", Names: []string{"a:1"}, Bytes: 3, SharedBytes: 2, Containers: 1, Pinned: true}},
		Layers:   []image.LayerUsage{{ID: "sha256:2", Bytes: 4, Images: 1}},
		Writable: []image.WritableUsage{{Container: "c", Bytes: 5}}, Other: []image.OtherUsage{{What: "trash", Bytes: 6}},
		FileSystem: image.FileSystem{Path: "/x", TotalBytes: 9, UsedBytes: 8, FreeBytes: 7},
	}}})
	r, err := c.DiskUsage(t.Context(), &imagev1.DiskUsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(r.Images[0].Names, r.Images[0].Bytes, r.Images[0].SharedBytes, r.Images[0].Containers, r.Images[0].Pinned,
		r.Layers[0].Bytes, r.Layers[0].Images, r.Writable[0].ContainerId, r.Writable[0].Bytes, r.Other[0].What, r.Other[0].Bytes,
		r.FileSystem.Path, r.FileSystem.TotalBytes, r.FileSystem.UsedBytes, r.FileSystem.FreeBytes)
	if want := fmt.Sprint([]string{"a:1"}, 3, 2, 1, true, 4, 1, "c", 5, "trash", 6, "/x", 9, 8, 7); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
