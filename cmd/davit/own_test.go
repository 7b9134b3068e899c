package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/criclient/crifake"
)

// own is davit's own service as a test wants it.
type own struct {
	imagev1.UnimplementedImagesServer
	pulls    [][]*imagev1.Pull // told one after the other
	asked    []string          // which image's pulls, of each watch
	loaded   bytes.Buffer
	saved    []byte
	fail     error // of load and save, after some bytes
	imports  []*imagev1.ImportResponse
	checks   []*imagev1.CheckResponse
	usage    *imagev1.DiskUsageResponse
	explains *imagev1.ExplainResponse
	request  any // the last of import, check, save and explain
}

func (o *own) WatchPulls(r *imagev1.WatchPullsRequest, to grpc.ServerStreamingServer[imagev1.WatchPullsResponse]) error {
	o.asked = append(o.asked, r.Image)
	for _, pulls := range o.pulls {
		if err := to.Send(&imagev1.WatchPullsResponse{Pulls: pulls}); err != nil || r.Once {
			return err
		}
	}
	return nil
}

func (o *own) Load(from grpc.ClientStreamingServer[imagev1.LoadRequest, imagev1.LoadResponse]) error {
	for {
		r, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return from.SendAndClose(&imagev1.LoadResponse{Images: []*imagev1.LoadedImage{
				{Id: "sha256:0123456789abcdef", Names: []string{"reg/a:1", "reg/b:1"}}, {Id: "sha256:fedcba9876543210"},
			}})
		}
		if err != nil {
			return err
		}
		o.loaded.Write(r.Data)
		if o.fail != nil {
			return o.fail
		}
	}
}

func (o *own) Save(r *imagev1.SaveRequest, to grpc.ServerStreamingServer[imagev1.SaveResponse]) error {
	o.request = r
	for piece := range slices.Chunk(o.saved, 100_000) {
		if err := to.Send(&imagev1.SaveResponse{Data: piece}); err != nil {
			return err
		}
	}
	return o.fail
}

func (o *own) Import(r *imagev1.ImportRequest, to grpc.ServerStreamingServer[imagev1.ImportResponse]) error {
	o.request = r
	for _, i := range o.imports {
		if err := to.Send(i); err != nil {
			return err
		}
	}
	return nil
}

func (o *own) Check(r *imagev1.CheckRequest, to grpc.ServerStreamingServer[imagev1.CheckResponse]) error {
	o.request = r
	for _, c := range o.checks {
		if err := to.Send(c); err != nil {
			return err
		}
	}
	return nil
}

// newOwnShell is a shell whose runtime has davit's own service.
func newOwnShell(t *testing.T, o *own) *shell {
	s := newShell(t)
	s.socket.Vanish()
	serves := crifake.V1()
	serves.Own = func(r grpc.ServiceRegistrar) { imagev1.RegisterImagesServer(r, o) }
	if err := s.socket.Return(serves); err != nil {
		t.Fatal(err)
	}
	return s
}

func aPull(phase imagev1.PullPhase, layers ...*imagev1.PullLayer) *imagev1.Pull {
	return &imagev1.Pull{Id: "7", Image: "reg/a:1", Began: timestamppb.New(time.Now().Add(-5 * time.Second)), Phase: phase, Layers: layers}
}

func aLayer(digest string, phase imagev1.LayerPhase, bytes, total, rate int64) *imagev1.PullLayer {
	return &imagev1.PullLayer{Digest: "sha256:" + strings.Repeat(digest, 64), Phase: phase, Bytes: bytes, TotalBytes: total, BytesPerSecond: rate}
}

