package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// partial answers a request for a range as it should be; ok is false if it was
// for the whole.
func partial(w http.ResponseWriter, r *http.Request, data []byte) (from, to int, ok bool) {
	to = len(data) - 1
	n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	if n == 0 {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		return 0, to, false
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
	w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
	w.WriteHeader(http.StatusPartialContent)
	return from, to, true
}

// eightMB is a blob of 8 MiB without repetitions of 64 KiB.
var eightMB = func() []byte {
	b := make([]byte, 8<<20)
	for i := range b {
		b[i] = byte(i*7 + i>>13)
	}
	return b
}()

// resets serves data and ends each connection after so many bytes.
func resets(t *testing.T, data []byte, every int, connections *atomic.Int32) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connections.Add(1)
		from, to, _ := partial(w, r, data)
		to = min(to, from+every-1)
		_, _ = w.Write(data[from : to+1])
		if to < len(data)-1 {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func fetchData(r *Repository, data []byte) ([]byte, error) {
	blob, err := r.Blob(context.Background(), descriptor(data))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

func descriptor(data []byte) imagespec.Descriptor {
	return imagespec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// A registry that resets connections now and then costs a request each time;
// one that does nothing else is given up.
func TestResets(t *testing.T) {
	for _, c := range []struct {
		every       int
		ok          bool
		connections int32
	}{
		{512 << 10, true, 16},
		{64 << 10, false, freeConnections + 8}, // 64 KiB each, 256 KiB on average would do
	} {
		var connections atomic.Int32
		s := resets(t, eightMB, c.every, &connections)
		data, err := fetchData(repository(t, Config{}, hostOf(s), Auth{}), eightMB)
		if (err == nil) != c.ok || c.ok && !bytes.Equal(data, eightMB) || connections.Load() > c.connections {
			t.Errorf("every %d bytes: %d bytes after %d connections, %v", c.every, len(data), connections.Load(), err)
		}
		if !c.ok {
			check(t, err, fault.Unknown, "^RegistryUnavailable: ", "the connection broke", "of repository a/b")
		}
	}
}

func TestTooManyRequests(t *testing.T) {
	for _, c := range []struct {
		refusals int32
		after    string
		ok       bool
		requests int32
	}{
		{4, "", true, 5},
		{1000, "", false, patientTries},
		{2, "0", true, 3},
		{1, time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat), true, 2},
		{1, "a while", true, 2},
		{1000, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), false, 1},
	} {
		var requests atomic.Int32
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
			if requests.Add(1) > c.refusals {
				return false
			}
			if c.after != "" {
				w.Header().Set("Retry-After", c.after)
			}
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		_, err := fetch(repository(t, Config{}, hostOf(s), Auth{}))
		if (err == nil) != c.ok || requests.Load() != c.requests {
			t.Errorf("%+v: %d requests, %v", c, requests.Load(), err)
		}
		if !c.ok {
			check(t, err, fault.Unknown, "^RegistryUnavailable: 127.0.0.1:", "429")
		}
	}
}

// When a host asks one layer to come back later, all leave it alone.
func TestAllLeaveAlone(t *testing.T) {
	var first atomic.Pointer[time.Time]
	var early atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		now := time.Now()
		if first.CompareAndSwap(nil, &now) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		if now.Sub(*first.Load()) < time.Second {
			early.Add(1)
		}
		return false
	})
	r := repository(t, Config{}, hostOf(s), Auth{})
	done := make(chan error)
	go func() {
		_, err := fetch(r)
		done <- err
	}()
	for r.endpoints[0].host.quiet.Load() == 0 {
		time.Sleep(time.Millisecond) // for the answer to be read
	}
	_, err := fetch(r)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err != nil || early.Load() != 0 {
		t.Errorf("%d requests too early, %v", early.Load(), err)
	}
}

