package monitor

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/fault"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	for _, text := range []string{"a", strings.Repeat("b", 100000)} {
		if err := WriteFrame(&b, text); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{1, 100000} {
		var got string
		if err := ReadFrame(&b, &got); err != nil || len(got) != n {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	var got string
	if err := ReadFrame(&b, &got); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for _, bad := range []string{"\x00\x00\x00\x00", "\xff\xff\xff\xff{}", "\x00\x00\x00\x02{]"} {
		if err := ReadFrame(strings.NewReader(bad), &got); !errors.Is(err, errFrame) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := ReadFrame(strings.NewReader("\x00\x00\x00\x09{}"), &got); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestFailureKeepsKind(t *testing.T) {
	err := FailureOf(fault.New(fault.NotFound, "op", "no %s", "thing")).Err()
	if !fault.Is(err, fault.NotFound) || err.Error() != "op: no thing" {
		t.Error(err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x11{\"method\":\"list\"}"))
	f.Add([]byte("\x01\x00\x00\x00{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		if err := ReadFrame(bytes.NewReader(data), &r); err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteFrame(&b, r); err != nil {
			t.Fatal(err)
		}
		var again Request
		if err := ReadFrame(&b, &again); err != nil || again.Method != r.Method {
			t.Fatalf("%+v came back as %+v: %v", r, again, err)
		}
	})
}
