package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
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

func seeds(f *testing.F) {
	attrs := map[string]string{"user.a": "b", "trusted.overlay.redirect": "/x", "security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	for _, entries := range [][]layertest.Entry{
		{{Name: "a/b", Content: "x"}, {Name: "a/.wh.c"}, {Name: "l", Link: "/a"}, {Name: "l/d/", Mode: 0o700}},
		{{Name: "../x", Content: "x"}},
		{{Name: "h", Hard: "../../x"}, {Name: ".wh..wh..opq"}},
		{{Name: "a", Content: strings.Repeat("y", 5000), Xattrs: attrs}, {Name: "b", Hard: "a"}, {Name: "b", Hard: "a"}, {Name: "d/", Xattrs: attrs}, {Name: "d", Hard: "b"}},
		{{Name: "d/e/f", Content: "1"}, {Name: "d", Content: "2"}, {Name: "d/"}, {Name: ".wh.d"}, {Name: ".wh.x"}, {Name: "x/y", Content: "3"}},
		{{Name: "c", Type: '3', Major: 0, Minor: 0}, {Name: "c/"}, {Name: "f", Type: '6', UID: 1 << 30}, {Name: "b", Type: '4', Major: 8, Minor: 1}, {Name: "b2", Hard: "b"}},
		{{Name: "s", Link: "s2"}, {Name: "s2", Link: "s"}, {Name: "s/x", Content: "1"}},
	} {
		f.Add(layertest.Tar(entries...))
	}
}

// Whatever a stream is, there is an image of it that is sound, and from which
// it comes again, or an error.
func FuzzBuild(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, stream []byte) {
		var recipe, again bytes.Buffer
		b := &buffer{}
		s, err := erofs.Build(context.Background(), bytes.NewReader(stream), b, erofs.Options{Limit: 1 << 20, Recipe: &recipe})
		if err != nil {
			if !fault.Is(err, fault.Unknown) && !fault.Is(err, fault.Exhausted) {
				t.Errorf("kind %v: %v", fault.KindOf(err), err)
			}
			return
		}
		if int64(len(b.data)) != s.Bytes {
			t.Errorf("%d bytes, not %d", len(b.data), s.Bytes)
		}
		if err := check(b.data); err != nil {
			t.Error(err)
		}
		if sum, err := erofs.Sum(context.Background(), b, s.Bytes); err != nil || sum != s.Sum {
			t.Errorf("%s, not %s: %v", sum, s.Sum, err)
		}
		if err := erofs.Rebuild(context.Background(), &recipe, b, &again); err != nil || !bytes.Equal(again.Bytes(), stream) {
			t.Errorf("%d bytes again, not %d: %v", again.Len(), len(stream), err)
		}
	})
}

// entriesOf makes entries of any bytes: few names, so that they meet.
func entriesOf(p []byte) []layertest.Entry {
	names := []string{"a", "b", "c", "a/b", "a/c", "b/a", "a/b/c", "b/a/c", "c/b/a", ".", "a/../b", "/a", "a/.wh..wh..opq", ".wh.a", ".wh.b", "a/.wh.b", "c/.wh.a", ".wh..wh..opq", ".wh..wh.x", "a/b/c/d"}
	links := append(slices.Clone(names[:12]), "../a", "/", "/c", "..", "a/..", "b/.", "nowhere/x", "c/c")
	var entries []layertest.Entry
	for ; len(p) >= 3 && len(entries) < 40; p = p[3:] {
		e := layertest.Entry{Name: names[int(p[1])%len(names)], UID: int(p[2] & 3), Time: int64(p[2])}
		switch p[0] % 8 {
		case 0, 1:
			e.Name += "/"
			e.Mode = 0o700 | int64(p[2]&0o77)
		case 2, 3:
			e.Content = strings.Repeat("x", int(p[2])%4*1500)
		case 4:
			e.Link = links[int(p[2])%len(links)]
		case 5:
			e.Hard = links[int(p[2])%len(links)]
		case 6:
			e.Type, e.Major, e.Minor = '3', int64(p[2]&1), int64(p[2]&2)
		case 7:
			e.Type = '6'
			e.Xattrs = map[string]string{"trusted.x": "y", "user.x": "y"}
		}
		entries = append(entries, e)
	}
	return entries
}

