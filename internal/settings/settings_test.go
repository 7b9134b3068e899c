package settings

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

type inner struct {
	Path string   `toml:"path"`
	More []string `toml:"more_paths"`
}

type embedded struct {
	Socket string `toml:"socket"`
}

type sample struct {
	Root    string           `toml:"root"`
	Tables  map[string]inner `toml:"tables"`
	Network struct {
		Bridge  string         `toml:"bridge"`
		Subnets []netip.Prefix `toml:"subnets"`
		Home    netip.Addr     `toml:"home"`
	} `toml:"network"`
	embedded
	own int
}

func nothing(toml.Key) string { return "" }

func read(t *testing.T, text string) (sample, *File) {
	t.Helper()
	var s sample
	f, err := Read("f", []byte(text), &s, nothing)
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

func TestHints(t *testing.T) {
	for text, want := range map[string]string{
		"roto = 1":                      "f:1:1: roto: unknown key; did you mean root?",
		"bridge = 1":                    "f:1:1: bridge: unknown key; did you mean network.bridge?",
		"[netwrok]\n[network]\nhom = 1": "f:1:2: netwrok: unknown key; did you mean network?\nf:3:1: network.hom: unknown key; did you mean network.home?",
		"[tables.a]\nmorepath = 1":      "f:2:1: tables.a.morepath: unknown key; did you mean tables.a.more_paths?",
		"something = 1":                 "f:1:1: something: unknown key",
		"own = 1":                       "f:1:1: own: unknown key",
	} {
		_, err := Read("f", []byte(text), &sample{}, nothing)
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
	_, err := Read("f", []byte("[a.b]\nc = 1"), &sample{}, func(key toml.Key) string { return "; " + strings.Join(key, "/") })
	if err == nil || !strings.HasPrefix(err.Error(), "f:1:2: a.b: unknown key; a/b") {
		t.Error(err)
	}
}

func TestLocate(t *testing.T) {
	_, f := read(t, "socket = 'a' # b\n  [tables.\"a.b\"]\npath = \"\"\"\nx\n\"\"\"\n[tables]\nc = {path = 'a', more_paths = [\n]}\n[network]\n")
	err := f.Locate(errors.Join(
		Bad("network.bridge", "is missing"), Bad("tables.c.more_paths", "is %w", errors.ErrUnsupported), errors.New("something"), errors.New("network: other: x"), errors.New("root: y"),
		Bad("tables.a.b.path", "1"), Bad("root", "is not there"), Bad("socket", "2"),
	))
	want := "f: root: is not there\nroot: y\nsomething\nf:1:1: socket: 2\nf:3:1: tables.a.b.path: 1\nf:7:18: tables.c.more_paths: is unsupported operation\nf:9:2: network.bridge: is missing\nf:9:2: network: other: x"
	if err.Error() != want || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v\nwant\n%s", err, want)
	}
	if err := f.Locate(Bad("socket", "2")); err.Error() != "f:1:1: socket: 2" {
		t.Error(err)
	}
	var none *File
	if err := none.Locate(Bad("socket", "2")); err.Error() != "socket: 2" || f.Locate(nil) != nil {
		t.Error(err)
	}
}

func TestChanged(t *testing.T) {
	a, _ := read(t, "root = 'a'\nsocket = 's'\n[tables.x]\npath = 'x'\n[tables.y]\n[tables.z]\n[network]\nsubnets = ['10.0.0.0/8']\nhome = '10.0.0.1'\n")
	b, _ := read(t, "root = 'a'\nsocket = 't'\n[tables.x]\npath = 'y'\n[tables.z]\nmore_paths = []\n[tables.w]\n[network]\nsubnets = ['10.0.0.0/9']\nhome = '10.0.0.2'\n")
	if got, want := Changed(a, b), []string{"tables.w", "tables.x.path", "tables.y", "network.subnets", "network.home", "socket"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	b.own++
	if got := Changed(b, b); got != nil {
		t.Errorf("%q", got)
	}
}

func TestEdits(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		n    int
	}{{"", "", 0}, {"", "ab", 2}, {"ab", "ab", 0}, {"ab", "ba", 1}, {"socket", "sokcet", 1}, {"mtu", "mtv", 1}, {"bridge", "brige", 1}, {"abc", "xyz", 3}} {
		if edits(tt.a, tt.b) != tt.n || edits(tt.b, tt.a) != tt.n {
			t.Errorf("%q, %q: %d", tt.a, tt.b, edits(tt.a, tt.b))
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("[tables.x]\npath = 'x'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s sample
		file, err := Read("f", data, &s, nothing)
		if err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Error(err)
		}
		if err == nil && s.Root != "" && !strings.Contains(file.Locate(Bad("root", "x")).Error(), "f:") {
			t.Error("a key without a place")
		}
	})
}
