package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEvents(t *testing.T) {
	list := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(list, []byte("# why\ninternal:x.Root* needs root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := &totals{used: map[string]bool{}}
	if err := sum.readSkips(list); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	output := map[string]*strings.Builder{}
	pkg := "github.com/davit-runtime/davit/internal/x"
	for _, e := range []event{
		{Action: "run", Package: pkg, Test: "TestA"},
		{Action: "output", Package: pkg, Test: "TestA", Output: "quiet\n"},
		{Action: "output", Package: pkg, Test: "TestA", Output: "    a_test.go:7: figure: 3 ms\n"},
		{Action: "pass", Package: pkg, Test: "TestA"},
		{Action: "output", Package: pkg, Test: "TestB/sub", Output: "loud\n"},
		{Action: "fail", Package: pkg, Test: "TestB/sub"},
		{Action: "skip", Package: pkg, Test: "RootC"},
		{Action: "output", Package: pkg, Test: "TestD", Output: "no idea why\n"},
		{Action: "skip", Package: pkg, Test: "TestD"},
		{Action: "fail", Package: pkg, Elapsed: 1.5},
		{Action: "fail", Package: pkg + "broken"},
	} {
		sum.event(e, output, &out)
	}
	if err := sum.close(&out, 0); err == nil {
		t.Error("failures, but no error")
	}
	for _, want := range []string{
		"      internal/x.TestA: 3 ms\n", "loud\n", "no idea why\n", "skip  internal/x.RootC: needs root\n", "FAIL  internal/x  ",
		"FAILED internal/x.TestD was skipped and is not on the list\n", "FAILED internal/xbroken\n",
		"\n1 passed, 3 failed, 1 skipped\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "quiet") {
		t.Errorf("output of a test that passed:\n%s", out.String())
	}
}