func somePulls() [][]*imagev1.Pull {
	const mib = 1 << 20
	failed := aPull(imagev1.PullPhase_PULL_PHASE_FAILED)
	failed.Id, failed.Image, failed.Error = "8", "reg/b:1", "no such\nluck"
	return [][]*imagev1.Pull{
		{aPull(imagev1.PullPhase_PULL_PHASE_FETCHING,
			aLayer("a", imagev1.LayerPhase_LAYER_PHASE_DONE, mib, mib, 0), // was there
			aLayer("b", imagev1.LayerPhase_LAYER_PHASE_DOWNLOADING, 2*mib, 10*mib, 3*mib)),
			{Id: "8", Image: "reg/b:1", Began: timestamppb.Now(), Phase: imagev1.PullPhase_PULL_PHASE_RESOLVING}},
		{aPull(imagev1.PullPhase_PULL_PHASE_DONE,
			aLayer("a", imagev1.LayerPhase_LAYER_PHASE_DONE, mib, mib, 0), aLayer("b", imagev1.LayerPhase_LAYER_PHASE_DONE, 10*mib, 10*mib, 0)), failed},
	}
}

func TestPulls(t *testing.T) {
	o := &own{pulls: somePulls()}
	s := newOwnShell(t, o)
	s.davit(0, "", "pulls")
	s.has(s.out, `^IMAGE +AGE +LAYER +PHASE +BYTES +TOTAL +RATE\nreg/a:1 +5s +a{12} +done +1 MiB +1 MiB +-\n`+
		`reg/a:1 +5s +b{12} +downloading +2 MiB +10 MiB +3 MiB/s\nreg/b:1 +0s +- +resolving +- +- +-\n$`)
	s.davit(0, "", "pulls", "reg/a:1", "-o", "json")
	s.has(s.out, `"phase": "LAYER_PHASE_DOWNLOADING"`)
	s.davit(1, "", "pulls", "-w")
	s.has(s.out, `^reg/a:1 fetching\nreg/a:1 a{12} done 1 MiB / 1 MiB\nreg/a:1 b{12} downloading 2 MiB / 10 MiB 3 MiB/s\nreg/b:1 resolving\n`+
		`reg/a:1 b{12} done 10 MiB / 10 MiB\nreg/a:1 done, 5.\d+ s\nreg/b:1 failed, 5.\d+ s: no such; luck\n$`)
	s.has(s.errOut, `^davit: pulls: the runtime has ended it: it is stopping\n$`)
	s.davit(1, "", "pulls", "-w", "-o", "json")
	lines := strings.Split(strings.TrimSpace(s.out), "\n")
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a line of JSON: %s", line)
		}
	}
	if len(lines) != 2 {
		t.Errorf("%d lines", len(lines))
	}
	if want := []string{"", "reg/a:1", "", ""}; !slices.Equal(o.asked, want) {
		t.Errorf("asked for the pulls of %q, want %q", o.asked, want)
	}
}

// TestPullShowsLayers: without a terminal a layer that came has a line.
func TestPullShowsLayers(t *testing.T) {
	o := &own{pulls: somePulls()}
	s := newOwnShell(t, o)
	s.davit(0, "", "pull", "reg/a:1")
	s.has(s.out, `^sha256:110+\n$`)
	s.has(s.errOut, `^  layer      b{12}  10 MiB\n  image      reg/a:1  pulled +\d\S* m?s\n$`)
	o.pulls = nil // nothing is told: no fault
	s.davit(0, "", "pull", "reg/a:1")
	s.has(s.errOut, `^  image      reg/a:1  pulled +\d\S* m?s\n$`)
	o.pulls = somePulls()
	s.play(0, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: 'reg/c:1'}]")
	s.has(s.out, `\n  layer      b{12}  10 MiB\n  image      reg/c:1 `)
	// Of what is there already nothing will be told, so nothing is waited for.
	o.asked = nil
	s.play(0, "apiVersion: v1\nkind: Pod\nmetadata: {name: again}\nspec:\n  containers: [{name: c, image: 'reg/c:1'}]")
	s.has(s.out, `\n  image      reg/c:1  present`)
	if len(o.asked) > 0 {
		t.Errorf("asked for the pulls of %q", o.asked)
	}
}

