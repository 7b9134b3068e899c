package erofs_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/layer/layertest"
	"github.com/davit-runtime/davit/internal/testkit"
)

// fsck requires the judgement of EROFS's own program.
func fsck(t testing.TB, file string) {
	t.Helper()
	out, err := exec.Command("fsck.erofs", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "corrupt") {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// A pair makes of each layer a directory and an image, and requires them to be
// the same, or neither to be.
type pair struct {
	*layer.Store
	t *testing.T
}

func (p pair) Unpack(ctx context.Context, id string, blob layer.Blob, stream io.Reader) (layer.Info, error) {
	data, streamErr := io.ReadAll(stream)
	again := func() io.Reader {
		if streamErr != nil {
			return io.MultiReader(bytes.NewReader(data), failing{streamErr})
		}
		return bytes.NewReader(data)
	}
	info, err := p.Store.Unpack(ctx, id, blob, again())
	m := &made{File: newFile(p.t)}
	var imageErr error
	m.Summary, imageErr = erofs.Build(ctx, again(), m.File, erofs.Options{Limit: 1 << 30})
	if (err == nil) != (imageErr == nil) || err != nil && fault.KindOf(err) != fault.KindOf(imageErr) {
		p.t.Errorf("as directory: %v\nas image: %v", err, imageErr)
	}
	if err != nil || imageErr != nil {
		return info, err
	}
	lower, done, err := p.Use(id)
	if err != nil {
		return info, err
	}
	defer done()
	if !slices.Equal(info.Implicit, m.Implicit) {
		p.t.Errorf("implicit are %q as image, not %q", m.Implicit, info.Implicit)
	}
	same(p.t, "the image", describe(p.t, lower), checkImage(p.t, m), madeUp(info.Implicit))
	return info, nil
}

// madeUp leaves out what an unpacker makes up: times.
func madeUp(implicit []string) func(name, line string) string {
	return func(name, line string) string {
		before, after, _ := strings.Cut(line, "@")
		if slices.Contains(implicit, name) || strings.HasPrefix(line, "02") && strings.Contains(line, "dev 0,0") ||
			strings.Contains(line, "trusted.overlay.opaque") || name == "." {
			_, after, _ = strings.Cut(after, " ")
		}
		return before + after
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// The rules for layers are those of directories: the same suite, and each of
// its layers is the same both ways.
func TestSameAsDirs(t *testing.T) {
	testkit.Root(t)
	layertest.Run(t, func(t *testing.T) (layertest.Store, func() []string) {
		dir := t.TempDir()
		trash, err := layer.OpenTrash(filepath.Join(dir, "trash"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(trash.Close)
		dirs, err := layer.Open(layer.Config{
			Root: filepath.Join(dir, "layers"), State: filepath.Join(dir, "state"), Kind: layer.Directories, Limit: 1 << 30,
			Trash: trash, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dirs.Close() })
		return pair{dirs, t}, func() []string { return nil }
	})
}

func TestMain(m *testing.M) {
	if os.Getenv("DAVIT_NOROOT") == "" {
		_ = os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	}
	testkit.Main(m)
}
