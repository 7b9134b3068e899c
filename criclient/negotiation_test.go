package criclient_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

var update = flag.Bool("update", false, "write the tables of docs/negotiation.md")

// What a server may be. The names are those of docs/negotiation.md.
const (
	isV1       = "v1"
	isV1alpha2 = "v1alpha2"
	isBoth     = "both"
	isNeither  = "neither" // gRPC, but no CRI
	isDown     = "down"    // no socket
	isCrashed  = "crashed" // a socket nobody listens on
	isBad      = "v1 bad"  // both, but v1 answers the probe with Internal
	isOldBad   = "old bad" // v1alpha2, which answers the probe with Internal
	isHung     = "hung"    // both, but v1 does not answer the probe
)

var serves = map[string]crifake.Serves{
	isV1: crifake.V1(), isV1alpha2: crifake.V1alpha2(), isBoth: crifake.Both(),
	isNeither: {}, isBad: crifake.Both(), isOldBad: crifake.V1alpha2(), isHung: crifake.Both(),
}

// What may come of it, in the words of docs/negotiation.md.
const (
	useV1       = "v1"
	useV1alpha2 = "v1alpha2"
	unavailable = "unavailable"
	lostToNone  = "lost"
	lostToV1    = "lost, v1 is there"
	lostToOld   = "lost, v1alpha2 is there"
	noVersion   = "none: v1 Unimplemented, v1alpha2 Unimplemented"
	noAnswer    = "none: v1 Unavailable"
	v1Bad       = "none: v1 Internal"
	oldBad      = "none: v1 Unimplemented, v1alpha2 Internal"
	v1Hung      = "none: v1 DeadlineExceeded"
)

// When a client settles again.
const (
	either = "either"
	off    = "off"
	on     = "on"
)