func TestLoad(t *testing.T) {
	o := &own{}
	s := newOwnShell(t, o)
	archive := strings.Repeat("0123456789", 100_000)
	s.davit(0, archive, "image", "load")
	s.has(s.out, `^image reg/a:1, reg/b:1 loaded\nimage fedcba987654 loaded\n$`)
	if o.loaded.String() != archive {
		t.Errorf("%d bytes arrived of %d", o.loaded.Len(), len(archive))
	}
	file := filepath.Join(s.dir, "a.tar")
	if err := os.WriteFile(file, []byte(archive), 0o600); err != nil {
		t.Fatal(err)
	}
	s.davit(0, "", "image", "load", "-f", file, "-o", "json")
	s.has(s.out, `"names": \[\n +"reg/a:1",`)
	s.davit(1, "", "image", "load", "-f", file+".none")
	s.has(s.errOut, `^davit: load: open .*: no such file or directory\n$`)
	// What davitd says counts, not that it took no more.
	o.fail = status.Error(codes.InvalidArgument, "not an archive")
	s.davit(1, archive, "image", "load")
	s.has(s.errOut, `^davit: load: not an archive\n$`)
}

func TestSave(t *testing.T) {
	o := &own{saved: bytes.Repeat([]byte("x"), 1_234_567)}
	s := newOwnShell(t, o)
	file := filepath.Join(s.dir, "a.tar")
	s.davit(0, "", "image", "save", "reg/a:1", "reg/b:1", "-f", file)
	s.has(s.out, `^.*a.tar saved, 1.18 MiB\n$`)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, o.saved) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if r := o.request.(*imagev1.SaveRequest); !slices.Equal(r.Images, []string{"reg/a:1", "reg/b:1"}) {
		t.Errorf("request = %v", r)
	}
	s.davit(0, "", "image", "save", "reg/a:1")
	if s.out != string(o.saved) {
		t.Errorf("%d bytes to standard output", len(s.out))
	}
	s.davit(0, "", "image", "save", "reg/a:1", "-f", file, "-o", "json")
	s.has(s.out, `"bytes": 1234567\n`)
	s.davit(1, "", "image", "save", "reg/a:1", "-o", "json")
	s.has(s.errOut, `-o json needs -f FILE`)
	s.davit(0, "", "image", "save", "reg/a:1", "-f", "/dev/null")
	// One that breaks off leaves what was there.
	o.fail = status.Error(codes.Unknown, "the disk is gone")
	s.davit(1, "", "image", "save", "reg/a:1", "-f", file)
	s.has(s.errOut, `^davit: save: the disk is gone\n$`)
	entries, err := os.ReadDir(s.dir)
	if got, readErr := os.ReadFile(file); err != nil || readErr != nil || len(got) != len(o.saved) || len(entries) != 1 {
		t.Errorf("left: %v, %v; %d bytes, %v", entries, err, len(got), readErr)
	}
}

func TestImport(t *testing.T) {
	o := &own{imports: []*imagev1.ImportResponse{
		{Name: "reg/a:1", Image: &imagev1.LoadedImage{Id: "sha256:1", Names: []string{"reg/a:1"}}}, {Name: "reg/b:1", Error: "a blob is missing"},
	}}
	s := newOwnShell(t, o)
	s.davit(1, "", "image", "import", "containerd", "--namespace", "moby", "reg/a:1", "reg/b:1")
	s.has(s.out, `^image reg/a:1 imported\n$`)
	s.has(s.errOut, `^davit: import reg/b:1: a blob is missing\n$`)
	if r := o.request.(*imagev1.ImportRequest); r.ContainerdNamespace != "moby" || len(r.Images) != 2 || r.Store != imagev1.ForeignStore_FOREIGN_STORE_CONTAINERD {
		t.Errorf("request = %v", r)
	}
	o.imports = o.imports[:1]
	s.davit(0, "", "image", "import", "cri-o", "--from", "/x", "-o", "json")
	s.has(s.out, `^\{"name":"reg/a:1",.*\}\n$`)
	if r := o.request.(*imagev1.ImportRequest); r.Root != "/x" || r.Store != imagev1.ForeignStore_FOREIGN_STORE_CRIO {
		t.Errorf("request = %v", r)
	}
	s.davit(1, "", "image", "import", "docker")
	s.has(s.errOut, `^davit: import: docker is not known; containerd and cri-o are\n$`)
}

