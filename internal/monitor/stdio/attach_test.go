package stdio

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, logPath string) *Streams {
	t.Helper()
	keep := func(bool, []string, []int) error { return nil }
	o, err := Open(Config{ID: "id", Dir: t.TempDir(), LogPath: logPath, Console: -1, Log: -1, Keep: keep, Report: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// A client that lags behind too far loses some, and is told how much, also
// when nothing follows; one that has gone is none; the log has everything.
func TestSlowClient(t *testing.T) {
	for _, more := range []bool{false, true} {
		log := t.TempDir() + "/log"
		o := open(t, log)
		ends, err := o.ContainerEnds(Null)
		if err != nil {
			t.Fatal(err)
		}
		defer CloseAll(ends[:])
		slow, slowEnd := pipe(t)
		gone, goneEnd := pipe(t)
		a, err := o.Attach(nil, slowEnd, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := o.Attach(nil, goneEnd, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = gone.Close()
		o.Run()
		line := append(bytes.Repeat([]byte("x"), 99), '\n')
		const lines = 30000
		for range lines {
			if _, err := ends[1].Write(line); err != nil {
				t.Fatal(err)
			}
		}
		read := make(chan []byte)
		if more {
			awaitLog(t, log, lines)
			go func() { all, _ := io.ReadAll(slow); read <- all }()
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				o.mu.Lock()
				_, _ = ends[1].Write([]byte("more\n"))
				lost := a.outs[0].lost
				o.mu.Unlock()
				if lost == 0 || time.Now().After(end) {
					break
				}
			}
		}
		o.Finish()
		if !more {
			go func() { all, _ := io.ReadAll(slow); read <- all }()
		}
		a.Detach(nil)
		b.Detach(nil)
		got := string(<-read)
		before, rest, found := strings.Cut(got, "\n[davit: ")
		number, _, _ := strings.Cut(rest, " ")
		lost, err := strconv.Atoi(number)
		after := rest[strings.Index(rest, "]")+1:]
		data, _ := os.ReadFile(log)
		wrote := lines*100 + 5*bytes.Count(data, []byte("more\n"))
		if !found || err != nil || len(before)+lost+len(after)-1 != wrote || more != strings.HasSuffix(after, "\nmore\n") {
			t.Errorf("more %t: %d bytes, then %.100q, of %d", more, len(before), rest, wrote)
		}
		if n := bytes.Count(data, []byte(" F xxx")); n != lines {
			t.Errorf("log of %d lines", n)
		}
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, w
}

func awaitLog(t *testing.T, path string, lines int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		data, _ := os.ReadFile(path)
		if bytes.Count(data, []byte("\n")) >= lines {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the log is not written")
		}
	}
}