// TestNegotiation's rows are the first table of docs/negotiation.md: what the
// server is at first and after each restart, whether the client renegotiates,
// and what its calls come to in the end. Each row is tried with one socket for
// both services, and with two, for either service.
var rows = []struct {
	server      []string
	renegotiate string
	want        string
}{
	// First dial.
	{[]string{isV1}, either, useV1},
	{[]string{isV1alpha2}, either, useV1alpha2},
	{[]string{isBoth}, either, useV1},
	{[]string{isNeither}, either, noVersion},
	{[]string{isDown}, either, noAnswer},
	{[]string{isCrashed}, either, noAnswer},
	{[]string{isBad}, either, v1Bad},
	{[]string{isOldBad}, either, oldBad},
	{[]string{isHung}, either, v1Hung},

	// First dial again, nothing having been settled.
	{[]string{isDown, isV1}, either, useV1},
	{[]string{isCrashed, isV1alpha2}, either, useV1alpha2},
	{[]string{isNeither, isBoth}, either, useV1},
	{[]string{isBad, isV1alpha2}, either, useV1alpha2},
	{[]string{isDown, isNeither}, either, noVersion},

	// After a redial, as the kubelet.
	{[]string{isV1, isV1}, off, useV1},
	{[]string{isV1, isV1alpha2}, off, lostToOld},
	{[]string{isV1, isBoth}, off, useV1},
	{[]string{isV1, isNeither}, off, lostToNone},
	{[]string{isV1, isDown}, off, unavailable},
	{[]string{isV1, isCrashed}, off, unavailable},
	{[]string{isV1, isBad}, off, useV1},
	{[]string{isV1, isOldBad}, off, lostToNone}, // what there is does not answer
	{[]string{isV1, isHung}, off, useV1},
	{[]string{isV1alpha2, isV1}, off, lostToV1},
	{[]string{isV1alpha2, isV1alpha2}, off, useV1alpha2},
	{[]string{isV1alpha2, isBoth}, off, useV1alpha2},
	{[]string{isV1alpha2, isNeither}, off, lostToNone},
	{[]string{isV1alpha2, isDown}, off, unavailable},
	{[]string{isV1alpha2, isCrashed}, off, unavailable},
	{[]string{isV1alpha2, isBad}, off, useV1alpha2},
	{[]string{isV1alpha2, isOldBad}, off, useV1alpha2},
	{[]string{isV1alpha2, isHung}, off, useV1alpha2},
	{[]string{isBoth, isV1}, off, useV1},
	{[]string{isBoth, isV1alpha2}, off, lostToOld},
	{[]string{isBoth, isBoth}, off, useV1},
	{[]string{isBoth, isNeither}, off, lostToNone},
	{[]string{isBoth, isDown}, off, unavailable},
	{[]string{isBoth, isCrashed}, off, unavailable},
	{[]string{isBoth, isBad}, off, useV1},
	{[]string{isBoth, isOldBad}, off, lostToNone},
	{[]string{isBoth, isHung}, off, useV1},

	// After a redial, if the client renegotiates.
	{[]string{isV1, isV1}, on, useV1},
	{[]string{isV1, isV1alpha2}, on, useV1alpha2},
	{[]string{isV1, isBoth}, on, useV1},
	{[]string{isV1, isNeither}, on, noVersion},
	{[]string{isV1, isDown}, on, unavailable},
	{[]string{isV1, isCrashed}, on, unavailable},
	{[]string{isV1, isBad}, on, v1Bad},
	{[]string{isV1, isOldBad}, on, oldBad},
	{[]string{isV1, isHung}, on, v1Hung},
	{[]string{isV1alpha2, isV1}, on, useV1},
	{[]string{isV1alpha2, isV1alpha2}, on, useV1alpha2},
	{[]string{isV1alpha2, isBoth}, on, useV1},
	{[]string{isV1alpha2, isNeither}, on, noVersion},
	{[]string{isV1alpha2, isDown}, on, unavailable},
	{[]string{isV1alpha2, isCrashed}, on, unavailable},
	{[]string{isV1alpha2, isBad}, on, v1Bad},
	{[]string{isV1alpha2, isOldBad}, on, oldBad},
	{[]string{isV1alpha2, isHung}, on, v1Hung},
	{[]string{isBoth, isV1}, on, useV1},
	{[]string{isBoth, isV1alpha2}, on, useV1alpha2},
	{[]string{isBoth, isBoth}, on, useV1},
	{[]string{isBoth, isNeither}, on, noVersion},
	{[]string{isBoth, isDown}, on, unavailable},
	{[]string{isBoth, isCrashed}, on, unavailable},
	{[]string{isBoth, isBad}, on, v1Bad},
	{[]string{isBoth, isOldBad}, on, oldBad},
	{[]string{isBoth, isHung}, on, v1Hung},

	// After two redials.
	{[]string{isV1, isDown, isV1}, either, useV1},
	{[]string{isV1alpha2, isDown, isBoth}, off, useV1alpha2},
	{[]string{isV1alpha2, isDown, isBoth}, on, useV1},
	{[]string{isBoth, isDown, isV1alpha2}, off, lostToOld},
	{[]string{isBoth, isDown, isV1alpha2}, on, useV1alpha2},
	{[]string{isV1, isV1alpha2, isV1}, either, useV1}, // lost, then there again
	{[]string{isV1, isV1alpha2, isBoth}, off, useV1},
	{[]string{isV1alpha2, isV1, isBoth}, off, useV1alpha2},
	{[]string{isV1alpha2, isV1, isNeither}, off, lostToNone},
	{[]string{isV1, isNeither, isV1alpha2}, on, useV1alpha2},
}

func TestNegotiation(t *testing.T) {
	for i, row := range rows {
		for _, renegotiate := range []string{off, on} {
			if row.renegotiate != either && row.renegotiate != renegotiate {
				continue
			}
			for _, layout := range []string{"one socket", "runtime of two", "image of two"} {
				t.Run(fmt.Sprintf("%d/%s/%s/%s", i+1, strings.Join(row.server, "-"), renegotiate, layout), func(t *testing.T) {
					t.Parallel()
					runtime := newServer(t)
					image := runtime
					if layout != "one socket" {
						image = newServer(t)
					}
					c := runtime.client(t, image, renegotiate == on)
					var got [2]string
					if layout == "image of two" {
						runtime.become(t, isV1)
					}
					if layout == "runtime of two" {
						image.become(t, isV1)
					}
					for _, state := range row.server {
						switch layout {
						case "one socket":
							runtime.become(t, state, awaitLoss(t, c, criclient.RuntimeService), awaitLoss(t, c, criclient.ImageService))
						case "runtime of two":
							runtime.become(t, state, awaitLoss(t, c, criclient.RuntimeService))
						default:
							image.become(t, state, awaitLoss(t, c, criclient.ImageService))
						}
						got = outcome(t, c, runtime, image)
					}
					if layout != "image of two" && got[0] != row.want {
						t.Errorf("runtime service: %s; want %s", got[0], row.want)
					}
					if layout != "runtime of two" && got[1] != row.want {
						t.Errorf("image service: %s; want %s", got[1], row.want)
					}
					// The other one must not be touched by it.
					if layout == "image of two" && got[0] != useV1 || layout == "runtime of two" && got[1] != useV1 {
						t.Errorf("the other service: %q", got)
					}
				})
			}
		}
	}
}