func TestStoreCheck(t *testing.T) {
	finding := &imagev1.CheckFinding{Subject: "layer sha256:1", Problem: "its bytes\nhave changed", Images: []string{"reg/a:1"}, Done: "it is fetched again"}
	summary := &imagev1.CheckResponse{Event: &imagev1.CheckResponse_Summary{Summary: &imagev1.CheckSummary{Layers: 3, Images: 2, Bytes: 5 << 20, Took: durationpb.New(time.Second)}}}
	o := &own{checks: []*imagev1.CheckResponse{{Event: &imagev1.CheckResponse_Progress{Progress: &imagev1.CheckProgress{Bytes: 1, TotalBytes: 2}}}, summary}}
	s := newOwnShell(t, o)
	s.davit(0, "", "store", "check", "--quick")
	s.has(s.out, `^3 layers of 2 images checked, 5 MiB read in 1.00 s: 0 damaged\n$`)
	if !o.request.(*imagev1.CheckRequest).Quick {
		t.Error("it was not quick")
	}
	o.checks = append([]*imagev1.CheckResponse{{Event: &imagev1.CheckResponse_Finding{Finding: finding}}}, o.checks...)
	s.davit(1, "", "store", "check")
	s.has(s.out, `^damaged  layer sha256:1: its bytes; have changed; of reg/a:1; it is fetched again\n3 layers`)
	s.davit(1, "", "store", "check", "-o", "json")
	s.has(s.out, `(?m)^\{"finding":\{"subject":"layer sha256:1",.*\}$`)
	o.checks = o.checks[:2]
	s.davit(1, "", "store", "check")
	s.has(s.errOut, `^davit: check: it was not finished\n$`)
}

func (o *own) DiskUsage(_ context.Context, _ *imagev1.DiskUsageRequest) (*imagev1.DiskUsageResponse, error) {
	return o.usage, nil
}

func TestDiskUsage(t *testing.T) {
	const mib = 1 << 20
	s := newOwnShell(t, &own{usage: &imagev1.DiskUsageResponse{
		Images: []*imagev1.ImageUsage{
			{Id: "sha256:0123456789abcdef", Bytes: 3 * mib},
			{Id: "sha256:1", Names: []string{"reg/a:1", "reg/b:1"}, Bytes: 5 * mib, SharedBytes: 2 * mib, Containers: 4, Pinned: true},
		},
		Layers:     []*imagev1.LayerUsage{{Id: "sha256:2222222222222", Bytes: mib, Images: 1, Kind: "directory"}, {Id: "sha256:3333333333333", Bytes: 5 * mib, Images: 2, Kind: "erofs", Mounted: true}},
		Writable:   []*imagev1.WritableUsage{{ContainerId: "c", Bytes: 4 * mib}},
		Other:      []*imagev1.OtherUsage{{What: "database", Bytes: 2 * mib}},
		FileSystem: &imagev1.FileSystem{Path: "/var/lib/davit/images", TotalBytes: 100 * mib, FreeBytes: 50 * mib},
	}})
	s.davit(0, "", "df")
	s.has(s.out, `^IMAGE +SIZE +SHARED +CONTAINERS +PINNED\n0123456789ab +3 MiB +0 B +0 +-\nreg/a:1 +5 MiB +2 MiB +4 +yes\n\n`+
		`WHAT +SIZE\n2 layers of 2 images +6 MiB\n1 writable layers +4 MiB\ndatabase +2 MiB\ntogether +12 MiB\nfree in /var/lib/davit/images +50 MiB of 100 MiB\n$`)
	s.davit(0, "", "df", "--layers")
	s.has(s.out, `\n3{12} +5 MiB +2 +erofs +yes\n2{12} +1 MiB +1 +directory +-\n`)
	s.davit(0, "", "df", "-o", "json")
	s.has(s.out, `"sharedBytes": "2097152"`)
}

