package davit_test

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// waivers name what may exceed a limit of TestLimits, and why.
var waivers = map[string]string{
	"internal/pod.ContainerSnapshot": "what ContainerStatus reports of one container; splitting it would only add names",
}

// What an error's text must not begin with: it says nothing that "error" does not.
var emptyPhrases = []string{"failed to ", "could not ", "unable to ", "error while "}

func TestErrorTexts(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || strings.HasPrefix(s.dir, "test/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !makesError(call) {
				return true
			}
			for _, arg := range call.Args {
				lit, ok := arg.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				text, _ := strconv.Unquote(lit.Value)
				for _, phrase := range emptyPhrases {
					if strings.HasPrefix(text, phrase) {
						t.Errorf("%s: %q: name the thing tried, without %q", s.fset.Position(lit.Pos()), text, phrase)
					}
				}
			}
			return true
		})
	}
}

func makesError(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	if !ok {
		return false
	}
	switch pkg.Name + "." + sel.Sel.Name {
	case "fmt.Errorf", "errors.New", "fault.New":
		return true
	}
	return false
}

// What must not be written in a program that works for a node for months, and why.
var bannedText = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`), "open an issue instead"},
	{regexp.MustCompile(`\bos\.Is(NotExist|Exist|Permission)\(`), "does not see wrapped errors; use errors.Is"},
	{regexp.MustCompile(`"(/Users|/home/[a-z]+/(go|src)|/work)/`), "a path of somebody's own machine"},
	{regexp.MustCompile(`^\s*import "C"`), "davit is built without cgo"},
	{regexp.MustCompile(`"github\.com/opencontainers/runc/libcontainer`), "OCI runtimes are run by exec, never in process"},
}

func TestBannedText(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for n, line := range strings.Split(string(s.text), "\n") {
			for _, ban := range bannedText {
				if ban.pattern.MatchString(line) {
					t.Errorf("%s:%d: %s: %s", s.path, n+1, strings.TrimSpace(line), ban.reason)
				}
			}
		}
	}
}

var (
	promise  = regexp.MustCompile(`^(\d+)\. `)
	testName = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)`")
	script   = regexp.MustCompile("`([a-z0-9-]+\\.txtar)`")
)

// Each promise of docs/promises.md names the test that enforces it, and that
// test exists.
func TestPromisesHaveTests(t *testing.T) {
	text, err := os.ReadFile("docs/promises.md")
	if err != nil {
		t.Fatal(err)
	}
	functions := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test {
				functions[f.Name.Name] = true
			}
		}
	}
	want := 1
	for _, paragraph := range strings.Split(string(text), "\n\n") {
		m := promise.FindStringSubmatch(strings.TrimSpace(paragraph))
		if m == nil {
			continue
		}
		if n, _ := strconv.Atoi(m[1]); n != want {
			t.Errorf("promise %s comes where %d is due", m[1], want)
		}
		want++
		tests := testName.FindAllStringSubmatch(paragraph, -1)
		scripts := script.FindAllStringSubmatch(paragraph, -1)
		if len(tests)+len(scripts) == 0 {
			t.Errorf("promise %s names no test", m[1])
		}
		for _, test := range tests {
			if !functions[test[1]] {
				t.Errorf("promise %s names %s, which does not exist", m[1], test[1])
			}
		}
		for _, s := range scripts {
			if _, err := os.Stat(filepath.Join("test/script/testdata", s[1])); err != nil {
				t.Errorf("promise %s: %v", m[1], err)
			}
		}
	}
	if want == 1 {
		t.Error("docs/promises.md has no promises of the form “1. …”")
	}
}
