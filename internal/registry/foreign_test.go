package registry

import (
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// fetchAt fetches a blob, with its descriptor's urls, asking again as a pull does.
func fetchAt(r *Repository, data []byte, urls ...string) ([]byte, error) {
	d := descriptor(data)
	d.URLs = urls
	for {
		blob, err := r.Blob(context.Background(), d)
		if err != nil {
			return nil, err
		}
		got, err := io.ReadAll(blob)
		again := err != nil && r.Again(blob, d.Digest, err)
		_ = blob.Close()
		if !again {
			return got, err
		}
	}
}

// A blob that the registry has not got is sought where its descriptor says, in
// order, by the same rules as anything; never with what the registry was given.
func TestForeign(t *testing.T) {
	foreign := []byte("a layer that must not be distributed")
	var leaked, asked atomic.Int32
	at := func(sends []byte) *httptest.Server {
		return serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			asked.Add(1)
			if r.Header.Get("Authorization") != "" {
				leaked.Add(1)
			}
			if r.URL.Path != "/layers/1" || r.URL.RawQuery != "sig=a%2Fb" {
				http.NotFound(w, r)
			} else if sends == nil {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
			} else {
				_, _ = w.Write(sends)
			}
			return true
		})
	}
	const path = "/layers/1?sig=a%2Fb"
	good, liar, closed := at(foreign), at(bytes.ToUpper(foreign)), at(nil)
	home := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	absent := good.URL + "/absent"
	for _, c := range []struct {
		name string
		urls []string
		want string // of the error
		kind fault.Kind
	}{
		{"the first", []string{good.URL + path}, "", 0},
		{"the second", []string{absent, good.URL + path}, "", 0},
		{"the first lies", []string{liar.URL + path, good.URL + path}, "", 0},
		{"all lie", []string{liar.URL + path}, "other content", fault.Unknown},
		{"nowhere", []string{absent}, "before that: " + hostOf(home), fault.NotFound},
		{"no place", nil, hostOf(home), fault.NotFound},
		{"not let in", []string{closed.URL + path}, "refuses anonymous access", fault.Denied},
		{"without TLS", []string{"http://layers.example/1"}, "without TLS", fault.Unknown},
		{"with a password", []string{strings.Replace(good.URL, "http://", "http://ann:s3cret@", 1) + path}, "unusable place", fault.Unknown},
		{"a file", []string{"file:///etc/passwd"}, "unusable place", fault.Unknown},
	} {
		r := repository(t, Config{}, hostOf(home), Auth{Username: "ann", Password: "s3cret"})
		data, err := fetchAt(r, foreign, c.urls...)
		if c.want != "" {
			check(t, err, c.kind, c.want)
			if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "sig=") {
				t.Errorf("%s: a secret in %v", c.name, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(data, foreign) {
			t.Errorf("%s: %q, %v", c.name, data, err)
		}
	}
	if leaked.Load() > 0 {
		t.Error("credentials of the registry's went elsewhere")
	}
	asked.Store(0)
	r := repository(t, Config{}, hostOf(home), Auth{Username: "ann", Password: "s3cret"})
	if data, err := fetchAt(r, content, good.URL+path); err != nil || !bytes.Equal(data, content) || asked.Load() > 0 {
		t.Errorf("what the registry has: %d bytes, %v, asked elsewhere %d times", len(data), err, asked.Load())
	}
}

// The places of layers are reached by the same proxies and authorities as registries.
func TestForeignTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(handler(nil))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	home := serve(t, func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true })
	d := descriptor(content)
	d.URLs = []string{s.URL + "/v2/a/b/blobs/" + d.Digest.String()}
	for ok, config := range map[bool]route.Host{true: {CAFile: ca}, false: {}} {
		config := withHosts(map[string]route.Host{hostOf(s): config})
		var through []string
		config.Proxy = func(u *url.URL) (*url.URL, error) { through = append(through, u.Host); return nil, nil }
		_, err := fetchOf(repository(t, config, hostOf(home), Auth{}), d)
		if (err == nil) != ok || !ok && !strings.Contains(err.Error(), "certificate") {
			t.Errorf("trusted %v: %v", ok, err)
		}
		if last := through[len(through)-1]; last != hostOf(s) {
			t.Errorf("no proxy was sought for it: %v", through)
		}
	}
}

func fetchOf(r *Repository, d imagespec.Descriptor) ([]byte, error) {
	blob, err := r.Blob(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}