func (o *own) Explain(_ context.Context, r *imagev1.ExplainRequest) (*imagev1.ExplainResponse, error) {
	o.request = r
	return o.explains, nil
}

func TestRegistryExplain(t *testing.T) {
	mirror := &imagev1.Endpoint{Url: "https://m.example/v2/library/a", Pull: true, Namespace: "docker.io",
		Settings: []*imagev1.Setting{{Name: `host."https://m.example".capabilities`, Value: `["pull"]`, From: "/etc/containerd/certs.d/docker.io/hosts.toml:3"}}}
	home := &imagev1.Endpoint{Url: "https://registry-1.docker.io/v2/library/a", Home: true, Pull: true, Resolve: true}
	route := &imagev1.Route{Image: "docker.io/library/a:latest", Short: &imagev1.Setting{Name: "aliases.a", Value: "docker.io/library/a", From: "/etc/containers/registries.conf:9"}, Endpoints: []*imagev1.Endpoint{mirror, home}}
	o := &own{explains: &imagev1.ExplainResponse{Routes: []*imagev1.Route{route}}}
	s := newOwnShell(t, o)
	s.davit(0, "", "registry", "explain", "a")
	want := `docker.io/library/a:latest
   by its short name: aliases.a = docker.io/library/a  (/etc/containers/registries.conf:9)
 1 https://m.example/v2/library/a  mirror, no tags, for docker.io
      host."https://m.example".capabilities = ["pull"]  (/etc/containerd/certs.d/docker.io/hosts.toml:3)
 2 https://registry-1.docker.io/v2/library/a  registry
`
	if s.out != want {
		t.Errorf("told\n%swant\n%s", s.out, want)
	}
	mirror.Probe = &imagev1.Probe{Error: "connection refused", Took: durationpb.New(2 * time.Millisecond)}
	home.Probe = &imagev1.Probe{Error: "401 Unauthorized"}
	s.davit(1, "", "registry", "explain", "a", "--probe", "--creds", "me:secret")
	s.has(s.out, `\n      fails: connection refused \(2ms\)\n`)
	if c := o.request.(*imagev1.ExplainRequest).Credentials; c.GetUsername() != "me" || c.GetPassword() != "secret" {
		t.Errorf("credentials = %v", c)
	}
	home.Probe = &imagev1.Probe{Digest: "sha256:7"}
	s.davit(0, "", "registry", "explain", "a", "--probe", "-o", "json")
	s.has(s.out, `"digest": "sha256:7"`)
	route.Endpoints, route.Blocked = nil, &imagev1.Setting{Name: "blocked", Value: "true", From: "/etc/containers/registries.conf:2"}
	s.davit(1, "", "registry", "explain", "a")
	s.has(s.out, `\n   blocked: blocked = true  \(/etc/containers/registries.conf:2\)\n$`)
}

// TestOwnCommandsElsewhere: a runtime that is not davit is named.
func TestOwnCommandsElsewhere(t *testing.T) {
	s := newShell(t)
	for _, args := range [][]string{
		{"pulls"}, {"pulls", "-w"}, {"df"}, {"store", "check"}, {"registry", "explain", "a"}, {"image", "load"}, {"image", "save", "a"},
		{"image", "save", "a", "-f", filepath.Join(s.dir, "a.tar")}, {"image", "import", "cri-o"},
		{"why"}, {"why", "a", "-c", "b"},
	} {
		s.davit(1, "some archive", args...)
		s.has(s.errOut, `^davit: [^:]+: this needs davitd, and the runtime at unix://\S+ is fake 1.2.3\n$`)
	}
	s.clean()
	s = newOwnShell(t, &own{})
	s.davit(1, "", "image", "bogus")
	s.has(s.errOut, `^davit: wrong arguments; use: davit image load\|save\|import \[flags\]\n$`)
	s.davit(1, "", "registry")
	s.has(s.errOut, `^davit: wrong arguments; use: davit registry explain`)
}