// A server is a runtime that changes.
type server struct {
	*crifake.Runtime
	socket      *crifake.Socket
	runtimeOnly bool
	hung        bool
}

func newServer(t *testing.T) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri") // short: socket paths have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Runtime: crifake.New()}
	if s.socket, err = s.Listen(filepath.Join(dir, "cri.sock"), crifake.Serves{}); err != nil {
		t.Fatal(err)
	}
	s.socket.Vanish()
	t.Cleanup(func() { s.socket.Close(); os.RemoveAll(dir) })
	return s
}

// listen is newServer and become.
func listen(t *testing.T, state string) *server {
	t.Helper()
	s := newServer(t)
	s.become(t, state)
	return s
}

const (
	v1Version  = "/runtime.v1.RuntimeService/Version"
	v1FsInfo   = "/runtime.v1.ImageService/ImageFsInfo"
	oldVersion = "/runtime.v1alpha2.RuntimeService/Version"
	oldFsInfo  = "/runtime.v1alpha2.ImageService/ImageFsInfo"
)

func awaitLoss(t *testing.T, c *criclient.Client, s criclient.Service) func() {
	return func() { criclient.AwaitLoss(t, c, s) }
}

// become restarts the server as state; between is done while it is away.
func (s *server) become(t *testing.T, state string, between ...func()) {
	t.Helper()
	s.socket.Crash()
	for _, do := range between {
		do()
	}
	for _, probe := range []string{v1Version, v1FsInfo, oldVersion, oldFsInfo} {
		s.On(probe, nil)
	}
	s.hung = state == isHung
	broken := status.Error(codes.Internal, "server is not initialized yet")
	switch state {
	case isDown:
		s.socket.Vanish()
		return
	case isCrashed:
		s.start(t, crifake.V1())
		s.socket.Crash()
		return
	case isBad:
		s.Fail(v1Version, broken)
		s.Fail(v1FsInfo, broken)
	case isOldBad:
		s.Fail(oldVersion, broken)
		s.Fail(oldFsInfo, broken)
	case isHung:
		t.Cleanup(s.Hold(v1Version))
		t.Cleanup(s.Hold(v1FsInfo))
	}
	what, ok := serves[state]
	if !ok {
		t.Fatalf("no state %q", state)
	}
	if s.runtimeOnly {
		what.Image = nil
	}
	s.start(t, what)
}

func (s *server) start(t *testing.T, what crifake.Serves) {
	t.Helper()
	if err := s.socket.Return(what); err != nil {
		t.Fatal(err)
	}
}

func (s *server) options(image *server, renegotiate bool) criclient.Options {
	o := criclient.Options{Runtime: s.socket.Endpoint(), Renegotiate: renegotiate}
	if image != s {
		o.Image = image.socket.Endpoint()
	}
	return o
}

