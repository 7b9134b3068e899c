package route

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/fault"
)

// files writes files, by their paths below a new directory, and returns it and
// a configuration that names them: certs.d, registries.conf, davit.toml.
func files(t testing.TB, content map[string]string) (dir string, c Config) {
	dir = t.TempDir()
	for name, text := range content {
		write(t, filepath.Join(dir, name), text)
	}
	return dir, Config{
		File: filepath.Join(dir, "davit.toml"), HostsDirs: []string{filepath.Join(dir, "certs.d"), filepath.Join(dir, "docker")},
		Conf: filepath.Join(dir, "registries.conf"), CertDirs: []string{filepath.Join(dir, "containers")},
	}
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// show says in a line what an endpoint is.
func show(e Endpoint) string {
	var b strings.Builder
	b.WriteString(e.URL(e.Scheme, "x"))
	for text, on := range map[string]bool{" home": e.Home, " plain": e.Plain, " unverified": e.TLS.SkipVerify, " no-pull": !e.Pull, " no-resolve": !e.Resolve} {
		if on {
			b.WriteString(text)
		}
	}
	return b.String()
}

// sorted brings the words behind the address into the order of show's table.
func sorted(line string) string {
	words := strings.Fields(line)
	out := words[0]
	for _, w := range []string{"home", "plain", "unverified", "no-pull", "no-resolve"} {
		if strings.Contains(line, " "+w) {
			out += " " + w
		}
	}
	return out
}

const mirrored = `
server = "https://registry-1.docker.io"

[host."https://one.example"]
  capabilities = ["pull"]
[host."http://two.example:5000"]
  skip_verify = true
[host."https://three.example/deep/path"]
  override_path = true
  dial_timeout = "2s"
  [host."https://three.example/deep/path".header]
    Authorization = "Bearer s3cret"
    X-Many = ["a", "b"]
[host."four.example/v2/hub"]
  [host."four.example/v2/hub".rewrite]
    "^nothing/" = "x/"
    "^library/(.*)" = "mirrored/$1"
    "." = "never"
`

func TestRoutes(t *testing.T) {
	for _, c := range []struct {
		name    string
		files   map[string]string
		ref     string
		want    []string // endpoints of the first route
		blocked string
	}{
		{"nothing", nil, "busybox", []string{"https://registry-1.docker.io/v2/library/busybox/x home"}, ""},
		{"a loopback host", nil, "localhost:5000/a:1", []string{"http://localhost:5000/v2/a/x home"}, ""},
		{"hosts.toml", map[string]string{"certs.d/docker.io/hosts.toml": mirrored}, "busybox", []string{
			"https://one.example/v2/library/busybox/x?ns=docker.io no-resolve",
			"https://two.example:5000/v2/library/busybox/x?ns=docker.io plain unverified",
			"https://three.example/deep/path/library/busybox/x?ns=docker.io",
			"https://four.example/v2/hub/v2/mirrored/busybox/x?ns=docker.io",
			"https://registry-1.docker.io/v2/library/busybox/x home",
		}, ""},
		{"a port", map[string]string{"certs.d/r.example_5000_/hosts.toml": `[host."http://m.example"]`}, "r.example:5000/a/b", []string{
			"http://m.example/v2/a/b/x?ns=r.example%3A5000", "https://r.example:5000/v2/a/b/x home",
		}, ""},
		{"a port with a colon", map[string]string{"certs.d/r.example:5000/hosts.toml": `server = "http://m.example"`}, "r.example:5000/a/b", []string{
			"http://m.example/v2/a/b/x?ns=r.example%3A5000 home", // it stands for this registry, by name
		}, ""},
		{"for all hosts", map[string]string{"certs.d/_default/hosts.toml": `server = "https://m.example"`}, "r.example/a", []string{
			"https://m.example/v2/a/x?ns=r.example", // but not for each
		}, ""},
		{"the second directory", map[string]string{"docker/r.example/hosts.toml": `[host."https://m.example"]`, "certs.d/_default/hosts.toml": `server = "https://n.example"`}, "r.example/a", []string{
			"https://m.example/v2/a/x?ns=r.example", "https://r.example/v2/a/x home",
		}, ""},
		{"Docker's server", map[string]string{"certs.d/docker.io/hosts.toml": `server = "https://docker.io"`}, "a/b", []string{"https://registry-1.docker.io/v2/a/b/x home"}, ""},
		{"own mirrors come first", map[string]string{
			"davit.toml":                   "[registries.\"docker.io\"]\nendpoints = [\"m.example/p\", \"http://n.example:80\"]\n[registries.\"m.example\"]\nplain_http = true\n",
			"certs.d/docker.io/hosts.toml": mirrored,
		}, "busybox", []string{
			"http://m.example/p/v2/library/busybox/x?ns=docker.io", "http://n.example:80/v2/library/busybox/x?ns=docker.io", "https://registry-1.docker.io/v2/library/busybox/x home",
		}, ""},
		{"own settings go with others' mirrors", map[string]string{
			"davit.toml": "[registries.\"r.example\"]\nskip_verify = true\n", "certs.d/r.example/hosts.toml": `[host."https://m.example"]`,
		}, "r.example/a", []string{"https://m.example/v2/a/x?ns=r.example", "https://r.example/v2/a/x home unverified"}, ""},
		{"registries.conf", map[string]string{"registries.conf": `
[[registry]]
prefix = "r.example/foo"
location = "internal.example/bar"
[[registry.mirror]]
location = "m.example/mirror"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "n.example:5000/foo/"
insecure = true
`}, "r.example/foo/image:1", []string{
			"https://n.example:5000/v2/foo/image/x plain unverified", "https://internal.example/v2/bar/image/x",
		}, ""},
		{"by digest", map[string]string{"registries.conf": `
[[registry]]
location = "r.example"
mirror = [{ location = "m.example", pull-from-mirror = "digest-only" }, { location = "n.example", pull-from-mirror = "tag-only" }]
`}, "r.example/a@sha256:" + strings.Repeat("0", 64), []string{"https://m.example/v2/a/x", "https://r.example/v2/a/x home"}, ""},
		{"mirrors by digest only", map[string]string{"registries.conf": "[[registry]]\nlocation = \"r.example\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.example\"\n"},
			"r.example/a:1", []string{"https://r.example/v2/a/x home"}, ""},
		{"the longest prefix", map[string]string{"registries.conf": `
[[registry]]
prefix = "*.example"
[[registry]]
prefix = "r.example/a"
location = "one.test"
[[registry]]
prefix = "r.example/a/b"
location = "two.test/c"
[[registry]]
prefix = "r.example/a/b/cc"
location = "three.test"
`}, "r.example/a/b/c", []string{"https://two.test/v2/c/c/x"}, ""},
		{"a host of any name", map[string]string{"registries.conf": "[[registry]]\nprefix = \"*.example\"\ninsecure = true\n"}, "x.y.example:81/a", []string{"https://x.y.example:81/v2/a/x home plain unverified"}, ""},
		{"blocked", map[string]string{"registries.conf": "[[registry]]\nlocation = \"r.example\"\n\nblocked = true\n"}, "r.example/a", nil, "registries.conf:4"},
		{"blocked whatever else", map[string]string{"registries.conf": "[[registry]]\nlocation = \"r.example\"\nblocked = true\n", "certs.d/r.example/hosts.toml": `server = "https://m.example"`}, "r.example/a", nil, "registries.conf:3"},
		{"a file of registries.conf.d", map[string]string{
			"registries.conf":               "[[registry]]\nlocation = \"r.example\"\nblocked = true\n[[registry]]\nlocation = \"s.example\"\nblocked = true\n",
			"registries.conf.d/10-a.conf":   "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"m.example\"\n",
			"registries.conf.d/20-b.conf":   "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"n.example\"\n",
			"registries.conf.d/30-c.backup": "[[registry]]\nlocation = \"r.example\"\nblocked = true\n",
		}, "r.example/a", []string{"https://n.example/v2/a/x", "https://r.example/v2/a/x home"}, ""},
		{"hosts.toml of the host, then registries.conf, then that of all", map[string]string{
			"registries.conf": "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"m.example\"\n", "certs.d/_default/hosts.toml": `server = "https://n.example"`,
		}, "r.example/a", []string{"https://m.example/v2/a/x", "https://r.example/v2/a/x home"}, ""},
		{"version 1", map[string]string{"registries.conf": "[registries.search]\nregistries = ['s.example']\n[registries.insecure]\nregistries = ['s.example']\n[registries.block]\nregistries = ['b.example']\n"},
			"busybox:2", []string{"https://s.example/v2/busybox/x home plain unverified"}, ""},
		{"version 1, blocked", map[string]string{"registries.conf": "[registries.block]\nregistries = ['b.example']\n"}, "b.example/a", nil, "registries.conf:2"},
		{"a name that looks like a path", map[string]string{"certs.d/hosts.toml": `server = "https://m.example"`}, "r.example/..a", nil, "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, config := files(t, c.files)
			routes, err := New(config).Routes(c.ref)
			if c.blocked == "invalid" {
				if !fault.Is(err, fault.Invalid) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || len(routes) != 1 {
				t.Fatalf("%+v %v", routes, err)
			}
			r := routes[0]
			if (r.Blocked != nil) != (c.blocked != "") || r.Blocked != nil && !strings.HasSuffix(r.Blocked.Source, c.blocked) {
				t.Errorf("blocked: %+v", r.Blocked)
			}
			var got []string
			for _, e := range r.Endpoints {
				got = append(got, sorted(show(e)))
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// Each setting comes with its place, and no secret with any.
func TestSettings(t *testing.T) {
	dir, config := files(t, map[string]string{
		"certs.d/docker.io/hosts.toml": "# first\n" + mirrored + "[host.\"https://user:s3cret@five.example\"]\nca = [\"ca.pem\", \"/etc/ca.pem\"]\nclient = [[\"c.cert\", \"c.key\"], [\"c.pem\", \"\"]]\n",
		"registries.conf":              "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"m.example\"\ninsecure = true\nproxy = \"http://user:s3cret@p.example:3128\"\n",
		"containers/r.example/ca.crt":  "", "containers/r.example/client.cert": "", "containers/r.example/client.key": "",
	})
	f := New(config)
	settings := map[string]string{}
	for _, ref := range []string{"busybox", "r.example/a"} {
		routes, err := f.Routes(ref)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range routes[0].Endpoints {
			for _, s := range e.Settings {
				settings[fmt.Sprintf("%s %d %s", ref, i, s.Key)] = strings.ReplaceAll(s.Value+" @ "+s.Source, dir+"/", "")
			}
		}
		if ref == "busybox" {
			e := routes[0].Endpoints
			if e[2].Header.Get("authorization") != "Bearer s3cret" || len(e[2].Header.Values("X-Many")) != 2 || e[2].Dial.String() != "2s" {
				t.Errorf("%+v", e[2])
			}
			if fmt.Sprint(e[4].TLS.Pairs) != fmt.Sprintf("[[%[1]s/c.cert %[1]s/c.key] [%[1]s/c.pem ]]", filepath.Join(dir, "certs.d/docker.io")) {
				t.Errorf("%v", e[4].TLS.Pairs)
			}
		} else if p := routes[0].Endpoints[0].Proxy; p == nil || p.Host != "p.example:3128" || p.User == nil {
			t.Errorf("proxy %v", p)
		}
	}
	for key, want := range map[string]string{
		"busybox 0 host":                  "https://one.example @ certs.d/docker.io/hosts.toml:5",
		"busybox 0 capabilities":          "pull @ certs.d/docker.io/hosts.toml:6",
		"busybox 1 skip_verify":           "true @ certs.d/docker.io/hosts.toml:8",
		"busybox 2 header.Authorization":  "(not shown) @ certs.d/docker.io/hosts.toml:13",
		"busybox 2 dial_timeout":          "2s @ certs.d/docker.io/hosts.toml:11",
		"busybox 3 rewrite.^library/(.*)": "^library/(.*) → mirrored/$1 @ certs.d/docker.io/hosts.toml:18",
		"busybox 4 host":                  "https://five.example @ certs.d/docker.io/hosts.toml:20",
		"busybox 4 ca":                    "certs.d/docker.io/ca.pem, /etc/ca.pem @ certs.d/docker.io/hosts.toml:21",
		"busybox 5 server":                "https://registry-1.docker.io @ certs.d/docker.io/hosts.toml:3",
		"r.example/a 0 mirror location":   "m.example @ registries.conf:4",
		"r.example/a 0 insecure":          "true @ registries.conf:5",
		"r.example/a 0 proxy":             "http://p.example:3128 @ registries.conf:6",
		"r.example/a 1 location":          "r.example @ registries.conf:2",
		"r.example/a 1 ca":                "containers/r.example/ca.crt @ containers/r.example",
		"r.example/a 1 client":            "containers/r.example/client.cert containers/r.example/client.key @ containers/r.example",
	} {
		if settings[key] != want {
			t.Errorf("%s: %q, want %q", key, settings[key], want)
		}
	}
	if all := fmt.Sprint(settings); strings.Contains(all, "s3cret") {
		t.Errorf("a secret in %s", all)
	}
}

func TestBrokenFiles(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"certs.d/r.example/hosts.toml", "server = \n", "hosts.toml:1: "},
		{"certs.d/r.example/hosts.toml", "\n[host.\"https://a\"]\ncapabilities = [\"pull\", \"fly\"]\n", "hosts.toml:3: capabilities \"fly\""},
		{"certs.d/r.example/hosts.toml", "[host.\"https://a\"]\nca = 7\n", "hosts.toml:2: ca is neither"},
		{"certs.d/r.example/hosts.toml", "[host.\"https://a\"]\nclient = [[\"a\"]]\n", "hosts.toml:2: client is neither"},
		{"certs.d/r.example/hosts.toml", "[host.\"https://a\"]\nclient = []\nheader = { \"a b\" = \"s3cret\" }\n", "hosts.toml:3: header \"a b\""},
		{"certs.d/r.example/hosts.toml", "[header]\na = \"s3cret\\n\"\n", "hosts.toml:1: header \"a\", or its value"},
		{"certs.d/r.example/hosts.toml", "[header]\na = [1]\n", "hosts.toml:1: header"},
		{"certs.d/r.example/hosts.toml", "dial_timeout = \"soon\"\n", "hosts.toml:1: dial_timeout"},
		{"certs.d/r.example/hosts.toml", "server = \"https://\"\n", "hosts.toml:1: the server"},
		{"certs.d/r.example/hosts.toml", "[host.\"http+unix://s3cret@a\"]\n", "hosts.toml:1: the server"},
		{"certs.d/r.example/hosts.toml", "[rewrite]\n\"(\" = \"a\"\n", "hosts.toml:2: rewrite"},
		{"certs.d/r.example/hosts.toml", "[rewrite]\n\"a\" = \"../A\"\n", "hosts.toml:2: rewrite makes"},
		{"registries.conf", "[[registry]]\n", "registries.conf:1: has neither"},
		{"registries.conf", "[[registry]]\nprefix = \"a.example\"\n", "registries.conf:1: has no location"},
		{"registries.conf", "[[registry]]\nlocation = \"https://a.example\"\n", "registries.conf:1: a location"},
		{"registries.conf", "[[registry]]\nlocation = \"a.example\"\nproxy = \"p s3cret\"\n", "registries.conf:1: the proxy"},
		{"registries.conf", "[[registry]]\nlocation = \"a.example\"\npull-from-mirror = \"all\"\n", "registries.conf:1: pull-from-mirror"},
		{"registries.conf", "[[registry]]\nlocation = \"a.example\"\nmirror = [{}]\n", "registries.conf:1: has a mirror"},
		{"registries.conf", "[[registry]]\nprefix = \"*.a/b\"\n", "registries.conf:1: prefix"},
		{"registries.conf", "[[registry]]\nlocation = \"a.example\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"all\"\n", "registries.conf:1: has both"},
		{"registries.conf", "[[registry]]\nlocation = \"a.example\"\n[registries.block]\nregistries = []\n", "registries.conf:3: is of version 1"},
		{"registries.conf", "unqualified-search-registries = [\"a/b\"]\n", "registries.conf:1: \"a/b\""},
		{"registries.conf", "short-name-mode = \"maybe\"\n", "registries.conf:1: \"maybe\""},
		{"registries.conf", "[aliases]\n\na = \"b\"\n", "registries.conf:3: \"b\""},
		{"registries.conf", "[[registry]]\nprefix = \"r.example/a\"\nlocation = \"a.example/B\"\n", "registries.conf:1: makes"},
		{"registries.conf", "[[registry]]\nprefix = \"r.example/a:1\"\nlocation = \"a.example/b:2\"\n", "registries.conf:1: makes another tag"},
		{"davit.toml", "[registries.\"r.example\"]\nendpoints = [\"https://u:s3cret@m.example\"]\n", "davit.toml:2: a mirror of r.example"},
	} {
		dir, config := files(t, map[string]string{c.file: c.text})
		_, err := New(config).Routes("r.example/a:1")
		if !fault.Is(err, fault.Precondition) || !strings.HasPrefix(err.Error(), filepath.Join(dir, filepath.Dir(c.file), c.want)) {
			t.Errorf("%q: %v", c.text, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("a secret in %v", err)
		}
	}
}

// An edit counts for the next question.
func TestEdit(t *testing.T) {
	dir, config := files(t, map[string]string{"certs.d/r.example/hosts.toml": `[host."https://one.example"]`})
	f := New(config)
	first := func() string {
		routes, err := f.Routes("r.example/a")
		if err != nil {
			return err.Error()
		}
		if len(routes[0].Endpoints) == 0 {
			return "none"
		}
		return routes[0].Endpoints[0].Address
	}
	for _, step := range []struct{ file, text, want string }{
		{"", "", "one.example"},
		{"certs.d/r.example/hosts.toml", `[host."https://two.example"]`, "two.example"},
		{"davit.toml", "[registries.\"r.example\"]\nendpoints = [\"three.example\"]\n", "three.example"},
		{"registries.conf.d/a.conf", "[[registry]]\nlocation = \"r.example\"\nblocked = true\n", "none"},
	} {
		if step.file != "" {
			write(t, filepath.Join(dir, step.file), step.text)
		}
		if got := first(); got != step.want {
			t.Errorf("after %s: %s, want %s", step.file, got, step.want)
		}
	}
}

// While davitd's own file is broken, what it said before is in force.
func TestOwnFileBreaks(t *testing.T) {
	const text = "[registries.\"docker.io\"]\nendpoints = [\"m.example\"]\n"
	dir, config := files(t, map[string]string{"davit.toml": text})
	f := New(config)
	for _, now := range []string{text, text + "[", text + "a = \"\xff\"", text} {
		write(t, filepath.Join(dir, "davit.toml"), now)
		routes, err := f.Routes("busybox")
		if err != nil || len(routes) != 1 || len(routes[0].Endpoints) != 2 || routes[0].Endpoints[0].Address != "m.example" {
			t.Errorf("%q: %+v, %v", now, routes, err)
		}
	}
	write(t, filepath.Join(dir, "davit.toml"), "")
	if routes, err := f.Routes("busybox"); err != nil || len(routes[0].Endpoints) != 1 {
		t.Errorf("without it: %+v, %v", routes, err)
	}
}
