package debian

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/test/images/layout"
)

// Tags are those of the two images that Make makes: of the same layers,
// compressed in two ways.
var Tags = []string{"gzip", "zstd"}

// version is raised whenever what is made changes.
const version = 1

// A Made is what was made, once, and is used again.
type Made struct {
	Version  string   `json:"version"`
	Packages []string `json:"packages"`
	Layers   int      `json:"layers"`
	Entries  int      `json:"entries"`
	Bytes    int64    `json:"bytes"` // of the tar streams
}

// Make makes the images in dir, unless they are there. It fetches packages with
// apt-get into dir meanwhile; nothing is installed.
func Make(ctx context.Context, dir layout.Dir, small bool, say func(format string, args ...any)) (Made, error) {
	chosen := sets
	if small {
		chosen = smallSets
	}
	key := fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, version, runtime.GOARCH, chosen)))
	marker := filepath.Join(string(dir), "made.json")
	var made Made
	text, err := os.ReadFile(marker)
	if err == nil && json.Unmarshal(text, &made) == nil && made.Version == key {
		return made, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return made, err
	}
	if err := os.RemoveAll(string(dir)); err != nil {
		return made, err
	}
	a, err := newArchives(filepath.Join(string(dir), "packages"))
	if err != nil {
		return made, err
	}
	say("fetching packages of %d layers", len(chosen))
	layers, err := a.fetch(ctx, chosen)
	if err != nil {
		return made, err
	}
	made = Made{Version: key}
	if err := made.write(ctx, dir, layers, say); err != nil {
		return made, err
	}
	if err := os.RemoveAll(a.dir); err != nil {
		return made, err
	}
	text, err = json.MarshalIndent(made, "", "  ")
	if err != nil {
		return made, err
	}
	return made, os.WriteFile(marker, append(text, '\n'), 0o644)
}

// write makes the layers of archives, one more of changes to them, and images
// of all.
func (m *Made) write(ctx context.Context, dir layout.Dir, archives [][]string, say func(string, ...any)) error {
	var layers []layout.Layer
	seen := map[string]bool{}
	for i, files := range append(archives, nil) {
		l, err := dir.Layer(func(w *layout.TarWriter) error {
			c := &composer{TarWriter: w, all: seen, mine: map[string]bool{}}
			if files == nil {
				return c.changes()
			}
			return c.packages(ctx, files, i == 0)
		}, Tags...)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		layers = append(layers, l)
		m.Entries += l.Entries
		m.Bytes += l.Bytes
		for _, f := range files {
			m.Packages = append(m.Packages, strings.TrimSuffix(filepath.Base(f), ".deb"))
		}
		say("layer %d: %d packages, %d entries, %d MB; gzip %d MB, zstd %d MB", i, len(files), l.Entries, l.Bytes>>20, l.Blobs[0].Size>>20, l.Blobs[1].Size>>20)
	}
	m.Layers = len(layers)
	for i, tag := range Tags {
		config := imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Author: tag}
		config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		config.Config.Cmd = Command
		if _, err := dir.Image(tag, i, config, layers); err != nil {
			return err
		}
	}
	return nil
}

// archives is a directory of packages that apt-get fills as for a machine on
// which nothing is installed.
type archives struct {
	dir     string
	options []string
}

func newArchives(dir string) (*archives, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	a := &archives{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	status := filepath.Join(dir, "status")
	for _, o := range []string{
		"Dir::State::status=" + status, "Dir::Cache::archives=" + dir + "/", "APT::Install-Recommends=false",
		"Debug::NoLocking=1", "APT::Sandbox::User=root", "Dir::Etc::parts=/dev/null",
	} {
		a.options = append(a.options, "-o", o)
	}
	return a, os.WriteFile(status, nil, 0o644)
}

// fetch fetches the packages of all sets and returns the files that each set
// adds to those before it.
func (a *archives) fetch(ctx context.Context, sets [][]string) ([][]string, error) {
	if _, err := a.apt(ctx, append([]string{"install", "-y", "--download-only"}, slices.Concat(sets...)...)...); err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	var layers [][]string
	for i := range sets {
		list, err := a.apt(ctx, append([]string{"install", "-y", "--print-uris", "--reinstall", "-o", "Dir::Cache::archives=/dev/null/"}, slices.Concat(sets[:i+1]...)...)...)
		if err != nil {
			return nil, err
		}
		var layer []string
		for line := range strings.Lines(list) { // 'URI' FILE SIZE HASH
			fields := strings.Fields(line)
			if len(fields) < 3 || !strings.HasPrefix(line, "'") || taken[fields[1]] {
				continue
			}
			taken[fields[1]] = true
			file := filepath.Join(a.dir, fields[1])
			if _, err := os.Stat(file); err != nil {
				continue // the whole needs another one instead
			}
			layer = append(layer, file)
		}
		if len(layer) == 0 {
			return nil, fmt.Errorf("packages %v add nothing", sets[i])
		}
		slices.Sort(layer)
		layers = append(layers, layer)
	}
	return layers, nil
}

func (a *archives) apt(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "apt-get", append(slices.Clone(a.options), args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("apt-get %s: %w: %s", args[0], err, said.String())
	}
	return string(out), nil
}
