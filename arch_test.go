// Package davit_test holds the rules of the layout: who may import whom, how
// long things may get, what davit-monitor may be made of. The reasons are in
// ARCHITECTURE.md.
package davit_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/davit-runtime/davit/"

// base is what everything above it may use.
var base = []string{"internal/store", "internal/span", "internal/fault"}

// drivers have value types that the core passes on.
var drivers = []string{
	"internal/ocispec", "internal/network", "internal/namespace", "internal/cgroup", "internal/nri",
	"internal/image", "internal/monitor", "internal/ociruntime", "internal/idmap", "internal/label",
}

// imports is the diagram of ARCHITECTURE.md as data: what of davit each
// package may import. A new edge changes both in one commit.
var imports = map[string][]string{
	"cmd/davitd":        {"*"}, // it joins the parts
	"cmd/davit-monitor": {"internal/monitor", "internal/monitor/server", "internal/keeper", "internal/holder"},
	"cmd/davit":         {"cmd/davit/console", "cmd/davit/images", "cmd/davit/why", "criclient", "criclient/cristream", "internal/play", "internal/crilog", "internal/terminal", "internal/inside", "internal/doctor", "internal/endpoint"},
	"cmd/davit/images":  {"cmd/davit/console", "api/image/v1", "internal/play"},
	"cmd/davit/why":     {"cmd/davit/console", "api/call/v1"},
	"cmd/davit/console": {"api/image/v1", "api/call/v1", "criclient", "internal/endpoint", "internal/play"}, // the words of its errors

	"api/image/v1": {},
	"api/call/v1":  {},
	"api/generate": {}, // a module of its own, for make generate

	"criclient":           {},
	"criclient/crifake":   {"criclient"},
	"criclient/cristream": {},
	"internal/play":       {"internal/store", "internal/fault"},
	"internal/crilog":     {},
	"internal/terminal":   {"criclient/cristream"},
	"internal/inside":     {},
	"internal/doctor":     {"criclient", "internal/kubelet", "internal/endpoint", "internal/proc"},
	"internal/endpoint":   {"criclient", "internal/kubelet"},
	"internal/kubelet":    {"internal/proc"},
	"internal/proc":       {},
	// Of cgroup and monitor, cri uses value types that pod hands through.
	"internal/cri": slices.Concat(base, []string{"internal/calls", "internal/pod", "internal/image", "internal/stream", "internal/cgroup", "internal/monitor", "internal/network", "internal/namespace", "internal/stats", "internal/cri/metrics", "internal/cri/validate"}),
	// What images are and come from, to be told.
	"internal/imageapi":     slices.Concat(base, []string{"api/image/v1", "internal/archive", "internal/image", "internal/registry", "internal/registry/route"}),
	"internal/calls":        {"api/call/v1", "internal/span"},
	"internal/cadvisor":     slices.Concat(base, []string{"internal/pod"}),
	"internal/cri/validate": base,
	"internal/stream":       slices.Concat(base, []string{"internal/monitor"}), // its value types
	"internal/cri/metrics":  slices.Concat(base, []string{"internal/stats", "internal/cgroup", "internal/namespace"}),
	"internal/stats":        slices.Concat(base, []string{"internal/pod", "internal/cgroup", "internal/namespace", "internal/image"}),
	"internal/pod":          slices.Concat(base, drivers, []string{"internal/operation", "internal/volume", "internal/compact"}),
	"internal/operation":    base,
	"internal/volume":       base,
	"internal/compact":      {},
	"internal/keeper":       {"internal/monitor", "internal/fault"},
	"internal/image":        slices.Concat(base, []string{"internal/registry", "internal/layer", "internal/overlay", "internal/writable", "internal/idmap", "internal/patrol", "internal/turn"}),
	"internal/patrol":       base,
	"internal/overlay":      {"internal/idmap", "internal/fault"},
	"internal/writable":     {},
	"internal/archive":      {"internal/image", "internal/inflate", "internal/registry", "internal/fault"},
	"internal/verifier":     {"internal/fault"},
	"internal/idmap":        {"internal/fault", "internal/holder"},
	"internal/label":        {"internal/fault"},
	"internal/monitor":      {"internal/ociruntime", "internal/fault"},
	// These five go into davit-monitor, so they use no base but fault.
	"internal/monitor/server": {"internal/monitor", "internal/monitor/stdio", "internal/ociruntime", "internal/holder", "internal/fault"},
	"internal/monitor/stdio":  {"internal/monitor"},
	"internal/holder":         {},
	"internal/ociruntime":     {"internal/fault"},
	"internal/cdi":            base,
	"internal/ocispec":        slices.Concat(base, []string{"internal/idmap"}),
	"internal/network":        base,
	"internal/namespace":      slices.Concat(base, []string{"internal/idmap"}),
	"internal/cgroup":         base,
	"internal/nri":            base,
	"internal/registry":       slices.Concat(base, []string{"internal/registry/route"}),
	"internal/registry/route": {"internal/fault"},
	"internal/layer":          slices.Concat(base, []string{"internal/erofs", "internal/inflate", "internal/unzstd", "internal/layer/mount"}),
	"internal/layer/mount":    {"internal/fault"},
	"internal/erofs":          {"internal/fault", "internal/tape"},
	"internal/tape":           {},
	"internal/turn":           {},
	"internal/inflate":        {},
	"internal/unzstd":         {},
	"internal/store":          {"internal/fault"},
	"internal/settings":       {},
	"internal/span":           {"internal/fault"}, // what a program said that failed
	"internal/fault":          {},
	"internal/testkit":        {},
}