func (s *server) client(t *testing.T, image *server, renegotiate bool) *criclient.Client {
	t.Helper()
	c, err := criclient.New(s.options(image, renegotiate))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// outcome is what calls of the runtime and image service come to, in words.
func outcome(t *testing.T, c *criclient.Client, runtime, image *server) [2]string {
	t.Helper()
	return [2]string{
		words(t, c, criclient.RuntimeService, runtime, "ListPodSandbox", func(ctx context.Context) error {
			_, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		}),
		words(t, c, criclient.ImageService, image, "ListImages", func(ctx context.Context) error {
			_, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			return err
		}),
	}
}

func words(t *testing.T, c *criclient.Client, s criclient.Service, at *server, method string, call func(context.Context) error) string {
	t.Helper()
	before := len(at.Calls(method))
	_, statErr := os.Stat(at.socket.Path())
	ctx := t.Context()
	if at.hung {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		ctx = short
	}
	err := call(ctx)
	// A connection that was refused is tried again after some 100 ms; until
	// then calls fail with what was wrong before.
	for end := time.Now().Add(20 * time.Second); errors.Is(err, criclient.ErrUnavailable) && statErr == nil && at.socket.Up() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		err = call(ctx)
	}
	calls := at.Calls(method)[before:]
	var none *criclient.NegotiationError
	var lost *criclient.VersionLostError
	settled := c.Choice(s)
	switch {
	case err == nil:
		if len(calls) != 1 || settled == nil || settled.Version != calls[0].Version {
			t.Errorf("%s was called %d times, in %v; settled is %v", method, len(calls), calls, settled)
			return "confused"
		}
		return string(settled.Version)
	case len(calls) != 0:
		t.Errorf("%s failed by %v, but arrived", method, err)
		return "confused"
	case errors.As(err, &lost):
		text := "lost"
		for _, a := range lost.Answers {
			if a.Err == nil {
				text += fmt.Sprintf(", %s is there", a.Version)
			}
		}
		return text
	case settled != nil && errors.Is(err, criclient.ErrUnavailable):
		return "unavailable"
	case errors.As(err, &none):
		var said []string
		for _, a := range none.Answers {
			said = append(said, fmt.Sprintf("%s %s", a.Version, status.Code(a.Err)))
		}
		return "none: " + strings.Join(said, ", ")
	}
	t.Errorf("%s failed by %v", method, err)
	return "confused"
}

// TestNegotiationDocument compares the tables with docs/negotiation.md; with
// -update it writes them there.
func TestNegotiationDocument(t *testing.T) {
	const file, begin, end = "../docs/negotiation.md", "<!-- rows of TestNegotiation -->\n", "<!-- end -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var first, second strings.Builder
	fmt.Fprint(&first, "| # | the server is, after each start | renegotiation | what calls come to |\n|---|---|---|---|\n")
	for i, r := range rows {
		fmt.Fprintf(&first, "| %d | %s | %s | %s |\n", i+1, strings.Join(r.server, " → "), r.renegotiate, r.want)
	}
	fmt.Fprint(&second, "| runtime endpoint | image endpoint | runtime service | image service | Dial |\n|---|---|---|---|---|\n")
	for _, r := range imageRows {
		dial := "a client"
		if strings.HasPrefix(r.runtimeWant, "none") || strings.HasPrefix(r.imageWant, "none") {
			dial = "an error"
		}
		fmt.Fprintf(&second, "| %s | %s | %s | %s | %s |\n", r.runtime, r.image, r.runtimeWant, r.imageWant, dial)
	}
	var third strings.Builder
	fmt.Fprint(&third, "| the server is | after a restart | renegotiation | runtime service | image service |\n|---|---|---|---|---|\n")
	for _, r := range goingRows {
		fmt.Fprintf(&third, "| %s | %s | %s | %s | %s |\n", r.server, r.after, r.renegotiate, r.runtimeWant, r.imageWant)
	}
	got := string(text)
	for _, table := range []struct{ begin, rows string }{
		{begin, first.String()},
		{strings.Replace(begin, "TestNegotiation", "TestImageEndpoint", 1), second.String()},
		{strings.Replace(begin, "TestNegotiation", "TestImageServiceGoes", 1), third.String()},
	} {
		head, rest, ok := strings.Cut(got, table.begin)
		_, tail, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s lacks the lines %q and %q", file, table.begin, end)
		}
		got = head + table.begin + table.rows + end + tail
	}
	switch {
	case got == string(text):
	case *update:
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the tables of %s are not those of this test; go test ./criclient -run Document -update writes them", file)
	}
}

// Every restart from a state with a version to any other is in the table.
func TestNegotiationIsWhole(t *testing.T) {
	for _, before := range []string{isV1, isV1alpha2, isBoth} {
		for _, now := range []string{isV1, isV1alpha2, isBoth, isNeither, isDown, isCrashed, isBad, isOldBad, isHung} {
			for _, renegotiate := range []string{off, on} {
				n := 0
				for _, r := range rows {
					if slices.Equal(r.server, []string{before, now}) && r.renegotiate == renegotiate {
						n++
					}
				}
				if n != 1 {
					t.Errorf("%s → %s, %s: %d rows", before, now, renegotiate, n)
				}
			}
		}
	}
}
