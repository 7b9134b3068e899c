package route

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/fault"
)

func TestShortNames(t *testing.T) {
	const alias = "[aliases]\nbusybox = \"quay.example/tools/busybox\"\n\"a/b\" = \"r.example/b\"\n"
	d := "@sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct {
		name, conf, ref string
		want            string // names, or the error's beginning
	}{
		{"nothing said", "", "busybox", "[docker.io/library/busybox:latest]"},
		{"full", alias, "docker.io/busybox", "[docker.io/library/busybox:latest]"},
		{"an alias", alias, "busybox", "[quay.example/tools/busybox:latest]"},
		{"an alias and a tag", alias, "busybox:1", "[quay.example/tools/busybox:1]"},
		{"an alias and a digest", alias, "busybox:1" + d, "[quay.example/tools/busybox:1" + d + "]"},
		{"an alias with a slash", alias, "a/b", "[r.example/b:latest]"},
		{"an alias is of the whole name", alias, "a/b/c", "[docker.io/a/b/c:latest]"},
		{"one registry", "unqualified-search-registries = [\"s.example:5000\"]", "a/b:1", "[s.example:5000/a/b:1]"},
		{"several", "unqualified-search-registries = [\"s.example\", \"docker.io\"]", "b", "[s.example/b:latest docker.io/library/b:latest]"},
		{"several, one to be chosen", "unqualified-search-registries = [\"s.example\", \"docker.io\"]\nshort-name-mode = \"enforcing\"", "b", "\"b\" is a short name, for which REGISTRIES:1 lists"},
		{"one to be chosen of one", "unqualified-search-registries = [\"s.example\"]\nshort-name-mode = \"enforcing\"", "b", "[s.example/b:latest]"},
		{"none", "unqualified-search-registries = []", "b", "\"b\" is a short name, and REGISTRIES:1 lists no registry"},
		{"an ID is no name", "", "sha256:abc", "[docker.io/library/sha256:abc]"},
	} {
		dir, config := files(t, map[string]string{"registries.conf": c.conf})
		f := New(config)
		routes, err := f.Routes(c.ref)
		var got []string
		for _, r := range routes {
			got = append(got, r.Named.String())
		}
		text := fmt.Sprint(got)
		if err != nil {
			if text = strings.ReplaceAll(err.Error(), filepath.Join(dir, "registries.conf"), "REGISTRIES"); !fault.Is(err, fault.Precondition) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if !strings.HasPrefix(text, c.want) {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
		if names, err := f.Names(c.ref); err != nil || len(got) > 0 && fmt.Sprint(names) != fmt.Sprint(got) {
			t.Errorf("%s: looked up as %v %v", c.name, names, err)
		}
	}
}

// A later file takes an alias away, or says something else.
func TestAliasesOfFiles(t *testing.T) {
	_, config := files(t, map[string]string{
		"registries.conf":          "unqualified-search-registries = [\"a.example\"]\n[aliases]\none = \"a.example/one\"\ntwo = \"a.example/two\"\n",
		"registries.conf.d/1.conf": "unqualified-search-registries = [\"b.example\"]\n[aliases]\none = \"\"\ntwo = \"b.example/2\"\n",
	})
	for ref, want := range map[string]string{"one": "b.example/one:latest unqualified-search-registries", "two": "b.example/2:latest aliases"} {
		routes, err := New(config).Routes(ref)
		if err != nil || len(routes) != 1 || routes[0].Named.String()+" "+routes[0].Short.Key != want {
			t.Errorf("%s: %+v %v", ref, routes, err)
		}
	}
}

// Whatever the files are, there is an answer, and names are names.
func FuzzFiles(f *testing.F) {
	f.Add("docker.io/library/a:1", mirrored, "[[registry]]\nlocation = \"docker.io\"\nmirror = [{location=\"a.b\"}]\n", "[registries.\"docker.io\"]\nendpoints = [\"a\"]\n")
	f.Add("a", "ca = [\"a\"]\n[header]\na = \"b\"", "unqualified-search-registries = [\"a.b\"]\n[aliases]\n\"a\" = \"b.c/d\"", "")
	f.Add("r.example/a", "host = { \"https://a\" = { client = \"c\", rewrite = { \"a\" = \"b\" } } }", "[registries.block]\nregistries = [\"r.example\"]", "registries.r.plain_http = true")
	f.Add("a.b/c", "a.b.c = [[1], {d = 2}]\n[[x]]\n[[x.y]]\n[x.y.z]", "[[registry.mirror]]\n", "")
	f.Fuzz(func(t *testing.T, ref, hosts, conf, own string) {
		_, config := files(t, map[string]string{"certs.d/_default/hosts.toml": hosts, "registries.conf": conf, "davit.toml": own})
		routes, err := New(config).Routes(ref)
		if err != nil {
			return
		}
		for _, r := range routes {
			for _, e := range r.Endpoints {
				if e.Address == "" || e.Repository == "" || e.Scheme != "http" && e.Scheme != "https" || strings.HasSuffix(e.Path, "/") {
					t.Errorf("%+v", e)
				}
			}
		}
	})
}