// monitorMayUse is what davit-monitor is made of beside the standard library
// and davit's own packages.
var monitorMayUse = []string{"golang.org/x/sys/", "github.com/opencontainers/runtime-spec/"}

var bannedNames = []string{"util", "utils", "common", "helpers", "types", "base", "manager", "lib", "pkg", "misc"}

// A source is one parsed Go file.
type source struct {
	path string // from the top, "internal/pod/run.go"
	dir  string
	test bool
	file *ast.File
	fset *token.FileSet
	text []byte
}

func TestImportsPointDown(t *testing.T) {
	for _, s := range sources(t) {
		may, known := imports[s.dir]
		inTest := s.test || s.dir == "test" || strings.HasPrefix(s.dir, "test/") || s.dir == "."
		if !known && !inTest && !contractSuite(s.dir) {
			t.Errorf("%s: package %s is not in the import table of arch_test.go", s.path, s.dir)
			continue
		}
		for _, spec := range s.file.Imports {
			target, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module)
			if !ours || inTest || contractSuite(s.dir) {
				continue
			}
			if target == "internal/testkit" {
				t.Errorf("%s imports internal/testkit, which is for tests and programs below test/ only", s.path)
			} else if !slices.Contains(may, target) && !slices.Contains(may, "*") {
				t.Errorf("%s imports %s; the table of arch_test.go lets %s import %v", s.path, target, s.dir, may)
			}
		}
	}
}

// contractSuite reports whether dir holds tests that several implementations
// of one interface share, as internal/layer/layertest does.
func contractSuite(dir string) bool { return path.Base(dir) == path.Base(path.Dir(dir))+"test" }

func TestMonitorIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/davit-monitor").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for _, dep := range strings.Fields(string(out)) {
		allowed := func(prefix string) bool { return strings.HasPrefix(dep+"/", prefix) }
		if !strings.HasPrefix(dep, module) && !slices.ContainsFunc(monitorMayUse, allowed) {
			t.Errorf("davit-monitor depends on %s; it may use the standard library, %v and davit's own packages", dep, monitorMayUse)
		}
	}
}

// clientMayUse is what criclient, which others import, is made of beside the
// standard library: cri-api, gRPC, and what gRPC needs.
var clientMayUse = []string{
	"github.com/davit-runtime/davit/criclient/", "k8s.io/cri-api/", "google.golang.org/grpc/", "google.golang.org/protobuf/",
	"google.golang.org/genproto/googleapis/rpc/", "golang.org/x/net/", "golang.org/x/sys/", "golang.org/x/text/",
}

func TestClientIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./criclient", "./criclient/crifake").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for _, dep := range strings.Fields(string(out)) {
		allowed := func(prefix string) bool { return strings.HasPrefix(dep+"/", prefix) }
		if !slices.ContainsFunc(clientMayUse, allowed) {
			t.Errorf("criclient depends on %s; it may use the standard library and %v", dep, clientMayUse)
		}
	}
}