func TestLies(t *testing.T) {
	half := len(content) / 2
	for _, c := range []struct {
		name     string
		status   int
		header   map[string]string
		body     []byte
		texts    []string
		received int // bytes of each answer that are taken at most
	}{
		{"a larger size", 200, map[string]string{"Content-Length": "600000"}, nil, []string{"has 600000 bytes", "says 524288"}, 1 << 20},
		{"an endless body", 200, nil, nil, []string{"other content"}, 1 << 20},
		{"a range nobody asked for", 206, map[string]string{"Content-Range": "bytes 0-524287/524288"}, content, []string{"from byte 0 on", "bytes 0-524287"}, 1 << 20},
		{"gzip on top", 200, map[string]string{"Content-Encoding": "gzip"}, content[:1000], []string{"has 1000 bytes"}, 1 << 20},
	} {
		var sent atomic.Int64
		s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			for k, v := range c.header {
				w.Header().Set(k, v)
			}
			w.WriteHeader(c.status)
			if c.body != nil {
				_, _ = w.Write(c.body)
				return true
			}
			for r.Context().Err() == nil {
				n, err := w.Write(make([]byte, 32<<10))
				if sent.Add(int64(n)); err != nil {
					return true
				}
			}
			return true
		})
		_, err := fetch(repository(t, Config{}, hostOf(s), Auth{}))
		check(t, err, fault.Unknown, append(c.texts, "repository a/b")...)
		s.Close() // waits for the handler
		if sent.Load() > 32<<20 {
			t.Errorf("%s: %d bytes were taken", c.name, sent.Load())
		}
	}
	for name, lie := range map[string]string{
		"later":               fmt.Sprintf("bytes %d-%d/%d", half+1, len(content)-1, len(content)),
		"of another size":     fmt.Sprintf("bytes %d-%d/%d", half, len(content)-1, len(content)+1),
		"without an end":      fmt.Sprintf("bytes %d-/%d", half, len(content)),
		"of another unit":     fmt.Sprintf("lines %d-%d/%d", half, len(content)-1, len(content)),
		"negative":            "bytes -1-5/524288",
		"backwards":           fmt.Sprintf("bytes %d-%d/%d", half, half-1, len(content)),
		"beyond numbers":      "bytes 99999999999999999999-99999999999999999999/99999999999999999999",
		"before, and no more": "bytes 0-10/524288",
		"of other length":     fmt.Sprintf("bytes %d-%d/%d", half, len(content)-2, len(content)),
		"":                    "",
	} {
		var broken atomic.Bool
		s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			if !broken.CompareAndSwap(false, true) {
				w.Header().Set("Content-Range", lie)
				w.Header().Set("Content-Length", fmt.Sprint(len(content)-half))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(content[half:])
				return true
			}
			abort(w, content[:half], len(content))
			return true
		})
		if _, err := fetch(repository(t, Config{}, hostOf(s), Auth{})); err == nil || !strings.Contains(err.Error(), "of repository a/b") {
			t.Errorf("a range %s: %v", name, err)
		}
	}
	// What comes from before, truly, is passed over.
	var broken atomic.Bool
	s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if broken.CompareAndSwap(false, true) {
			abort(w, content[:half], len(content))
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", half/2))
		return false
	})
	if data, err := fetch(repository(t, Config{}, hostOf(s), Auth{})); err != nil || !bytes.Equal(data, content) {
		t.Errorf("a range from before: %d bytes, %v", len(data), err)
	}
}

// Headers that come byte by byte have the stall limit, too, and so do the
// reasons of a refusal; headers without end have a size.
func TestSlowAndEndlessHeaders(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"slow": "HTTP/1.1 200 OK\r\n", "endless": "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 400)} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.WriteString(conn, text)
					for {
						if _, err := io.WriteString(conn, "X"); err != nil {
							return
						}
						time.Sleep(10 * time.Millisecond) // a slow sender
					}
				}()
			}
		}()
		start := time.Now()
		_, err = fetch(repository(t, impatient, l.Addr().String(), Auth{}))
		check(t, err, fault.Unknown, "^RegistryUnavailable: 127.0.0.1:")
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
}

