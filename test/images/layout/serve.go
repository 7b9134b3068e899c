package layout

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Registry serves a Dir over plain HTTP on loopback, under any repository's
// name. It reads only.
type Registry struct {
	Host   string // "127.0.0.1:port"
	dir    Dir
	count  bool
	server *http.Server
	ended  chan error

	mu      sync.Mutex
	fetched map[digest.Digest]int64
}

// Serve starts a registry. With count it notes how many bytes of which blob it
// has sent, which costs it sendfile. Close ends it.
func Serve(dir Dir, count bool) (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Registry{Host: l.Addr().String(), dir: dir, count: count, ended: make(chan error, 1), fetched: map[digest.Digest]int64{}}
	r.server = &http.Server{Handler: r}
	go func() { r.ended <- r.server.Serve(l) }()
	return r, nil
}

// Close ends it.
func (r *Registry) Close() {
	_ = r.server.Close()
	<-r.ended
}

// Fetched returns how many bytes of each blob were sent since it was called last.
func (r *Registry) Fetched() map[digest.Digest]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	fetched := r.fetched
	r.fetched = map[digest.Digest]int64{}
	return fetched
}

// Size returns how large a blob is, 0 if there is none.
func (r *Registry) Size(id digest.Digest) int64 {
	info, err := os.Stat(r.dir.path(id))
	if err != nil {
		return 0
	}
	return info.Size()
}

// ServeHTTP answers what a client that pulls may ask.
//
// distribution-spec: pulling manifests, pulling blobs.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/v2/" {
		return
	}
	if _, ref, ok := strings.Cut(req.URL.Path, "/manifests/"); ok {
		r.manifest(w, req, ref)
		return
	}
	_, ref, _ := strings.Cut(req.URL.Path, "/blobs/")
	id, err := digest.Parse(ref)
	if err != nil {
		http.NotFound(w, req)
		return
	}
	if r.count && req.Method == http.MethodGet {
		w = &counting{ResponseWriter: w, registry: r, id: id}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	r.file(w, req, id)
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, ref string) {
	index, err := r.dir.index()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, m := range index.Manifests {
		if m.Annotations[imagespec.AnnotationRefName] == ref || m.Digest.String() == ref {
			w.Header().Set("Content-Type", m.MediaType)
			w.Header().Set("Docker-Content-Digest", m.Digest.String())
			r.file(w, req, m.Digest)
			return
		}
	}
	http.NotFound(w, req)
}

func (r *Registry) file(w http.ResponseWriter, req *http.Request, id digest.Digest) {
	f, err := os.Open(filepath.Clean(r.dir.path(id)))
	if err != nil {
		http.NotFound(w, req)
		return
	}
	defer f.Close()
	http.ServeContent(w, req, "", time.Time{}, f)
}

// counting has no ReadFrom: all bytes pass through Write.
type counting struct {
	http.ResponseWriter
	registry *Registry
	id       digest.Digest
}

// Write counts what the client was sent.
func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	c.registry.fetched[c.id] += int64(n)
	return n, err
}