// What each program is made of is written down; a change there is a decision.
func TestDependenciesAreWrittenDown(t *testing.T) {
	for _, program := range []string{"davitd", "davit-monitor", "davit"} {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/"+program).CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v\n%s", err, out)
		}
		now := strings.Fields(string(out))
		slices.Sort(now)
		now = slices.Compact(now)
		file := "docs/deps/" + program + ".txt"
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		written := strings.Fields(string(text))
		for _, module := range now {
			if !slices.Contains(written, module) {
				t.Errorf("%s has come to depend on %s; if that is meant, run make deps", program, module)
			}
		}
		for _, module := range written {
			if !slices.Contains(now, module) {
				t.Errorf("%s no longer depends on %s; run make deps", program, module)
			}
		}
	}
}

func TestPackagesAreNamedAndDocumented(t *testing.T) {
	documented := map[string]int{}
	for _, s := range sources(t) {
		name := s.file.Name.Name
		if slices.Contains(bannedNames, name) || slices.Contains(bannedNames, path.Base(s.dir)) {
			t.Errorf("%s: %q says nothing about what the package is", s.path, name)
		}
		if base, linux := strings.CutSuffix(path.Base(s.path), "_linux.go"); linux {
			t.Errorf("%s: call it %s.go; all of davit is Linux", s.path, base)
		}
		if depth := strings.Count(s.dir, "/"); strings.HasPrefix(s.dir, "internal/") && depth > 2 {
			t.Errorf("%s: more than two levels below internal/", s.path)
		}
		if s.test {
			continue
		}
		if _, seen := documented[s.dir]; !seen {
			documented[s.dir] = 0
		}
		if s.file.Doc != nil && len(s.file.Doc.Text()) > 20 {
			documented[s.dir]++
		}
	}
	for dir, n := range documented {
		if n != 1 && dir != "." {
			t.Errorf("%s has %d files with a package comment, want exactly one", dir, n)
		}
	}
}

func TestLimits(t *testing.T) {
	used := map[string]bool{}
	exceeds := func(what string, got, limit int, unit string) {
		if got <= limit {
			return
		}
		if _, waived := waivers[what]; waived {
			used[what] = true
			return
		}
		t.Errorf("%s has %d %s, the limit is %d", what, got, unit, limit)
	}
	files := map[string]int{}
	for _, s := range sources(t) {
		lines := strings.Count(string(s.text), "\n")
		if s.test {
			exceeds(s.path, lines, 700, "lines") // tables take room
			continue
		}
		exceeds(s.path, lines, 500, "lines")
		files[s.dir]++
		for _, d := range s.file.Decls {
			measure(s, d, exceeds)
		}
	}
	for dir, n := range files {
		exceeds(dir, n, 15, "files")
	}
	for what, reason := range waivers {
		if !used[what] {
			t.Errorf("the waiver for %s is no longer needed (it was: %s)", what, reason)
		}
	}
}

// measure applies the limits to one declaration.
func measure(s source, d ast.Decl, exceeds func(what string, got, limit int, unit string)) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		lines := s.fset.Position(d.End()).Line - s.fset.Position(d.Pos()).Line + 1
		exceeds(s.dir+"."+funcName(d), lines, 80, "lines")
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			named, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			switch typ := named.Type.(type) {
			case *ast.StructType:
				exceeds(s.dir+"."+named.Name.Name, typ.Fields.NumFields(), 15, "fields")
			case *ast.InterfaceType:
				exceeds(s.dir+"."+named.Name.Name, typ.Methods.NumFields(), 5, "methods")
			}
		}
	}
}

func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	recv := d.Recv.List[0].Type
	if star, ok := recv.(*ast.StarExpr); ok {
		recv = star.X
	}
	if generic, ok := recv.(*ast.IndexExpr); ok {
		recv = generic.X
	}
	return fmt.Sprint(recv) + "." + d.Name.Name
}

// sources parses every Go file of the module, generated ones excepted.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, file, err := parse(fset, name)
		if err != nil || ast.IsGenerated(file) {
			return err
		}
		all = append(all, source{
			path: filepath.ToSlash(name), dir: path.Dir(filepath.ToSlash(name)),
			test: strings.HasSuffix(name, "_test.go"), file: file, fset: fset, text: text,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func parse(fset *token.FileSet, name string) ([]byte, *ast.File, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, err
	}
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	return text, file, err
}
