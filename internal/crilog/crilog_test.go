package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const stamp = "2026-01-02T03:04:05.000000006Z"

func TestParse(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, c := range []struct {
		line string
		want Record
		ok   bool
	}{
		{stamp + " stdout F hello world\n", Record{at, "stdout", false, []byte("hello world")}, true},
		{stamp + " stderr P half", Record{at, "stderr", true, []byte("half")}, true},
		{stamp + " stdout F \n", Record{at, "stdout", false, []byte("")}, true},
		{stamp + " stdout F", Record{at, "stdout", false, nil}, true},
		{stamp + " stdout F:new:tags x", Record{at, "stdout", false, []byte("x")}, true},
		{stamp + " stdout F  two spaces ", Record{at, "stdout", false, []byte(" two spaces ")}, true},
		{"2026-01-02T05:04:05.000000006+02:00 stdout F x", Record{at, "stdout", false, []byte("x")}, true},
		{stamp + " stdin F x", Record{}, false},
		{stamp + " stdout X x", Record{}, false},
		{"yesterday stdout F x", Record{}, false},
		{"hello", Record{}, false},
		{"", Record{}, false},
	} {
		got, err := Parse([]byte(c.line))
		if (err == nil) != c.ok || !got.Time.Equal(c.want.Time) || got.Stream != c.want.Stream ||
			got.Partial != c.want.Partial || !bytes.Equal(got.Text, c.want.Text) {
			t.Errorf("Parse(%q) = %+v, %v", c.line, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(stamp + " stdout F hello\n"))
	f.Add([]byte(stamp + " stderr P:x "))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := Parse(line)
		if err != nil {
			return
		}
		tag := "F"
		if r.Partial {
			tag = "P"
		}
		again, err := Parse(fmt.Appendf(nil, "%s %s %s %s", r.Time.Format(time.RFC3339Nano), r.Stream, tag, r.Text))
		if err != nil || !again.Time.Equal(r.Time) || again.Stream != r.Stream || !bytes.Equal(again.Text, bytes.TrimSuffix(r.Text, []byte("\n"))) {
			t.Errorf("%q read as %+v, written again as %+v, %v", line, r, again, err)
		}
	})
}

// FuzzRead: whatever a file holds, Read ends and is no error.
func FuzzRead(f *testing.F) {
	f.Add([]byte(stamp+" stdout F a\n"+stamp+" stdout P b\n"+stamp+" stdout F c\n"), uint8(1))
	f.Add([]byte("no log\n\n"), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, last uint8) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(path, All); err != nil {
			t.Fatal(err)
		}
		if _, err := read(path, int(last)); err != nil {
			t.Fatal(err)
		}
	})
}

func read(path string, last int) ([]string, error) {
	var lines []string
	err := Read(path, last, func(l Line) error {
		lines = append(lines, l.Stream+":"+string(l.Text))
		return nil
	})
	return lines, err
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	text := strings.Join([]string{
		stamp + " stdout F one",
		stamp + " stdout P tw", // the streams' parts are mixed
		stamp + " stderr P er",
		stamp + " stdout F o",
		stamp + " stderr F ror",
		stamp + " stdout F three",
		stamp + " stdout P unfin",
		stamp + " stdout P ished",
	}, "\n") + "\n" + stamp + " stdout P , cut"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []string{"stdout:one", "stdout:two", "stderr:error", "stdout:three", "stdout:unfinished, cut"}
	if got, err := read(path, All); err != nil || !slices.Equal(got, all) {
		t.Errorf("Read = %q, %v", got, err)
	}
	if got, err := read(path, 1); err != nil || !slices.Equal(got, all[3:]) {
		t.Errorf("Read of the last line and what follows = %q, %v", got, err)
	}
	if got, err := read(path, 100); err != nil || !slices.Equal(got, all) {
		t.Errorf("Read of more lines than there are = %q, %v", got, err)
	}
	stop := errors.New("stop")
	if err := Read(path, All, func(Line) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Read = %v, want the callback's error", err)
	}
}

// TestTail compares the backward search with counting, on a file of many
// blocks whose lines have all lengths and numbers of parts.
func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var text strings.Builder
	var want []string
	for i := range 3000 {
		line := ""
		for range i % 4 {
			part := strings.Repeat("x", i%97*7)
			line += part
			fmt.Fprintf(&text, "%s stdout P %s\n", stamp, part)
		}
		end := fmt.Sprintf("line %d", i)
		fmt.Fprintf(&text, "%s stdout F %s\n", stamp, end)
		want = append(want, "stdout:"+line+end)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 2, 3, 4, 5, 500, 2999, 3000, 3001} {
		got, err := read(path, n)
		if err != nil || !slices.Equal(got, want[max(len(want)-n, 0):]) {
			t.Errorf("last %d lines: got %d, %v; the first is %.40q", n, len(got), err, append(got, "")[0])
		}
	}
}

// TestFollow writes numbered lines, renames the file in between as a kubelet
// does, and requires each line exactly once and in order.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	const lines = 300
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() {
		for i := range lines {
			fmt.Fprintf(f, "%s stdout P line\n", stamp)
			fmt.Fprintf(f, "%s stdout F  %d\n", stamp, i)
			if i%60 == 59 {
				time.Sleep(30 * time.Millisecond)
				if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
					t.Error(err)
				}
				fmt.Fprintf(f, "%s stdout F between %d\n", stamp, i) // not reopened yet
				next, err := os.Create(path)
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
				f = next
				time.Sleep(150 * time.Millisecond) // longer than Follow's polling: rotations are rare
			}
		}
		f.Close()
		over.Store(true)
	})
	var got []string
	err = Follow(t.Context(), path, All, func(context.Context) bool { return over.Load() }, func(l Line) error {
		got = append(got, string(l.Text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range lines {
		want = append(want, fmt.Sprintf("line %d", i))
		if i%60 == 59 {
			want = append(want, fmt.Sprintf("between %d", i))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("followed %d lines, want %d: %q", len(got), len(want), got)
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(stamp+" stdout F one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Follow(ctx, path, All, func(context.Context) bool { return false }, func(Line) error { cancel(); return nil })
	if err != nil {
		t.Errorf("Follow = %v", err)
	}
}
