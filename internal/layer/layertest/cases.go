package layertest

import (
	"archive/tar"
	"strings"
)

// A stack is an image's layers, lowest first, and what they show together.
// Times are shown as @… if they are small and not 0, so that made-up ones, of
// now, are not.
type stack struct {
	name   string
	layers [][]Entry
	mended bool
	want   []string
}

var (
	longName = strings.Repeat("long-directory-name-", 10) + "/" + strings.Repeat("long-file-name-", 15)
	// cap_net_raw=ep, as in struct vfs_ns_cap_data of revision 2
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

var stacks = []stack{
	{
		name:   "nothing at all",
		layers: [][]Entry{{}},
	},
	{
		name: "kinds of files",
		layers: [][]Entry{{
			{Name: "./"},
			{Name: "bin/", Mode: 0o751, UID: 1, GID: 2, Time: 7},
			{Name: "bin/su", Content: "su", Mode: 0o4755, UID: 5, GID: 6, Time: 8},
			{Name: "bin/ping", Content: "p", Mode: 0o755, UID: 3, Xattrs: map[string]string{"security.capability": capability, "user.test": "v"}},
			{Name: "bin/sh", Link: "/nowhere/../dash", UID: 4, Time: 9},
			{Name: "bin/su2", Hard: "bin/su"},
			{Name: "dev/tty", Type: tar.TypeChar, Major: 5, Minor: 300, Mode: 0o666},
			{Name: "dev/sda", Type: tar.TypeBlock, Major: 8, Minor: 1, Mode: 0o660, GID: 6},
			{Name: "dev/pipe", Type: tar.TypeFifo, Mode: 0o600},
			{Name: "tmp/", Mode: 0o1777},
			{Name: "var/mail/", Mode: 0o2775, GID: 8},
			{Name: "var/mail/box", Content: "m", GID: 9},
			{Name: longName, Content: "deep", UID: 3000000},
		}},
		want: []string{
			"bin d 0751 1:2 @7",
			"bin/ping - 0755 3:0 \"p\" user.test=76 security.capability=0100000200200000000000000000000000000000",
			"bin/sh l 4:0 /nowhere/../dash",
			"bin/su - 4755 5:6 \"su\" @8",
			"bin/su2 = bin/su",
			"dev d 0755 0:0",
			"dev/pipe p 0600 0:0",
			"dev/sda b 0660 0:6 8,1",
			"dev/tty c 0666 0:0 5,300",
			strings.Split(longName, "/")[0] + " d 0755 0:0",
			longName + " - 0644 3000000:0 \"deep\"",
			"tmp d 1777 0:0",
			"var d 0755 0:0",
			"var/mail d 2775 0:8",
			"var/mail/box - 0644 0:9 \"m\"",
		},
	},
	{
		name: "later layers win",
		layers: [][]Entry{
			{{Name: "a", Content: "1"}, {Name: "d/", Mode: 0o700}, {Name: "d/x", Content: "1"}, {Name: "was-dir/"}, {Name: "was-dir/y", Content: "1"}, {Name: "was-file", Content: "1"}},
			{{Name: "a", Content: "2", Mode: 0o600}, {Name: "d/", Mode: 0o711}, {Name: "d/y", Content: "2"}, {Name: "was-dir", Content: "2"}, {Name: "was-file/"}, {Name: "was-file/z", Content: "2"}},
		},
		want: []string{
			"a - 0600 0:0 \"2\"", "d d 0711 0:0", "d/x - 0644 0:0 \"1\"", "d/y - 0644 0:0 \"2\"",
			"was-dir - 0644 0:0 \"2\"", "was-file d 0755 0:0", "was-file/z - 0644 0:0 \"2\"",
		},
	},
	{
		name: "whiteouts",
		layers: [][]Entry{
			{{Name: "f", Content: "1"}, {Name: "d/"}, {Name: "d/x", Content: "1"}, {Name: "e/"}, {Name: "e/x", Content: "1"}, {Name: "e/y", Content: "1"}},
			{{Name: ".wh.f"}, {Name: ".wh.d"}, {Name: "e/.wh.x"}, {Name: "e/.wh.never-was"}, {Name: ".wh..wh.plnk"}},
			{{Name: "d/"}, {Name: "d/new", Content: "3"}},
		},
		want: []string{"d d 0755 0:0", "d/new - 0644 0:0 \"3\"", "e d 0755 0:0", "e/y - 0644 0:0 \"1\""},
	},
	{
		name: "opaque directories",
		layers: [][]Entry{
			{{Name: "a/"}, {Name: "a/x", Content: "1"}, {Name: "b/"}, {Name: "b/x", Content: "1"}, {Name: "c/d/x", Content: "1"}},
			{
				{Name: "a/"}, {Name: "a/.wh..wh..opq"}, {Name: "a/y", Content: "2"},
				{Name: "b/"}, {Name: "b/y", Content: "2"}, {Name: "b/.wh..wh..opq"}, // after what it does not hide
				{Name: "c/.wh..wh..opq"},
			},
		},
		want: []string{"a d 0755 0:0", "a/y - 0644 0:0 \"2\"", "b d 0755 0:0", "b/y - 0644 0:0 \"2\"", "c d 0755 0:0"},
	},
	{
		name: "whiteout and the same name in one layer",
		layers: [][]Entry{
			{{Name: "a/"}, {Name: "a/x", Content: "1"}, {Name: "b/"}, {Name: "b/x", Content: "1"}, {Name: "c/x", Content: "1"}, {Name: "f", Content: "1"}, {Name: "g", Content: "1"}},
			{
				{Name: ".wh.a"}, {Name: "a/"}, {Name: "a/y", Content: "2"},
				{Name: "b/"}, {Name: "b/y", Content: "2"}, {Name: ".wh.b"},
				{Name: ".wh.c"}, {Name: "c/y", Content: "2"}, // no entry of its own
				{Name: ".wh.f"}, {Name: "f", Content: "2"},
				{Name: "g", Content: "2"}, {Name: ".wh.g"},
			},
		},
		want: []string{
			"a d 0755 0:0", "a/y - 0644 0:0 \"2\"", "b d 0755 0:0", "b/y - 0644 0:0 \"2\"",
			"c d 0755 0:0", "c/y - 0644 0:0 \"2\"", "f - 0644 0:0 \"2\"", "g - 0644 0:0 \"2\"",
		},
	},
	{
		name: "names written otherwise",
		layers: [][]Entry{
			{{Name: "/abs", Content: "1"}, {Name: "./dot/./x", Content: "1"}, {Name: "up/../over", Content: "1"}, {Name: "//two//slashes", Content: "1"}},
		},
		want: []string{
			"abs - 0644 0:0 \"1\"", "dot d 0755 0:0", "dot/x - 0644 0:0 \"1\"", "over - 0644 0:0 \"1\"",
			"two d 0755 0:0", "two/slashes - 0644 0:0 \"1\"",
		},
	},
	{
		name: "the same name twice",
		layers: [][]Entry{{
			{Name: "a", Content: "first"}, {Name: "a", Content: "second", Mode: 0o600},
			{Name: "d/"}, {Name: "d/x", Content: "1"}, {Name: "d/", Mode: 0o700, Time: 5}, {Name: "d/y", Content: "2"},
			{Name: "e/x/y", Content: "1"}, {Name: "e", Content: "now a file"},
			{Name: "g/x/y/z", Content: "1"}, {Name: "g/v/", Time: 3}, {Name: "g/v/w/", Time: 3}, {Name: "g", Content: "2"}, {Name: "g/"},
			{Name: "l", Link: "a"}, {Name: "l", Content: "no link", Mode: 0o640},
			{Name: "h", Hard: "a"}, {Name: "h", Hard: "a"},
		}},
		want: []string{
			"a - 0600 0:0 \"second\"", "d d 0700 0:0 @5", "d/x - 0644 0:0 \"1\"", "d/y - 0644 0:0 \"2\"",
			"e - 0644 0:0 \"now a file\"", "g d 0755 0:0", "h = a", "l - 0640 0:0 \"no link\"",
		},
	},
	{
		name: "through a symbolic link of the layer",
		layers: [][]Entry{{
			{Name: "usr/lib/"}, {Name: "lib", Link: "usr/lib"}, {Name: "lib/x", Content: "1"}, {Name: "lib/new/y", Content: "2"},
			{Name: "abs", Link: "/usr"}, {Name: "abs/z", Content: "3"}, {Name: "hard", Hard: "lib/x"},
		}},
		want: []string{
			"abs l 0:0 /usr", "hard - 0644 0:0 \"1\"", "lib l 0:0 usr/lib", "usr d 0755 0:0", "usr/lib d 0755 0:0", "usr/lib/new d 0755 0:0",
			"usr/lib/new/y - 0644 0:0 \"2\"", "usr/lib/x = hard", "usr/z - 0644 0:0 \"3\"",
		},
	},
	{
		name: "directories without an entry show those below",
		layers: [][]Entry{
			{{Name: "./", Mode: 0o555}, {Name: "tmp/", Mode: 0o1777, Time: 6, Xattrs: map[string]string{"user.test": "t"}}, {Name: "home/u/", Mode: 0o700, UID: 1000, GID: 1000}, {Name: "etc/"}},
			{{Name: "tmp/a/b", Content: "2"}, {Name: "home/u/.rc", Content: "2"}, {Name: "etc/x", Content: "2"}},
			{{Name: "tmp/c", Content: "3"}, {Name: "./home/", Mode: 0o711}},
		},
		mended: true,
		want: []string{
			". d 0555 0:0", "etc d 0755 0:0", "etc/x - 0644 0:0 \"2\"", "home d 0711 0:0", "home/u d 0700 1000:1000", "home/u/.rc - 0644 0:0 \"2\"",
			"tmp d 1777 0:0 user.test=74 @6", "tmp/a d 0755 0:0", "tmp/a/b - 0644 0:0 \"2\"", "tmp/c - 0644 0:0 \"3\"",
		},
	},
	{
		name: "directories without an entry over what is hidden",
		layers: [][]Entry{
			{{Name: "a/", Mode: 0o700}, {Name: "b/", Mode: 0o700}, {Name: "b/c/", Mode: 0o700}, {Name: "d", Content: "file"}},
			{{Name: ".wh.a"}, {Name: "b/"}, {Name: "b/.wh..wh..opq"}, {Name: "d/", Mode: 0o711}},
			{{Name: "a/x", Content: "3"}, {Name: "b/c/x", Content: "3"}, {Name: "d/x", Content: "3"}},
		},
		mended: true, // for d alone
		want: []string{
			"a d 0755 0:0", "a/x - 0644 0:0 \"3\"", "b d 0755 0:0", "b/c d 0755 0:0", "b/c/x - 0644 0:0 \"3\"", "d d 0711 0:0", "d/x - 0644 0:0 \"3\"",
		},
	},
	{
		name: "a directory whose entry comes late",
		layers: [][]Entry{
			{{Name: "a/", Mode: 0o700}},
			{{Name: "a/x", Content: "2"}, {Name: "a/", Mode: 0o750, Time: 4}},
		},
		want: []string{"a d 0750 0:0 @4", "a/x - 0644 0:0 \"2\""},
	},
	{
		name: "overlayfs's attributes in a layer",
		layers: [][]Entry{
			{{Name: "secret/", Mode: 0o700}, {Name: "secret/x", Content: "1"}},
			{{Name: "d/", Xattrs: map[string]string{"trusted.overlay.redirect": "/secret", "trusted.overlay.opaque": "y", "trusted.test": "v"}}},
		},
		want: []string{"d d 0755 0:0 trusted.test=76", "secret d 0700 0:0", "secret/x - 0644 0:0 \"1\""},
	},
}

// A refusal is a layer that must not be unpacked, or at most inside.
type refusal struct {
	name      string
	entries   func(outside string) []Entry
	contained bool // rather than refused
}

var refused = []refusal{
	{"a name with dots", func(out string) []Entry {
		return []Entry{{Name: strings.Repeat("../", 12) + out[1:] + "/evil", Content: "x"}}
	}, false},
	{"dots behind a directory", func(out string) []Entry {
		return []Entry{{Name: "a/"}, {Name: "a/../../../../../../../../../../.." + out + "/evil", Content: "x"}}
	}, false},
	{"a directory with dots", func(out string) []Entry {
		return []Entry{{Name: strings.Repeat("../", 12) + out[1:] + "/", Mode: 0o777}}
	}, false},
	{"an absolute name", func(out string) []Entry { return []Entry{{Name: out + "/evil", Content: "x"}} }, true},
	{"an absolute symbolic link as parent", func(out string) []Entry {
		return []Entry{{Name: out[1:] + "/"}, {Name: "l", Link: out}, {Name: "l/evil", Content: "x"}, {Name: "l/.wh.canary"}, {Name: "l/canary", Content: "dead"}}
	}, true},
	{"a symbolic link to nowhere as parent", func(out string) []Entry {
		return []Entry{{Name: "l", Link: out}, {Name: "l/evil", Content: "x"}}
	}, false},
	{"a symbolic link with dots as parent", func(out string) []Entry {
		return []Entry{{Name: "l", Link: strings.Repeat("../", 12) + out[1:]}, {Name: "l/evil", Content: "x"}}
	}, false},
	{"a chain of symbolic links", func(out string) []Entry {
		return []Entry{{Name: "a", Link: "/"}, {Name: "b", Link: "a/.."}, {Name: "c", Link: "b" + out}, {Name: "c/evil", Content: "x"}}
	}, false},
	{"symbolic links in a circle", func(string) []Entry {
		return []Entry{{Name: "a", Link: "b"}, {Name: "b", Link: "a"}, {Name: "a/evil", Content: "x"}}
	}, false},
	{"a file over a symbolic link", func(out string) []Entry {
		return []Entry{{Name: "l", Link: out + "/canary"}, {Name: "l", Content: "dead"}}
	}, true},
	{"a directory over a symbolic link", func(out string) []Entry {
		return []Entry{{Name: "l", Link: out}, {Name: "l/", Mode: 0o777, UID: 7}}
	}, true},
	{"a device over a symbolic link", func(out string) []Entry {
		return []Entry{{Name: "l", Link: out + "/canary"}, {Name: "l", Type: tar.TypeFifo, Mode: 0o777, UID: 7}}
	}, true},
	{"a hard link outside", func(out string) []Entry {
		return []Entry{{Name: "h", Hard: out + "/canary"}, {Name: "h", Content: "dead"}}
	}, false},
	{"a hard link with dots", func(out string) []Entry {
		return []Entry{{Name: "h", Hard: strings.Repeat("../", 12) + out[1:] + "/canary"}}
	}, false},
	{"a hard link through a symbolic link", func(out string) []Entry {
		return []Entry{{Name: "l", Link: out}, {Name: "h", Hard: "l/canary"}}
	}, false},
	{"a hard link to a directory", func(string) []Entry { return []Entry{{Name: "d/"}, {Name: "h", Hard: "d"}} }, false},
	{"a hard link to nothing", func(string) []Entry { return []Entry{{Name: "h", Hard: "nothing"}} }, false},
	{"an entry below a file", func(string) []Entry {
		return []Entry{{Name: "f", Content: "x"}, {Name: "f/evil", Content: "x"}}
	}, false},
	{"an entry below a device", func(string) []Entry {
		return []Entry{{Name: "f", Type: tar.TypeChar, Major: 1, Minor: 3}, {Name: "f/evil", Content: "x"}}
	}, false},
	{"a whiteout of dots", func(string) []Entry { return []Entry{{Name: "a/"}, {Name: "a/.wh..."}} }, false},
	{"a whiteout of one dot", func(string) []Entry { return []Entry{{Name: "a/"}, {Name: "a/.wh.."}} }, false},
	{"a whiteout of nothing", func(string) []Entry { return []Entry{{Name: ".wh."}} }, false},
	{"a whiteout through a symbolic link", func(out string) []Entry {
		return []Entry{{Name: "l", Link: out}, {Name: "l/.wh.canary"}}
	}, false},
	{"a file as root", func(string) []Entry { return []Entry{{Name: "a/.."}} }, false},
	{"a name too long", func(string) []Entry { return []Entry{{Name: strings.Repeat("n", 256), Content: "x"}} }, false},
	{"a path too long", func(string) []Entry { return []Entry{{Name: strings.Repeat("n/", 3000) + "x", Content: "x"}} }, false},
	{"an impossible device", func(string) []Entry {
		return []Entry{{Name: "d", Type: tar.TypeChar, Major: 1 << 20}}
	}, false},
}
