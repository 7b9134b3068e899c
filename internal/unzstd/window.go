//go:build amd64

package unzstd

// A window is what matches are copied from. It is written from its beginning
// to its end, and then again from the beginning: what was written last in the
// lap before stays until it is out of reach.
type window struct {
	buf  []byte
	most int // bytes that a frame may ask for
	size int // that it asks for
	full int // that buf may become
	at   int // where the next block goes
	lap  int // where the last one of the lap before ended; 0: there was none
}

const (
	room        = maxBlock + slack
	usualWindow = 8<<20 + 2*room // of most encoders; larger ones are not kept for the next stream
)

func (w *window) begin(size int) {
	w.size, w.at, w.lap = size, 0, 0
	w.full = size + 2*room
	if len(w.buf) > w.full {
		w.buf = w.buf[:w.full]
	}
}

// free gives back what few frames ask for.
func (w *window) free() {
	if cap(w.buf) > usualWindow {
		w.buf = nil
	}
}

// room returns where n bytes go, with slack behind them.
func (w *window) room(n int) []byte {
	if w.at+n+slack > len(w.buf) && len(w.buf) < w.full {
		larger := make([]byte, min(w.full, max(2*len(w.buf), 1<<20)))
		copy(larger, w.buf[:w.at])
		w.buf = larger
	}
	if w.at+n+slack > len(w.buf) {
		w.at, w.lap = 0, w.at
	}
	return w.buf[w.at : w.at+n+slack]
}

// advance says how many bytes were written there.
func (w *window) advance(n int) { w.at += n }
