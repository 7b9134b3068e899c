package testkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// A File is one entry of a layer. Linkname makes it a symbolic link, or a hard
// link if Hard is set; a name that ends in "/" is a directory; a name that
// starts with ".wh." in its last part is a whiteout.
type File struct {
	Name     string // without a leading "/"
	Data     []byte
	Mode     int64 // 0: 0644, directories 0755
	UID, GID int
	Linkname string
	Hard     bool
}

// An ImageSpec says how an image is made.
type ImageSpec struct {
	Layers      [][]File
	Config      v1.Config
	Compression string // "gzip" (also if empty), "zstd" or "none"
	Docker      bool   // Docker's schema 2 instead of OCI media types
	Arch        string // of this machine if empty
}

// epoch is when all that testkit puts into images was made, so that digests
// are the same each time.
var epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// NewImage makes an image.
func NewImage(spec ImageSpec) (v1.Image, error) {
	arch := spec.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	manifestType, configType := types.OCIManifestSchema1, types.OCIConfigJSON
	if spec.Docker {
		manifestType, configType = types.DockerManifestSchema2, types.DockerConfigJSON
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifestType), configType)
	var diffIDs []v1.Hash
	for _, files := range spec.Layers {
		layer, diffID, err := newLayer(files, spec.Compression, spec.Docker)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer}); err != nil {
			return nil, err
		}
		diffIDs = append(diffIDs, diffID)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: epoch}
	config.Config = spec.Config
	config.RootFS.DiffIDs = diffIDs
	return mutate.ConfigFile(img, config)
}

// blob is a layer whose uncompressed digest is known without decompressing.
type blob struct {
	v1.Layer
	diffID v1.Hash
}

func (b blob) DiffID() (v1.Hash, error) { return b.diffID, nil }

func newLayer(files []File, compression string, docker bool) (v1.Layer, v1.Hash, error) {
	plain, err := tarball(files)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(plain))
	if err != nil {
		return nil, v1.Hash{}, err
	}
	var packed bytes.Buffer
	var w io.WriteCloser
	var media types.MediaType
	switch compression {
	case "", "gzip":
		w, media = gzip.NewWriter(&packed), types.OCILayer
		if docker {
			media = types.DockerLayer
		}
	case "zstd":
		if w, err = zstd.NewWriter(&packed); err != nil {
			return nil, v1.Hash{}, err
		}
		media = types.OCILayerZStd
	case "none":
		packed.Write(plain)
		media = types.OCIUncompressedLayer
		if docker {
			media = types.DockerUncompressedLayer
		}
	default:
		return nil, v1.Hash{}, fmt.Errorf("unknown compression %q", compression)
	}
	if w != nil {
		_, err := w.Write(plain)
		if err := errors.Join(err, w.Close()); err != nil {
			return nil, v1.Hash{}, err
		}
	}
	return blob{static.NewLayer(packed.Bytes(), media), diffID}, diffID, nil
}

func tarball(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
			Size: int64(len(f.Data)), Linkname: f.Linkname, ModTime: epoch, Typeflag: tar.TypeReg,
		}
		switch {
		case f.Linkname != "" && f.Hard:
			h.Typeflag = tar.TypeLink
		case f.Linkname != "":
			h.Typeflag = tar.TypeSymlink
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", f.Name, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// NewIndex makes an index of images, each with the platform of its config.
func NewIndex(images ...v1.Image) (v1.ImageIndex, error) {
	index := v1.ImageIndex(empty.Index)
	for _, img := range images {
		config, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		platform := &v1.Platform{OS: config.OS, Architecture: config.Architecture}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return index, nil
}

// BusyboxFiles returns a small root file system: Debian's static busybox with
// its applets (some as hard links, most as symbolic ones), users and groups.
func BusyboxFiles() ([]File, error) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w (Debian's package busybox-static has it)", err)
	}
	files := []File{
		{Name: "bin/"},
		{Name: "dev/"},
		{Name: "etc/"},
		{Name: "home/"},
		{Name: "home/web/", UID: 1000, GID: 1000},
		{Name: "proc/"},
		{Name: "root/", Mode: 0o700},
		{Name: "sys/"},
		{Name: "tmp/", Mode: 0o1777},
		{Name: "var/"},
		{Name: "var/www/"},
		{Name: "bin/busybox", Data: program, Mode: 0o755},
		{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n")},
		{Name: "etc/group", Data: []byte("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n")},
	}
	for _, applet := range []string{"sh", "sleep"} {
		files = append(files, File{Name: "bin/" + applet, Linkname: "bin/busybox", Hard: true, Mode: 0o755}) // some runtimes give the file a link's mode
	}
	for _, applet := range []string{
		"cat", "chmod", "cp", "cut", "date", "dd", "df", "echo", "env", "expr", "false", "find", "grep", "head",
		"hostname", "httpd", "id", "ip", "kill", "ln", "ls", "mkdir", "mount", "mv", "nc", "netstat", "nproc",
		"nslookup", "ping", "ps", "pwd", "readlink", "rm", "sed", "seq", "sort", "stat", "stty", "tail", "tee", "test",
		"touch", "top", "tr", "true", "tty", "umask", "uname", "usleep", "wc", "wget", "which", "whoami", "yes",
	} {
		files = append(files, File{Name: "bin/" + applet, Linkname: "busybox"})
	}
	return files, nil
}

// Busybox returns an OCI image of BusyboxFiles in two layers, that runs "sh".
// It is made once.
var Busybox = sync.OnceValues(func() (v1.Image, error) {
	files, err := BusyboxFiles()
	if err != nil {
		return nil, err
	}
	return NewImage(ImageSpec{
		Layers: [][]File{files, {{Name: "etc/motd", Data: []byte("a small image\n")}}},
		Config: v1.Config{
			Cmd:        []string{"sh"},
			Env:        []string{"PATH=/bin"},
			WorkingDir: "/",
			Labels:     map[string]string{"org.opencontainers.image.title": "busybox"},
		},
	})
})
