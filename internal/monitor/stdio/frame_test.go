package stdio

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, test := range []struct {
		name, data string
		crlf       bool
		want, rest string // want without headers
	}{
		{"nothing", "", false, "", ""},
		{"one", "a\n", false, "F a\n", ""},
		{"empty", "\n\n", false, "F \nF \n", ""},
		{"unfinished", "a\nb", false, "F a\n", "b"},
		{"at the limit", long + "\n", false, "F " + long + "\n", ""},
		{"at the limit, unfinished", long, false, "", long},
		{"over by one", long + "y\n", false, "P " + long + "\nF y\n", ""},
		{"over, unfinished", long + "y", false, "P " + long + "\n", "y"},
		{"twice the limit", long + long + "\n", false, "P " + long + "\nF " + long + "\n", ""},
		{"carriage return kept", "a\r\n", false, "F a\r\n", ""},
		{"carriage return dropped", "a\r\n\r\n", true, "F a\nF \n", ""},
		{"carriage return inside", "a\rb\n", true, "F a\rb\n", ""},
		{"at the limit with carriage return", long + "\r\n", true, "F " + long + "\n", ""},
		{"bytes that are no text", "\xff\x00\n", false, "F \xff\x00\n", ""},
	} {
		out, rest, more := appendLines(nil, []byte(test.data), nil, test.crlf, 1<<30)
		if string(out) != test.want || string(rest) != test.rest || more {
			t.Errorf("%s: %.80q rest %.80q", test.name, out, rest)
		}
	}
}

func TestHeader(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	if got := string(appendHeader(nil, at, "stderr")); got != "2026-01-02T02:04:05.000000060Z stderr " {
		t.Errorf("%q", got)
	}
}

// However the input is cut into reads, lines are the same, and joined pieces
// give the input back.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\nLzzzzz\n\ntail"), uint16(3), false)
	f.Add([]byte("LLL\r\n"), uint16(5000), true)
	f.Fuzz(func(t *testing.T, data []byte, step uint16, crlf bool) {
		// An L stands for as much as fits a line, so that inputs stay small.
		data = bytes.Replace(data, []byte("L"), bytes.Repeat([]byte("x"), maxLine), 4)
		var carry, out []byte
		size := max(int(step), len(data)/64) + 1 // bytewise only what is short: it is quadratic
		for from := 0; from < len(data); {
			to := min(len(data), from+size)
			in := append(append([]byte(nil), carry...), data[from:to]...)
			var more bool
			for more = true; more; {
				var got []byte
				got, in, more = appendLines(nil, in, nil, crlf, 64)
				out = append(out, got...)
			}
			if len(in) > maxLine {
				t.Fatalf("unfinished line of %d bytes", len(in))
			}
			carry, from = in, to
		}
		if len(carry) > 0 {
			out = appendLine(out, nil, carry, false)
		}
		var back []byte
		for rest := out; len(rest) > 0; {
			// A piece is of maxLine bytes, or the last.
			full := rest[0] == 'F'
			content, after, found := bytes.Cut(rest[2:], []byte("\n"))
			if !found {
				t.Fatal("line without end")
			}
			if len(content) > maxLine {
				t.Fatalf("line of %d bytes", len(content))
			}
			back = append(back, content...)
			if full {
				back = append(back, '\n')
			}
			rest = after
		}
		want := data
		if crlf {
			want, back = bytes.ReplaceAll(data, []byte("\r"), nil), bytes.ReplaceAll(back, []byte("\r"), nil)
		}
		if !bytes.Equal(back, want) {
			t.Fatalf("%.200q came back as %.200q", want, back)
		}
	})
}

func TestCommit(t *testing.T) {
	path := t.TempDir() + "/commit"
	c, err := openCommit(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		slot
		carry string
	}{
		{slot{ino: 7, length: 100, stream: 0, total: 50, stale: 40}, "half a li"},
		{slot{ino: 7, length: 200, stream: 1, total: 5, stale: 5}, "other"},
		{slot{ino: 7, length: 300, stream: 1, total: 9, stale: 9}, "another"},
	} {
		if err := c.commit(step.slot, []byte(step.carry)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.commit(c.read(), c.carry(1)); err != nil { // aliases
		t.Fatal(err)
	}
	c.close()
	if c, err = openCommit(path); err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if s := c.read(); s.length != 300 || s.stale != 9 || s.stream != 1 {
		t.Errorf("%+v", s)
	}
	if string(c.carry(0)) != "half a li" || string(c.carry(1)) != "another" {
		t.Errorf("%q %q", c.carry(0), c.carry(1))
	}
	c.drained()
	if c.read().stale != 0 {
		t.Error("still stale")
	}
}

func TestToDrain(t *testing.T) {
	for _, test := range []struct{ total, stale, inPipe, want int }{
		{0, 0, 0, 0},
		{10, 10, 10, 10}, // killed before the drain
		{10, 10, 4, 4},   // in it
		{10, 10, 0, 0},   // after it
		{10, 6, 10, 6},   // tee took less than there was
		{10, 6, 7, 3},
		{10, 6, 4, 0},
		{10, 0, 10, 0}, // drained and committed
		{0, 0, 10, 0},  // moved, not yet committed
	} {
		s := slot{total: uint32(test.total), stale: uint32(test.stale)}
		if got := s.toDrain(test.inPipe); got != test.want {
			t.Errorf("%+v: %d", test, got)
		}
	}
}