func TestRedirects(t *testing.T) {
	var seen atomic.Pointer[http.Header]
	elsewhere := serve(t, func(_ http.ResponseWriter, r *http.Request) bool {
		seen.Store(&r.Header)
		return false
	})
	dir := t.TempDir()
	for _, c := range []struct{ name, to, text string }{
		{"in circles", "/self", "stopped after 10 redirects"},
		{"to another host", elsewhere.URL, ""},
		{"to nowhere", "http://127.0.0.1:1", "refused"},
		{"to a file", "file:///etc/passwd", "unsupported protocol scheme"},
		{"with a signature", "http://127.0.0.1:1/x?X-Signature=s3cret", "refused"},
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			to := c.to
			if strings.HasSuffix(to, ":1") || to == elsewhere.URL {
				to += r.URL.Path
			}
			if to == "/self" {
				to = r.URL.String()
			}
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return true
		})
		write(t, dir, hostOf(s), "server = \""+s.URL+"\"\n[header]\nAuthorization = \"Basic s3cret\"\nX-Secret = \"s3cret\"\n")
		_, err := fetch(repository(t, Config{Route: route.Config{HostsDirs: []string{dir}}}, hostOf(s), Auth{}))
		if c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("a secret in %v", err)
		}
	}
	if h := *seen.Load(); h.Get("Authorization")+h.Get("X-Secret") != "" || h.Get("User-Agent") != "davit" {
		t.Errorf("sent on: %v", h)
	}
}

// A mirror's wrong content is noticed at the end; then it is another's turn.
func TestMirrorThatLies(t *testing.T) {
	wrong := bytes.Clone(content)
	wrong[len(wrong)-1]++
	var asked atomic.Int32
	mirror := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			asked.Add(1)
			_, _ = w.Write(wrong)
		}
		return isBlob(r)
	})
	s := serve(t, nil)
	r := repository(t, withHosts(map[string]route.Host{hostOf(s): {Endpoints: []string{mirror.URL}}}), hostOf(s), Auth{})
	_, err := fetch(r)
	check(t, err, fault.Unknown, "^"+hostOf(mirror), "other content")
	if !r.Elsewhere(err, digest.FromBytes(content)) {
		t.Error("there is a registry left to ask")
	}
	if data, err := fetch(r); err != nil || !bytes.Equal(data, content) || asked.Load() != 1 {
		t.Errorf("again: %d bytes, %v; the mirror was asked %d times", len(data), err, asked.Load())
	}
	if data, err := r.Config(context.Background(), descriptor(content)); err != nil || !bytes.Equal(data, content) {
		t.Errorf("as a configuration: %d bytes, %v", len(data), err)
	}
	s.Close()
	if r.Elsewhere(io.ErrUnexpectedEOF, "") {
		t.Error("not every error is of content")
	}
}

// A bomb ends where the limit of a layer is, having cost next to nothing.
func TestGzipBomb(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 16 {
		_, _ = z.Write(make([]byte, 1<<20))
	}
	_ = z.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bomb.Bytes()) }))
	defer s.Close()
	blob, err := repository(t, Config{}, hostOf(s), Auth{}).Blob(context.Background(), descriptor(bomb.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	tar, err := layer.NewReader(blob, digest.FromString("whatever"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer tar.Close()
	n, err := io.Copy(io.Discard, tar)
	check(t, err, fault.Exhausted, "more than the 1048576 bytes")
	if n > 1<<20 {
		t.Errorf("%d bytes came out", n)
	}
}

// A mirror that does not answer holds up one request, not one for each layer.
func TestDownOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	dead := serve(t, func(_ http.ResponseWriter, r *http.Request) bool {
		asked.Add(1)
		<-r.Context().Done()
		return true
	})
	s := serve(t, nil)
	config := withHosts(map[string]route.Host{hostOf(s): {Endpoints: []string{dead.URL}}})
	config.Stall = impatient.Stall
	r := repository(t, config, hostOf(s), Auth{})
	for range 3 {
		if _, err := fetch(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Manifest(context.Background(), "1"); err != nil || asked.Load() != 1 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
}

func named(t *testing.T, ref string) reference.Named {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes 0-1/2", "bytes 5-9/*", "bytes */7", "bytes 9-1/3", "bytes 1-2/99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if r, ok := parseRange(value); ok && (r.from < 0 || r.to < r.from || r.total >= 0 && r.total <= r.to) {
			t.Errorf("%q: %+v", value, r)
		}
	})
}