// Whatever the entries are, as a directory and as an image it is the same, or
// an error both ways.
func FuzzAsDirs(f *testing.F) {
	testkit.Root(f)
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		p := make([]byte, 3*(1+random.IntN(15)))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		entries := entriesOf(p)
		stream := layertest.Tar(entries...)
		dir := t.TempDir()
		trash, err := layer.OpenTrash(filepath.Join(dir, "trash"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer trash.Close()
		dirs, err := layer.Open(layer.Config{
			Root: filepath.Join(dir, "layers"), State: filepath.Join(dir, "state"), Kind: layer.Directories, Limit: 1 << 20,
			Trash: trash, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = dirs.Close() }()
		info, err := dirs.Unpack(context.Background(), "sha256:1", layer.Blob{}, bytes.NewReader(stream))
		b := &buffer{}
		s, imageErr := buildIn(b, bytes.NewReader(stream), 1<<20)
		if (err == nil) != (imageErr == nil) {
			t.Fatalf("as directory: %v\nas image: %v\n%+v", err, imageErr, entries)
		}
		if err != nil {
			return
		}
		lower, done, err := dirs.Use("sha256:1")
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		shown := describe(t, lower)
		// Dirs goes by the name, and tells of a directory that is gone if
		// there is one again, by a symbolic link or over a whiteout.
		implicit := slices.DeleteFunc(info.Implicit, func(name string) bool {
			return !slices.Contains(s.Implicit, name) && (shown[name] == "" || strings.Contains(shown[name], "trusted.overlay.opaque"))
		})
		if !slices.Equal(s.Implicit, implicit) {
			t.Errorf("implicit are %q as image, not %q", s.Implicit, implicit)
		}
		if err := check(b.data); err != nil {
			t.Fatal(err)
		}
		i, err := erofs.Open(b, s.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the image", shown, walked(t, i), func(_, line string) string {
			before, after, _ := strings.Cut(line, "@") // without times, and content
			_, after, _ = strings.Cut(after, " ")
			target, _, _ := strings.Cut(after, " → ")
			return before + target
		})
		if t.Failed() {
			t.Log(entries)
		}
	})
}

// Whatever an image is like, looking at it ends, soon and without harm.
func FuzzOpen(f *testing.F) {
	for _, entries := range [][]layertest.Entry{
		{},
		{{Name: "a", Content: "x"}, {Name: "d/e/", Xattrs: map[string]string{"user.a": strings.Repeat("b", 1500), "user.c": "d"}}, {Name: "l", Link: "d"}, {Name: "h", Hard: "a"}},
		{{Name: "big", Content: strings.Repeat("x", 9000)}, {Name: "p", Type: '6'}, {Name: ".wh.w"}},
	} {
		b := &buffer{}
		if _, err := buildIn(b, bytes.NewReader(layertest.Tar(entries...)), 1<<20); err != nil {
			f.Fatal(err)
		}
		f.Add(b.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		erofs.FixChecksum(data)
		i, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
		if err == nil {
			err = errors.Join(i.Check(context.Background()), i.Walk(context.Background(), func(e erofs.Entry) error {
				if _, err := i.Finder().Stat(e.Name); err != nil {
					t.Errorf("Walk finds %q, but Stat: %v", e.Name, err)
				}
				return nil
			}))
		}
		if err != nil && !fault.Is(err, fault.Unknown) {
			t.Errorf("kind %v: %v", fault.KindOf(err), err)
		}
	})
}

// Whatever a recipe is, following it ends with the recipe.
func FuzzRebuild(f *testing.F) {
	b := &buffer{}
	var recipe bytes.Buffer
	stream := layertest.Tar(layertest.Entry{Name: "a", Content: strings.Repeat("x", 9000)}, layertest.Entry{Name: "b", Content: "y"})
	if _, err := erofs.Build(context.Background(), bytes.NewReader(stream), b, erofs.Options{Limit: 1 << 20, Recipe: &recipe}); err != nil {
		f.Fatal(err)
	}
	f.Add(recipe.Bytes())
	f.Fuzz(func(t *testing.T, recipe []byte) {
		err := erofs.Rebuild(context.Background(), bytes.NewReader(recipe), b, io.Discard)
		if err != nil && !fault.Is(err, fault.Unknown) {
			t.Errorf("kind %v: %v", fault.KindOf(err), err)
		}
	})
}
