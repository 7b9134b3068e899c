package patrol

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/store"
)

// Each thing is read once a week; all of them after a boot that ended without a
// word, also if the first process of the next one has no time for it.
func TestDue(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "read.json")
	now := time.Unix(1_000_000_000, 0)
	due := func(s *state, at time.Time, list ...string) string { return strings.Join(s.due(list, at), " ") }
	save := func(s *state) {
		t.Helper()
		if err := store.SaveJSON(path, stateVersion, s); err != nil {
			t.Fatal(err)
		}
	}
	s := load(path, now)
	if got := due(s, now, "a", "b"); got != "" {
		t.Errorf("just written: %s", got)
	}
	if got := due(s, now.Add(every), "b", "c"); got != "b" || len(s.At) != 2 {
		t.Errorf("a week later: %s, %v", got, s.At)
	}
	save(s)
	s = load(path, now)
	if got := due(s, now, "b", "c", "d"); got != "" {
		t.Errorf("in the same boot: %s", got)
	}
	for name, harm := range map[string]func(){
		"power cut": func() { s.Boot = "another"; save(s) },
		"damaged":   func() { save(s); _ = os.Truncate(path, 10) },
	} {
		harm()
		first := load(path, now)
		if got := due(first, now, "b", "e"); got != "b e" {
			t.Errorf("%s: %s", name, got)
		}
		first.At["b"] = now.Unix()
		save(first)
		if got := due(load(path, now), now, "b", "e"); got != "e" {
			t.Errorf("%s, the next process: %s", name, got)
		}
	}
	s = load(path, now)
	s.Boot, s.Clean = "another", true
	save(s)
	if got := due(load(path, now), now, "f"); got != "" {
		t.Errorf("after a boot that ended well: %s", got)
	}
}

// Run reads what is due and no more, slowly, and remembers it.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "read.json")
		var read []string
		p := Patrol{
			File: path, List: func() []string { return []string{"a", "b"} }, Log: slog.New(slog.DiscardHandler),
			Read: func(ctx context.Context, id string, pace func(context.Context, int) error) error {
				read = append(read, id)
				begun := time.Now()
				if err := pace(ctx, rateLow); err != nil {
					return err
				}
				if took := time.Since(begun); took < time.Second/8 || took > time.Second {
					t.Errorf("%v", took)
				}
				return errors.New("its own trouble")
			},
		}
		ctx, cancel := context.WithTimeout(context.Background(), every+time.Hour)
		defer cancel()
		p.Run(ctx)
		if got := strings.Join(read, " "); got != "a b" {
			t.Errorf("read %q", got)
		}
		if s := load(path, time.Now()); s.doubt || len(s.At) != 2 {
			t.Errorf("%+v", s)
		}
	})
}
