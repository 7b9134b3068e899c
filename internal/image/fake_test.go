package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A fakeRegistry serves what was put into it over real HTTP.
type fakeRegistry struct {
	*httptest.Server
	mu        sync.Mutex
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by "repository:tag" and "repository@digest"
	types     map[string]string // of manifests
	fetched   map[string]int    // blobs, how often from the first byte
	before    func(w http.ResponseWriter, r *http.Request) (done bool)
}

func newFakeRegistry(t testing.TB) *fakeRegistry {
	f := &fakeRegistry{
		blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}, fetched: map[string]int{},
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeRegistry) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	f.mu.Lock()
	defer f.mu.Unlock()
	if repo, ref, ok := strings.Cut(path, "/manifests/"); ok {
		key := repo + ":" + ref
		if strings.Contains(ref, ":") {
			key = repo + "@" + ref
		}
		body, ok := f.manifests[key]
		if !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", f.types[key])
		_, _ = w.Write(body)
		return
	}
	_, ref, _ := strings.Cut(path, "/blobs/")
	blob, ok := f.blobs[ref]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if r.Header.Get("Range") == "" {
		f.fetched[ref]++
	}
	f.mu.Unlock()
	defer f.mu.Lock()
	http.ServeContent(w, r, "", zeroTime, bytes.NewReader(blob))
}

func (f *fakeRegistry) blob(mediaType string, data []byte) imagespec.Descriptor {
	d := digest.FromBytes(data)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[d.String()] = data
	return imagespec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (f *fakeRegistry) manifest(repo, tag, mediaType string, v any) imagespec.Descriptor {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	d := digest.FromBytes(body)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range []string{repo + ":" + tag, repo + "@" + d.String()} {
		f.manifests[key], f.types[key] = body, mediaType
	}
	return imagespec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// image puts an image of the given layers (tar streams) there and returns its
// manifest and its ID.
func (f *fakeRegistry) image(repo, tag string, config imagespec.Image, layers ...[]byte) (imagespec.Descriptor, string) {
	m := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
	if config.OS == "" {
		config.OS, config.Architecture = "linux", "amd64"
	}
	config.RootFS = imagespec.RootFS{Type: "layers"}
	for i, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		switch i % 3 {
		case 0:
			m.Layers = append(m.Layers, f.blob(imagespec.MediaTypeImageLayerGzip, gzipped(l)))
		case 1:
			m.Layers = append(m.Layers, f.blob(imagespec.MediaTypeImageLayerZstd, zstded(l)))
		case 2:
			m.Layers = append(m.Layers, f.blob(imagespec.MediaTypeImageLayer, l))
		}
	}
	data, err := json.Marshal(config)
	if err != nil {
		panic(err)
	}
	m.Config = f.blob(imagespec.MediaTypeImageConfig, data)
	return f.manifest(repo, tag, imagespec.MediaTypeImageManifest, m), m.Config.Digest.String()
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(data)
	_ = z.Close()
	return b.Bytes()
}

func zstded(data []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer z.Close()
	return z.EncodeAll(data, nil)
}

// tarOf makes a tar stream of files: name → content; a name that ends in "/" is
// a directory with content as its mode, in octal, and a content of "-> x" a
// symbolic link to x.
func tarOf(files ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if strings.HasSuffix(files[i], "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
			if _, err := fmt.Sscanf(files[i+1], "%o", &h.Mode); err != nil {
				panic(err)
			}
		}
		if to, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, to
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = w.Write([]byte(files[i+1]))
		}
	}
	_ = w.Close()
	return b.Bytes()
}
