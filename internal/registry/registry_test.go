package registry

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

var content = bytes.Repeat([]byte("0123456789abcdef"), 32<<10) // 512 KiB

// serve starts a registry with one manifest, a/b:1, and one blob, content.
// misbehave may answer a request itself.
func serve(t *testing.T, misbehave func(w http.ResponseWriter, r *http.Request) bool) *httptest.Server {
	s := httptest.NewServer(handler(misbehave))
	t.Cleanup(s.Close)
	return s
}

func handler(misbehave func(w http.ResponseWriter, r *http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case misbehave != nil && misbehave(w, r):
		case r.URL.Path == "/v2/a/b/manifests/1" || r.URL.Path == "/v2/a/b/manifests/"+digest.FromString(ociManifest).String():
			_, _ = io.WriteString(w, ociManifest)
		case r.URL.Path == "/v2/a/b/blobs/"+digest.FromBytes(content).String():
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		default:
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not\nhere"}]}`, http.StatusNotFound)
		}
	})
}

func hostOf(s *httptest.Server) string {
	_, host, _ := strings.Cut(s.URL, "://")
	return host
}

// impatient is for registries that stall. It leaves a busy machine time for
// what is to succeed.
var impatient = Config{Stall: 1500 * time.Millisecond}

func repository(t *testing.T, config Config, host string, auth Auth) *Repository {
	t.Helper()
	c := New(config)
	c.retryDelay = time.Millisecond
	t.Cleanup(c.Close)
	named, err := reference.ParseNormalizedNamed(host + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Repository(named, auth)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fetch(r *Repository) ([]byte, error) {
	blob, err := r.Blob(context.Background(), imagespec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))})
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// abort ends a connection in the middle of an answer.
func abort(w http.ResponseWriter, sent []byte, length int) {
	w.Header().Set("Content-Length", fmt.Sprint(length))
	_, _ = w.Write(sent)
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func TestFetch(t *testing.T) {
	s := serve(t, nil)
	r := repository(t, Config{}, hostOf(s), Auth{})
	m, err := r.Manifest(context.Background(), "1")
	if err != nil || m.Digest != digest.FromString(ociManifest) || len(m.Layers) != 1 {
		t.Errorf("%+v %v", m, err)
	}
	if _, err := r.Manifest(context.Background(), m.Digest.String()); err != nil {
		t.Error(err)
	}
	data, err := fetch(r)
	if err != nil || !bytes.Equal(data, content) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	_, err = r.Manifest(context.Background(), "2")
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "manifest 2 of repository a/b (MANIFEST_UNKNOWN not here)") {
		t.Errorf("an absent tag: %v", err)
	}
}

// A broken connection costs what was not received, and no more.
func TestResume(t *testing.T) {
	var ranges []string
	const piece = 100 << 10
	s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) || len(ranges) >= 4 {
			return false
		}
		ranges = append(ranges, r.Header.Get("Range"))
		from := 0
		if r.Header.Get("Range") != "" {
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
			w.Header().Set("Content-Length", fmt.Sprint(len(content)-from))
			w.WriteHeader(http.StatusPartialContent)
		}
		abort(w, content[from:min(from+piece, len(content))], len(content)-from)
		return true
	})
	data, err := fetch(repository(t, Config{}, hostOf(s), Auth{}))
	if err != nil || !bytes.Equal(data, content) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if len(ranges) != 4 || ranges[0] != "" || ranges[1] != fmt.Sprintf("bytes=%d-", piece) {
		t.Errorf("asked for %q", ranges)
	}
}

