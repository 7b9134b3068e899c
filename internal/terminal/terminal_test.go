package terminal

import (
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseKeys(t *testing.T) {
	for text, want := range map[string][]byte{
		"": nil, "ctrl-p,ctrl-q": {16, 17}, "Ctrl-A": {1}, "ctrl-@": {0}, "ctrl-[": {27}, "a,x": []byte("ax"),
	} {
		if keys, err := ParseKeys(text); err != nil || !slices.Equal(keys, want) {
			t.Errorf("%q: %v, %v", text, keys, err)
		}
	}
	for _, text := range []string{"ctrl-", "ctrl-pq", "ab", ",", "ctrl-!"} {
		if keys, err := ParseKeys(text); err == nil {
			t.Errorf("%q: %v", text, keys)
		}
	}
}

func TestLeaver(t *testing.T) {
	for _, tt := range []struct {
		typed, passed string
		left          bool
	}{
		{"hello", "hello", false},
		{"he\x10\x11llo", "he", true},
		{"he\x10llo", "he\x10llo", false},
		{"\x10\x10\x11", "\x10", true},
		{"\x11\x10", "\x11\x10", false}, // begun, and then there is no more
		{"", "", false},
	} {
		for name, slow := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "one by one": iotest.OneByteReader, "with its end": iotest.DataErrReader,
		} {
			l := &Leaver{From: slow(strings.NewReader(tt.typed)), Keys: []byte{16, 17}}
			if passed, err := io.ReadAll(l); string(passed) != tt.passed || (err == ErrLeft) != tt.left || !tt.left && err != nil {
				t.Errorf("%q %s: %q, %v", tt.typed, name, passed, err)
			}
		}
	}
	if passed, _ := io.ReadAll(&Leaver{From: strings.NewReader("\x10\x11")}); string(passed) != "\x10\x11" {
		t.Errorf("without keys: %q", passed)
	}
}
