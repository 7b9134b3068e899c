package registry

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// throttled serves data, each connection 16 KiB every few milliseconds, as
// content networks do. misbehave may answer a request for a piece itself.
func throttled(t *testing.T, data []byte, misbehave func(w http.ResponseWriter, r *http.Request) bool) (s *httptest.Server, most *atomic.Int32) {
	var open atomic.Int32
	most = &atomic.Int32{}
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := open.Add(1)
		defer open.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		if r.Header.Get("Range") != "" && misbehave != nil && misbehave(w, r) {
			return
		}
		from, to, _ := partial(w, r, data)
		for from <= to && r.Context().Err() == nil {
			n := min(16<<10, to-from+1)
			if _, err := w.Write(data[from : from+n]); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			from += n
			time.Sleep(2 * time.Millisecond) // a slow sender
		}
	}))
	t.Cleanup(s.Close)
	return s, most
}

func inPieces(t *testing.T, s *httptest.Server, ahead int) *Repository {
	r := repository(t, Config{Ahead: ahead, Stall: impatient.Stall}, hostOf(s), Auth{})
	r.client.piece, r.client.large = 64<<10, 256<<10
	return r
}

// A blob that comes slowly is fetched by several connections, however many
// there are at most, and each gives back what it had.
func TestPieces(t *testing.T) {
	data := eightMB[:3<<20]
	for _, c := range []struct {
		ahead    int
		min, max int32 // connections at a time
	}{{-1, 1, 1}, {1, 1, 3}, {4, 3, 7}} { // the server sees late that one was closed
		s, most := throttled(t, data, nil)
		r := inPieces(t, s, c.ahead)
		got, err := fetchData(r, data)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d ahead: %d bytes, %v", c.ahead, len(got), err)
		}
		if n := most.Load(); n < c.min || n > c.max {
			t.Errorf("%d ahead: %d connections at a time", c.ahead, n)
		}
		if n := len(r.client.ahead); n != 0 {
			t.Errorf("%d pieces were not given back", n)
		}
	}
}

// Several blobs share what there is.
func TestPiecesOfMany(t *testing.T) {
	data := eightMB[:1<<20]
	s, _ := throttled(t, data, nil)
	r := inPieces(t, s, 2)
	errs := make(chan error)
	for range 3 {
		go func() {
			got, err := fetchData(r, data)
			if err == nil && !bytes.Equal(got, data) {
				err = io.ErrUnexpectedEOF
			}
			errs <- err
		}()
	}
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := len(r.client.ahead); n != 0 {
		t.Errorf("%d pieces were not given back", n)
	}
}

func TestPiecesThatFail(t *testing.T) {
	data := eightMB[:2<<20]
	for _, c := range []struct {
		name      string
		misbehave func(w http.ResponseWriter, r *http.Request, n int32) bool
		whole     int32 // requests for pieces, at most
	}{
		{"no ranges", func(_ http.ResponseWriter, r *http.Request, _ int32) bool { r.Header.Del("Range"); return false }, 8},
		{"refused", func(w http.ResponseWriter, _ *http.Request, _ int32) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, 8},
		{"another range", func(w http.ResponseWriter, r *http.Request, _ int32) bool {
			r.Header.Set("Range", "bytes=0-100")
			return false
		}, 8},
		{"cut off, some", func(w http.ResponseWriter, r *http.Request, n int32) bool {
			if n%3 == 0 {
				from, to, _ := partial(w, r, data)
				_, _ = w.Write(data[from : from+(to-from)/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			return false
		}, 1000},
		{"cut off, all from some time on", func(w http.ResponseWriter, r *http.Request, n int32) bool {
			from, to, _ := partial(w, r, data)
			if n < 6 || to == len(data)-1 {
				_, _ = w.Write(data[from : to+1])
				return true
			}
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, 1000},
	} {
		var n atomic.Int32
		s, _ := throttled(t, data, func(w http.ResponseWriter, r *http.Request) bool { return c.misbehave(w, r, n.Add(1)) })
		r := inPieces(t, s, 4)
		got, err := fetchData(r, data)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", c.name, len(got), err)
		}
		if n.Load() > c.whole || len(r.client.ahead) != 0 {
			t.Errorf("%s: %d requests for pieces, %d not given back", c.name, n.Load(), len(r.client.ahead))
		}
	}
}

// A reader that goes, or whose caller does, takes all its connections along.
func TestPiecesAreGivenUp(t *testing.T) {
	data := eightMB[:4<<20]
	s, most := throttled(t, data, nil)
	for _, how := range []string{"close", "cancel", "wrong"} {
		r := inPieces(t, s, 4)
		ctx, cancel := context.WithCancel(context.Background())
		d := descriptor(data)
		if how == "wrong" {
			d.Digest = descriptor(content).Digest
		}
		blob, err := r.Blob(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		switch how {
		case "wrong":
			_, err = io.ReadAll(blob)
			check(t, err, fault.Unknown, "other content")
		default:
			if _, err := io.CopyN(io.Discard, blob, 1<<20); err != nil {
				t.Error(err)
			}
			if how == "cancel" {
				cancel()
				if _, err := io.Copy(io.Discard, blob); err == nil {
					t.Error("read on although nobody wants it")
				}
			}
		}
		_ = blob.Close()
		cancel()
		if n := len(r.client.ahead); n != 0 || most.Load() < 2 {
			t.Errorf("%s: %d pieces were not given back; %d connections", how, n, most.Load())
		}
		if n := len(r.endpoints[0].host.slots); n != 0 {
			t.Errorf("%s: %d slots were not given back", how, n)
		}
	}
}

// However large a blob is, and however slowly it is read, memory is bounded.
func TestPiecesTakeLittleMemory(t *testing.T) {
	const size = 48 << 20
	page := make([]byte, 1<<20)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(zeros{page}, 0, size))
	}))
	defer s.Close()
	r := repository(t, Config{}, hostOf(s), Auth{})
	d := descriptor(nil)
	d.Size = size
	opened, err := r.Blob(context.Background(), d)
	if err != nil {
		t.Fatal(err)
	}
	b := opened.(*blob)
	buf := make([]byte, 128<<10)
	var peak uint64
	for n := 0; n < size; {
		b.plan.waited += time.Hour // as if the network were waited for
		got, err := io.ReadFull(b, buf)
		if n += got; err != nil {
			break
		}
		if n%(8<<20) == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	}
	_ = b.Close()
	if peak > 64<<20 {
		t.Errorf("%d MiB of heap", peak>>20)
	}
}

type zeros struct{ page []byte }

func (z zeros) ReadAt(p []byte, _ int64) (int, error) { return copy(p, z.page), nil }