func TestResumeWithoutRanges(t *testing.T) {
	var broken atomic.Bool
	s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) && broken.CompareAndSwap(false, true) {
			abort(w, content[:70000], len(content))
		}
		r.Header.Del("Range")
		return false
	})
	data, err := fetch(repository(t, Config{}, hostOf(s), Auth{}))
	if err != nil || !bytes.Equal(data, content) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestTrouble(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	wrong := bytes.Clone(content)
	wrong[7] = 'x'
	for _, c := range []struct {
		name      string
		misbehave func(w http.ResponseWriter, r *http.Request) bool
		kind      fault.Kind
		texts     []string
		requests  int32
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, fault.Unknown, []string{"^RegistryUnavailable: 127.0.0.1:", "500"}, tries},
		{"403", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, fault.Denied, []string{"127.0.0.1:", "repository a/b"}, 1},
		{"429 for too long", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, fault.Unknown, []string{"^RegistryUnavailable: ", "1h0m0s"}, 1},
		{"418", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusTeapot)
			return true
		}, fault.Unknown, []string{"418"}, 1},
		{"no headers", func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		}, fault.Unknown, []string{"^RegistryUnavailable: "}, 1},
		{"always cut off", func(w http.ResponseWriter, _ *http.Request) bool {
			abort(w, content[:1000], len(content))
			return true
		}, fault.Unknown, []string{"^RegistryUnavailable: ", digest.FromBytes(content).String()}, tries},
		{"stalls", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, fault.Unknown, []string{"^RegistryUnavailable: ", "stalled", "of 524288"}, tries},
		{"trickles", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			for r.Context().Err() == nil {
				_, _ = w.Write(content[:1])
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond) // a slow sender
			}
			return true
		}, fault.Unknown, []string{"^RegistryUnavailable: ", "stalled"}, tries},
		{"other content", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(wrong)
			return true
		}, fault.Unknown, []string{"^127.0.0.1:", "other content", digest.FromBytes(content).String(), digest.FromBytes(wrong).String()}, 1},
		{"too short", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(content[:1000])
			return true
		}, fault.Unknown, []string{"has 1000 bytes", "says 524288"}, 1},
		{"401 forever", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, fault.Denied, []string{"repository a/b"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if slices.Contains([]string{"500", "no headers", "always cut off", "stalls", "trickles"}, c.name) {
				t.Parallel() // they wait
			}
			var requests atomic.Int32
			s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
				requests.Add(1)
				return c.misbehave(w, r)
			})
			_, err := fetch(repository(t, impatient, hostOf(s), Auth{}))
			check(t, err, c.kind, c.texts...)
			if requests.Load() != c.requests {
				t.Errorf("%d requests, want %d", requests.Load(), c.requests)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		_, err := repository(t, Config{}, closed.Addr().String(), Auth{}).Manifest(context.Background(), "1")
		check(t, err, fault.Unknown, "^RegistryUnavailable: 127.0.0.1:", "refused")
	})
	t.Run("no such host", func(t *testing.T) {
		_, err := repository(t, Config{}, "registry.invalid", Auth{}).Manifest(context.Background(), "1")
		check(t, err, fault.Unknown, "^RegistryUnavailable: registry.invalid")
	})
	t.Run("manifest of another digest", func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = io.WriteString(w, ociIndex)
			return true
		})
		_, err := repository(t, Config{}, hostOf(s), Auth{}).Manifest(context.Background(), d1)
		check(t, err, fault.Unknown, d1, digest.FromString(ociIndex).String())
	})
	t.Run("trickling manifest", func(t *testing.T) {
		t.Parallel()
		s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		})
		_, err := repository(t, impatient, hostOf(s), Auth{}).Manifest(context.Background(), "1")
		check(t, err, fault.Unknown, "^RegistryUnavailable: 127.0.0.1:", "manifest 1")
	})
	t.Run("endless manifest", func(t *testing.T) {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
			for {
				if _, err := w.Write(content); err != nil {
					return true
				}
			}
		})
		_, err := repository(t, Config{}, hostOf(s), Auth{}).Manifest(context.Background(), "1")
		check(t, err, fault.Unknown, "larger than")
	})
}

// check requires a kind and texts; "^" at the beginning of one means there.
func check(t *testing.T, err error, kind fault.Kind, texts ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("kind %v, want %v: %v", fault.KindOf(err), kind, err)
	}
	for _, text := range texts {
		start, anchored := strings.CutPrefix(text, "^")
		if err == nil || !strings.Contains(err.Error(), start) || (anchored && !strings.HasPrefix(err.Error(), start)) {
			t.Errorf("no %q in: %v", text, err)
		}
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	var at []time.Time
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
		if at = append(at, time.Now()); len(at) > 1 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	if _, err := fetch(repository(t, Config{}, hostOf(s), Auth{})); err != nil {
		t.Fatal(err)
	}
	if len(at) != 2 || at[1].Sub(at[0]) < time.Second {
		t.Errorf("asked at %v", at)
	}
}

func TestCancel(t *testing.T) {
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
	_, err := repository(t, Config{Stall: time.Minute}, hostOf(s), Auth{}).Manifest(ctx, "1")
	if !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

func TestMirrors(t *testing.T) {
	var direct, mirrored atomic.Int32
	s := serve(t, func(_ http.ResponseWriter, _ *http.Request) bool { direct.Add(1); return false })
	down := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	mirror := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		mirrored.Add(1)
		if r.Header.Get("Authorization") != "" {
			t.Error("a mirror was sent credentials")
		}
		rest, ok := strings.CutPrefix(r.URL.Path, "/cache/")
		if !ok || r.URL.Query().Get("ns") != hostOf(s) {
			w.WriteHeader(http.StatusTeapot)
			return true
		}
		r.URL.Path = "/" + rest
		return false
	})
	config := withHosts(map[string]route.Host{hostOf(s): {Endpoints: []string{hostOf(down), mirror.URL + "/cache/"}}})
	r := repository(t, config, hostOf(s), Auth{Username: "ann", Password: "s3cret"})
	if _, err := r.Manifest(context.Background(), "1"); err != nil {
		t.Error(err)
	}
	if data, err := fetch(r); err != nil || !bytes.Equal(data, content) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if direct.Load() != 0 || mirrored.Load() != 2 {
		t.Errorf("%d requests to the registry, %d to the mirror", direct.Load(), mirrored.Load())
	}
	mirror.Close()
	if data, err := fetch(r); err != nil || !bytes.Equal(data, content) || direct.Load() == 0 {
		t.Errorf("without its mirrors: %d bytes, %v", len(data), err)
	}
	_, err := r.Manifest(context.Background(), "2")
	check(t, err, fault.NotFound, "^"+hostOf(s), "mirrors", "502")
}

func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(handler(nil))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	host := hostOf(s)
	for _, c := range []struct {
		name   string
		config route.Host
		ok     bool
	}{
		{"certificate given", route.Host{CAFile: ca}, true},
		{"not verified", route.Host{SkipVerify: true}, true},
		{"plain http to a TLS port", route.Host{}, false},
	} {
		r := repository(t, withHosts(map[string]route.Host{host: c.config}), host, Auth{})
		if _, err := r.Manifest(context.Background(), "1"); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r := repository(t, withHosts(map[string]route.Host{"localhost": {Endpoints: []string{s.URL}}}), "localhost", Auth{})
	_, err := r.Manifest(context.Background(), "1")
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
}

// write writes a host's hosts.toml below dir.
func write(t *testing.T, dir, host, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func withHosts(hosts map[string]route.Host) Config { return Config{Route: route.Config{Hosts: hosts}} }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
